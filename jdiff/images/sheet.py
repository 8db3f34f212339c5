"""Contact sheets: pictures in rows and columns on white, with labels."""

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from jdiff.images.text import Text
from jdiff.images.values import Pictures, as_floats
from jdiff.images.write import as_pil

# Paper, and the hairline round a picture, in RGB.
PAGE, LINE = (255, 255, 255), (208, 208, 208)


class Sheet:
    """Where everything on a sheet goes.

    Args:
        rows: rows of pictures.
        columns: pictures in a row.
        height: pixels of a picture.
        width: pixels of a picture.
        row_labels: one for each row, or none.
        column_labels: one for each column, or none.
        title: above all.
        cell: pixels that a picture is at least wide or high.

    Raises:
        ValueError: there are more or fewer labels than rows or columns.
    """

    def __init__(
        self, rows: int, columns: int, height: int, width: int, row_labels: Sequence[str] = (),
        column_labels: Sequence[str] = (), title: str = "", cell: int = 128,
    ):  # fmt: skip
        for name, labels, count in (("row_labels", row_labels, rows), ("column_labels", column_labels, columns)):
            if len(labels) not in (0, count):
                raise ValueError(f"{name} must have {count} entries, or none, got {len(labels)}")
        zoom = max(1, math.ceil(cell / max(height, width)))
        self.rows, self.columns = rows, columns
        self.height, self.width = zoom * height, zoom * width
        size = max(14, round(min(self.height, self.width) / 9))  # of the letters
        self.margin, self.gap = max(16, size), max(6, size // 3)
        inner = columns * self.width + (columns - 1) * self.gap
        self.left = Text(row_labels, size, width=max(self.width, 8 * size), height=self.height)
        self.top = Text(column_labels, size, width=self.width, height=4 * size)
        self.x0 = self.margin + (self.left.width + self.margin if self.left.width else 0)
        self.head = Text([title] if title else [], size, width=self.x0 - self.margin + inner, height=6 * size)
        above = self.head.height + self.margin * 3 // 4 if self.head.height else 0
        self.y0 = self.margin + above + (self.top.height + self.gap if self.top.height else 0)
        self.size = (
            self.y0 + rows * self.height + (rows - 1) * self.gap + self.margin,
            self.x0 + inner + self.margin,
        )

    def draw(self, images: np.ndarray) -> np.ndarray:
        """Draws the sheet [h w 3] uint8 of images [r c h w 3 or 1] in [-1, 1]."""
        page = Image.new("RGB", (self.size[1], self.size[0]), PAGE)
        draw = ImageDraw.Draw(page)
        self.head.draw(draw, 0, self.x0 if not self.left.width else self.margin, self.margin, anchor="la")
        for i in range(self.rows):
            y = self.y0 + i * (self.height + self.gap)
            self.left.draw(draw, i, self.x0 - self.margin, y + self.height // 2, anchor="rm")
            for j in range(self.columns):
                x = self.x0 + j * (self.width + self.gap)
                if i == 0:
                    self.top.draw(draw, j, x + self.width // 2, self.y0 - self.gap, anchor="md")
                if not np.isnan(images[i, j]).all():
                    draw.rectangle((x - 1, y - 1, x + self.width, y + self.height), outline=LINE)
                    picture = as_pil(images[i, j])
                    page.paste(picture.resize((self.width, self.height), Image.Resampling.NEAREST), (x, y))
        return np.asarray(page)


def grid(
    images: Pictures,
    row_labels: Sequence[str] = (),
    *,
    column_labels: Sequence[str] = (),
    title: str = "",
    cell: int = 128,
) -> np.ndarray:
    """Draws a contact sheet on white, with labels.

    Small pictures are enlarged by a whole factor. Labels are wrapped, and set smaller if they still do not fit. A label
    with letters that no font has is replaced by its number.

    Args:
        images: [r c h w 3 or 1] floats in [-1, 1], uint8, or rows of PIL pictures. A picture that is all NaN leaves
            its cell empty.
        row_labels: one for each row, or none.
        column_labels: one for each column, or none.
        title: above all.
        cell: pixels that a picture is enlarged to, at least, on its longer side.

    Returns:
        The sheet [h w 3], uint8.

    Raises:
        ValueError: the images or labels do not fit, or a picture has some values that are not finite.

    Example:
        >>> grid(np.zeros((1, 2, 32, 32, 3)), cell=64).shape
        (96, 166, 3)
    """
    found = as_floats(images, "images")
    if found.ndim != 5 or found.shape[-1] not in (1, 3) or not all(found.shape):
        raise ValueError(f"images must have shape [r c h w 3] or [r c h w 1], got {list(found.shape)}")
    rows, columns, h, w = found.shape[:4]
    return Sheet(rows, columns, h, w, row_labels, column_labels, title, cell).draw(found)


def sheet_size(
    shape: Sequence[int], row_labels: Sequence[str] = (), *, column_labels: Sequence[str] = (), title: str = "",
    cell: int = 128,
) -> tuple[int, int]:  # fmt: skip
    """Returns the height and width of `grid`'s sheet for images of this shape [r c h w ...], without drawing it.

    Example:
        >>> sheet_size((1, 2, 32, 32, 3), cell=64)
        (96, 166)
    """
    rows, columns, h, w = shape[:4]
    return Sheet(rows, columns, h, w, row_labels, column_labels, title, cell).size


def strip(images: Pictures, labels: Sequence[str] = (), *, title: str = "", cell: int = 128) -> np.ndarray:
    """Draws a sheet of one row, a label above each picture; otherwise as `grid`.

    Args:
        images: [n h w 3 or 1] floats in [-1, 1], uint8, or a list of PIL pictures.
        labels: one for each picture, or none.
        title: above all.
        cell: as in `grid`.

    Returns:
        The sheet [h w 3], uint8.

    Example:
        >>> strip(np.zeros((3, 8, 8, 3)), ["t = 990", "t = 500", "t = 0"], cell=32).ndim
        3
    """
    return grid(as_floats(images, "images")[None], column_labels=labels, title=title, cell=cell)
