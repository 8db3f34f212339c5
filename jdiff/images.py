"""Pictures in and out of files, and sheets of many, by Pillow and imageio. An image is [h w c] in [-1, 1]."""

import json
import math
import os
import unicodedata
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps
from PIL.PngImagePlugin import PngInfo

KEY = "jdiff"  # of the PNG text chunk that holds the settings
PAGE, INK, LINE = (255, 255, 255), (40, 40, 40), (208, 208, 208)  # paper, letters, the hairline round a picture
LARGEST = 100  # megapixels that are read
SMALLEST_FONT = 11  # pixels; below, letters run into each other

# Largest absolute value of a picture in [-1, 1]: samples that are not clipped yet exceed 1 a little.
RANGE = 2.0


def to_uint8(images: Any) -> np.ndarray:
    """uint8 of the same shape, -1 to 0 and 1 to 255, rounded; values outside [-1, 1] are clipped.

    Raises ValueError where a value is not finite.

    >>> to_uint8([-1.0, 0.0, 1.0, 7.0]).tolist()
    [0, 128, 255, 255]
    """
    images = np.asarray(images, np.float32)
    if not np.isfinite(images).all():
        raise ValueError(f"images have {np.sum(~np.isfinite(images))} values that are not finite, accepted is [-1, 1]")
    return np.round((np.clip(images, -1, 1) + 1) * 127.5).astype(np.uint8)


def as_picture(value: Any, name: str = "image") -> Any:
    """Returns a picture, or an array of pictures, as floats in [-1, 1].

    Args:
        value: floats in [-1, 1], uint8, or a PIL picture; of any type, since refusing the others is the purpose.
        name: what errors call it.

    Raises:
        ValueError: the values are not finite, or out of range.

    Example:
        >>> as_picture(np.array([[[0, 255, 0]]], np.uint8)).tolist()
        [[[-1.0, 1.0, -1.0]]]
    """
    import jax.numpy as jnp

    if isinstance(value, Image.Image):
        value = np.asarray(value.convert("RGB"))
    kind = getattr(value, "dtype", None)
    if kind == np.uint8:
        return jnp.asarray(value, jnp.float32) / 127.5 - 1
    found = jnp.asarray(value)
    if not jnp.issubdtype(found.dtype, jnp.floating):
        raise ValueError(f"{name} must be floats in [-1, 1], uint8 or a PIL picture, got {found.dtype}")
    least, most = (float(f(found)) for f in (jnp.min, jnp.max))
    if not -RANGE <= least <= most <= RANGE:  # NaN too
        raise ValueError(f"{name} must have finite values in [-1, 1], got {least:.4g} to {most:.4g}")
    return found.astype(jnp.promote_types(found.dtype, jnp.float32))


def as_mask(value: Any, name: str = "mask") -> Any:
    """Returns a mask as floats in [0, 1]: 0 is kept, 1 is made new.

    Args:
        value: bool, uint8 of 0 and 255 (or 0 and 1), or floats in [0, 1].
        name: what errors call it.

    Raises:
        ValueError: the values are out of range.

    Example:
        >>> as_mask(np.array([[0, 255]], np.uint8)).tolist()
        [[0.0, 1.0]]
    """
    found = np.asarray(value)
    if found.dtype == np.uint8 and found.max(initial=0) > 1:
        found = found / np.float32(255)
    found = found.astype(np.float32)
    if not ((found >= 0) & (found <= 1)).all():
        raise ValueError(f"{name} must have values from 0 (kept) to 1 (made new), got {found.min()} to {found.max()}")
    return found


def load(path: str | Path) -> np.ndarray:
    """Image [h w 3] float32 in [-1, 1] of a file, turned as its EXIF says, what is transparent white.

    Grey of 16 bits keeps them. Raises ValueError where the file is missing, no picture, or of more than 100 megapixels.
    """
    with _opened(path) as image:
        image = ImageOps.exif_transpose(image)
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, (*PAGE, 255)), image)
        if image.mode.startswith("I"):  # Pillow would cut all above 255
            pixels = np.array(image, np.float32).clip(0, 65535)[..., None].repeat(3, axis=2)
            half = np.float32(32767.5)
        else:
            pixels, half = np.array(image.convert("RGB"), np.float32), np.float32(127.5)
        pixels /= half
        pixels -= 1
        return pixels


def square(image: np.ndarray, side: int, resampling: Image.Resampling = Image.Resampling.BILINEAR) -> np.ndarray:
    """Image [side side c] float32: of `image` [h w c], its shorter side resized to `side`, the middle.

    >>> square(np.ones((200, 100, 3)), 64).shape
    (64, 64, 3)

    Source: course 1.7, by torchvision's resize and center_crop.
    """
    image = np.asarray(image, np.float32)
    box = []  # left, top, right, bottom of the square, in pixels of the image
    for length in (image.shape[1], image.shape[0]):
        resized = side * length // min(image.shape[:2])
        first = round((resized - side) / 2)
        box.append((first * length / resized, (first + side) * length / resized))
    (left, right), (top, bottom) = box
    planes = [Image.fromarray(image[..., k]) for k in range(image.shape[2])]
    cut = [plane.resize((side, side), resampling, box=(left, top, right, bottom)) for plane in planes]
    return np.stack([np.asarray(plane) for plane in cut], axis=-1)


def save(path: str | Path, image: Any, settings: dict[str, Any] | None = None) -> None:
    """Nothing; writes `image` ([h w 3] or [h w 1], uint8 or floats in [-1, 1]) as PNG with `settings` in it as JSON.

    The file appears only when it is complete. Raises ValueError where the image is not finite.
    """
    info = PngInfo()
    if settings is not None:
        info.add_itxt(KEY, json.dumps(settings, ensure_ascii=False, allow_nan=False))
    picture = _picture(image)
    with beside(path) as file:
        picture.save(file, "PNG", pnginfo=info)


def read_settings(path: str | Path) -> dict[str, Any]:
    """The settings that `save` wrote into a PNG; raises ValueError where there are none."""
    with _opened(path) as image:
        image.load()  # a text chunk may lie behind the pixels
        text = getattr(image, "text", {}).get(KEY)
    if text is None:
        raise ValueError(f"{path} has no settings of jdiff in it, accepted is a PNG that jdiff wrote")
    try:
        settings = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{path} has settings that are no JSON: {error}") from error
    if not isinstance(settings, dict):
        raise ValueError(f"{path} has settings that are a {type(settings).__name__}, accepted is a JSON object")
    return settings


def grid(
    images: Any, row_labels: Sequence[str] = (), *, column_labels: Sequence[str] = (), title: str = "", cell: int = 128
) -> np.ndarray:
    """Contact sheet [h w 3] uint8 of images [r c h w 3 or 1] in [-1, 1], on white, with labels.

    Small images are enlarged, each pixel to the same whole number of pixels, until they are at least `cell` wide or
    high. A cell that is all NaN stays empty. Labels are wrapped, and made smaller where they still do not fit.

    >>> grid(np.zeros((1, 2, 32, 32, 3)), cell=64).shape
    (96, 166, 3)
    """
    images = np.asarray(images, np.float32)
    if images.ndim != 5 or images.shape[-1] not in (1, 3):
        raise ValueError(f"images have shape {images.shape}, accepted is [r c h w 3] or [r c h w 1]")
    rows, columns, height, width = images.shape[:4]
    for name, labels, count in (("row_labels", row_labels, rows), ("column_labels", column_labels, columns)):
        if len(labels) not in (0, count):
            raise ValueError(f"{name} has {len(labels)} entries, accepted is none or {count}")
    zoom = max(1, math.ceil(cell / max(height, width)))
    height, width = zoom * height, zoom * width
    size = max(14, round(min(height, width) / 9))  # of the letters
    margin, gap = max(16, size), max(6, size // 3)
    inner = columns * width + (columns - 1) * gap
    left = _Text(row_labels, size, width=max(width, 8 * size), height=height)
    top = _Text(column_labels, size, width=width, height=4 * size)
    x0 = margin + (left.width + margin if left.width else 0)
    head = _Text([title] if title else [], size, width=x0 - margin + inner, height=6 * size)
    y_top = margin + (head.height + margin * 3 // 4 if head.height else 0)
    y0 = y_top + (top.height + gap if top.height else 0)
    page = Image.new("RGB", (x0 + inner + margin, y0 + rows * height + (rows - 1) * gap + margin), PAGE)
    draw = ImageDraw.Draw(page)
    head.draw(draw, 0, x0 if not left.width else margin, margin, anchor="la")
    for i in range(rows):
        y = y0 + i * (height + gap)
        left.draw(draw, i, x0 - margin, y + height // 2, anchor="rm")
        for j in range(columns):
            x = x0 + j * (width + gap)
            if i == 0:
                top.draw(draw, j, x + width // 2, y0 - gap, anchor="md")
            if not np.isnan(images[i, j]).all():
                draw.rectangle((x - 1, y - 1, x + width, y + height), outline=LINE)
                page.paste(_picture(images[i, j]).resize((width, height), Image.Resampling.NEAREST), (x, y))
    return np.asarray(page)


def strip(images: Any, labels: Sequence[str] = (), *, title: str = "", cell: int = 128) -> np.ndarray:
    """Sheet [h w 3] uint8 of images [n h w 3] in one row, a label above each; otherwise like `grid`.

    >>> strip(np.zeros((3, 8, 8, 3)), ["t = 990", "t = 500", "t = 0"], cell=32).ndim
    3
    """
    return grid(np.asarray(images)[None], column_labels=labels, title=title, cell=cell)


def save_gif(path: str | Path, frames: Any, seconds: float = 3.0, hold: float = 2.0) -> None:
    """Nothing; writes frames [m h w 3] (uint8 or floats in [-1, 1]) as a GIF of `seconds` that repeats.

    The last frame stays `hold` seconds longer. Frames that equal the one before are merged with it. The file appears
    only when it is complete. Raises ValueError where there is no frame, or a frame is not finite.
    """
    frames, seconds = _frames(frames, seconds, hold)
    pictures = [_picture(frame).convert("RGB").quantize(256) for frame in frames]
    each = max(20, round(1000 * seconds / len(frames)))  # milliseconds; browsers slow down what is below 20
    times = [each] * (len(frames) - 1) + [each + round(1000 * hold)]
    times = times[0] if len(times) == 1 else times
    with beside(path) as file:
        pictures[0].save(file, "GIF", save_all=True, append_images=pictures[1:], duration=times, loop=0)


def save_mp4(path: str | Path, frames: Any, seconds: float = 3.0, hold: float = 2.0) -> None:
    """Nothing; writes frames as `save_gif` does, as an MP4 (H.264) that every browser plays; needs the extra `video`.

    An odd row or column is filled up with white: the format has colour for every second pixel. Raises ValueError too
    where the extra is not installed.
    """
    if not has_video():
        raise ValueError("an MP4 needs imageio and its ffmpeg: pip install 'jdiff[video]'")
    import imageio.v3 as imageio

    frames, seconds = _frames(frames, seconds, hold)
    shown = np.stack([np.asarray(_picture(frame).convert("RGB")) for frame in frames])
    rate = len(shown) / seconds
    shown = np.concatenate([shown, np.repeat(shown[-1:], round(hold * rate), axis=0)])
    height, width = shown.shape[1:3]
    shown = np.pad(shown, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), constant_values=255)
    how = {"codec": "libx264", "fps": rate, "macro_block_size": 2, "extension": ".mp4", "plugin": "FFMPEG"}
    with warnings.catch_warnings():  # JAX warns of forks, but this one becomes ffmpeg at once
        warnings.filterwarnings("ignore", "os.fork", RuntimeWarning)
        data = imageio.imwrite("<bytes>", shown, **how)
    with beside(path) as file:
        file.write(data)


def has_video() -> bool:
    """Whether what `save_mp4` needs is installed."""
    return all(find_spec(name) for name in ("imageio", "imageio_ffmpeg"))


def _frames(frames: Any, seconds: float, hold: float) -> tuple[np.ndarray, float]:
    """(frames, seconds), checked."""
    frames = np.asarray(frames)
    if frames.ndim != 4 or not len(frames):
        raise ValueError(f"frames have shape {frames.shape}, accepted is [m h w 3] with at least one frame")
    if not (seconds > 0 and hold >= 0):
        raise ValueError(f"seconds is {seconds} and hold {hold}, accepted are more than 0 and at least 0")
    return frames, seconds


@contextmanager
def beside(path: str | Path) -> Iterator[IO[bytes]]:
    """A binary file that becomes `path` when the block ends well; otherwise `path` stays as it was."""
    path = Path(path)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(part, "wb") as file:
            yield file
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def _opened(path: str | Path) -> Iterator[Image.Image]:
    large = f"{path}: the picture is larger than {LARGEST} megapixels, accepted is up to that"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(path)
    except Image.DecompressionBombError as error:
        raise ValueError(large) from error
    except (OSError, ValueError) as error:
        missing = "there is no such file" if not Path(path).exists() else "it is no picture that can be read"
        raise ValueError(f"{path}: {missing}, accepted is the path of a picture") from error
    with image:
        if math.prod(image.size) > LARGEST * 10**6:
            raise ValueError(large)
        try:
            yield image
        except (OSError, SyntaxError) as error:
            raise ValueError(f"{path}: the picture is damaged ({error})") from error


def _picture(image: Any) -> Image.Image:
    """Image [h w 3] or [h w 1], uint8 or floats in [-1, 1], as Pillow has it."""
    image = np.asarray(image)
    if image.ndim != 3 or image.shape[-1] not in (1, 3):
        raise ValueError(f"image has shape {image.shape}, accepted is [h w 3] or [h w 1]")
    image = image if image.dtype == np.uint8 else to_uint8(image)
    return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)


class _Text:
    """Labels wrapped to a width, in the largest font that keeps each of them within width and height."""

    def __init__(self, labels: Sequence[str], size: int, *, width: int, height: int):
        self.blocks, self.width, self.height = [], 0, 0
        for pixels in range(size, SMALLEST_FONT - 1, -1):
            self.font = ImageFont.load_default(pixels)
            lines = [_wrap(label, self.font, width) for label in labels]
            self.line = math.ceil(1.3 * pixels)
            if all(len(block) * self.line <= height for block in lines):
                break
        if labels:
            most = max(1, height // self.line)
            cut = [_cut(block, most, self.font, width) for block in lines]
            self.blocks = cut
            self.height = self.line * max(len(block) for block in cut)
            self.width = math.ceil(max((self.font.getlength(line) for block in cut for line in block), default=0))

    def draw(self, draw: ImageDraw.ImageDraw, i: int, x: int, y: int, anchor: str) -> None:
        """Label i at (x, y): anchor's letters are Pillow's (l, m, r across; a, m, d for top, middle, bottom)."""
        if i >= len(self.blocks):
            return
        block = self.blocks[i]
        y -= {"a": 0, "m": len(block) * self.line // 2, "d": len(block) * self.line}[anchor[1]]
        for k, line in enumerate(block):
            draw.text((x, y + (k + 0.5) * self.line), line, INK, self.font, anchor=anchor[0] + "m")


def _wrap(label: str, font: Any, width: int) -> list[str]:
    """`label` in lines of at most `width` pixels, broken at spaces, and within words that are too long alone."""
    plain = "".join(
        c for c in unicodedata.normalize("NFKD", label) if not unicodedata.combining(c)
    )  # the font is ASCII
    lines, line = [], ""
    for word in plain.split():
        if not line or font.getlength(f"{line} {word}") > width:
            if line:
                lines.append(line)
            while len(word) > 1 and font.getlength(word) > width:
                fits = next(k for k in range(len(word) - 1, 0, -1) if k == 1 or font.getlength(word[:k]) <= width)
                lines.append(word[:fits])
                word = word[fits:]
            line = word
        else:
            line = f"{line} {word}"
    return [*lines, line]


def _cut(lines: list[str], most: int, font: Any, width: int) -> list[str]:
    """At most `most` of the lines; where some are left out, the last one says so."""
    if len(lines) <= most:
        return lines
    last = lines[most - 1]
    while last and font.getlength(last + " ...") > width:
        last = last[:-1]
    return [*lines[: most - 1], last + " ..."]
