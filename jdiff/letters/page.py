"""Ambigrams as pictures: a strip of letters, a page with both readings, an animation, and an outline (SVG)."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageFont

from jdiff import images
from jdiff.letters.ambigrams import Ambigram
from jdiff.letters.spelling import TURNS

HEIGHT = 256  # of a strip, in pixels
GAP, MARGIN = 0.07, 0.15  # space between letters and around the strip, as parts of the height
EDGE = 3.0  # contrast of the edges of an enlarged glyph
FRAMES = 48  # of an animation

Colour = tuple[int, int, int]


def colour(name: str, flag: str) -> Colour:
    """Reads a colour.

    Args:
        name: a name such as "navy", or "#rrggbb".
        flag: what the error calls it.

    Returns:
        Red, green and blue, 0 to 255.

    Raises:
        ValueError: there is no such colour.

    Example:
        >>> colour("navy", "--ink")
        (0, 0, 128)
    """
    try:
        found = ImageColor.getrgb(name)
        if len(found) != 3 or max(found) > 255:  # a transparent colour, or one such as rgb(300, 0, 0)
            raise ValueError
        return found
    except ValueError:
        raise ValueError(f'{flag} must be a colour such as "navy" or "#1a2b3c", got {name!r}') from None


def enlarge(glyph: np.ndarray, side: int = HEIGHT) -> np.ndarray:
    """Enlarges a glyph with sharp edges.

    Args:
        glyph: [h w 1] in [-1, 1].
        side: the new height and width.

    Returns:
        Ink [side side] in [0, 1].
    """
    ink = np.clip((np.asarray(glyph, np.float32)[..., 0] + 1) / 2, 0, 1)
    large = np.asarray(Image.fromarray(ink).resize((side, side), Image.Resampling.BICUBIC))
    return np.clip((large - 0.5) * EDGE + 0.5, 0, 1)


def strip(glyphs: np.ndarray, height: int = HEIGHT) -> tuple[np.ndarray, list[int]]:
    """Sets glyphs side by side with even spacing.

    Args:
        glyphs: [n h w 1] in [-1, 1], with ink at 1.
        height: of the strip.

    Returns:
        Ink [h w] in [0, 1], and the middle of each letter in pixels from the left.
    """
    gap, margin = round(GAP * height), round(MARGIN * height)
    parts, middles, x = [np.zeros((height, margin))], [], margin
    for i, glyph in enumerate(glyphs):
        ink = enlarge(glyph, height)
        columns = np.flatnonzero(ink.max(axis=0) > 0.5)
        ink = ink[:, columns[0] : columns[-1] + 1] if columns.size else ink[:, : height // 4]
        if i:
            parts.append(np.zeros((height, gap)))
            x += gap
        parts.append(ink)
        middles.append(x + ink.shape[1] // 2)
        x += ink.shape[1]
    return np.concatenate([*parts, np.zeros((height, margin))], axis=1), middles


def painted(ink: np.ndarray, paper: Colour, colour: Colour) -> np.ndarray:
    """Paints ink [h w] in [0, 1] in a colour on paper: [h w 3] uint8."""
    share = ink[..., None]
    return np.rint(share * np.array(colour) + (1 - share) * np.array(paper)).astype(np.uint8)


def turned(ink: np.ndarray, view: str) -> np.ndarray:
    """Returns a strip [h w] under a view: "rotate_180", "flip" or "mirror"."""
    return {"rotate_180": ink[::-1, ::-1], "flip": ink[::-1], "mirror": ink[:, ::-1]}[view]


def page(made: Ambigram, paper: Colour = (255, 255, 255), ink: Colour = (0, 0, 0)) -> np.ndarray:
    """Draws an ambigram upright and turned, with the score of each letter and the verdict.

    Args:
        made: the ambigram.
        paper: colour of the paper.
        ink: colour of the letters.

    Returns:
        A picture [h w 3] uint8.
    """
    flat, middles = strip(made.glyphs)
    size = HEIGHT // 8
    font, small = ImageFont.load_default(size), ImageFont.load_default(round(0.7 * size))
    heading = f"{made.word} / {made.turned}: {made.verdict}"
    width = max(flat.shape[1], round(font.getlength(heading)) + 2 * size)
    left = (width - flat.shape[1]) // 2
    row = HEIGHT + 2 * size
    sheet = Image.new("RGB", (width, 2 * size + 2 * row), paper)
    draw = ImageDraw.Draw(sheet)
    draw.text((width // 2, size), heading, ink, font, anchor="mm")
    order = slice(None, None, -1) if TURNS[made.view] else slice(None)
    turned_middles = [flat.shape[1] - 1 - x for x in middles[::-1]] if TURNS[made.view] else middles
    rows = (
        (flat, middles, made.scores[:, 0]),
        (turned(flat, made.view), turned_middles, made.scores[order, 1]),
    )
    for i, (shown, at, scores) in enumerate(rows):
        y = 2 * size + i * row
        sheet.paste(Image.fromarray(painted(shown, paper, ink)), (left, y))
        for x, score in zip(at, scores, strict=True):
            draw.text((left + x, y + HEIGHT + size // 2), f"{score:.0%}", ink, small, anchor="mm")
    return np.asarray(sheet)


def frames(
    made: Ambigram, paper: Colour = (255, 255, 255), ink: Colour = (0, 0, 0), count: int = FRAMES
) -> list[np.ndarray]:
    """Draws an animation in which the strip turns from upright to turned.

    Args:
        made: the ambigram.
        paper: colour of the paper.
        ink: colour of the letters.
        count: number of frames.

    Returns:
        Pictures [h w 3] uint8 of one size.
    """
    flat, _ = strip(made.glyphs, HEIGHT // 2)
    picture = Image.fromarray(np.rint(255 * flat).astype(np.uint8))
    h, w = flat.shape
    rotates = made.view == "rotate_180"
    side = (round(np.hypot(h, w)) if rotates else w, round(np.hypot(h, w)) if rotates else 2 * h)
    made_frames = []
    for share in (1 - np.cos(np.linspace(0, np.pi, count))) / 2:
        canvas = Image.new("L", side)
        if rotates:
            canvas.paste(picture, ((side[0] - w) // 2, (side[1] - h) // 2))
            canvas = canvas.rotate(-180 * share, Image.Resampling.BICUBIC)
        else:
            scale = np.cos(np.pi * share)
            look = Image.fromarray(np.rint(255 * (flat if scale > 0 else turned(flat, made.view))).astype(np.uint8))
            size = (w, max(1, round(h * abs(scale)))) if made.view == "flip" else (max(1, round(w * abs(scale))), h)
            look = look.resize(size, Image.Resampling.BICUBIC)
            canvas.paste(look, ((side[0] - size[0]) // 2, (side[1] - size[1]) // 2))
        made_frames.append(painted(np.asarray(canvas) / 255, paper, ink))
    return made_frames


def tracer() -> Callable[..., str]:
    """Returns vtracer's function that converts pixels to SVG.

    Raises:
        ValueError: vtracer is not installed.
    """
    try:
        import vtracer  # pyright: ignore[reportMissingImports]  # of the extra `svg`
    except ImportError:
        raise ValueError("--svg needs vtracer, which is not installed: pip install vtracer") from None
    return vtracer.convert_pixels_to_svg


def save_svg(path: str | Path, made: Ambigram, paper: Colour = (255, 255, 255), ink: Colour = (0, 0, 0)) -> None:
    """Writes the upright strip as an SVG of outlines. It needs vtracer (the extra `svg`).

    Args:
        path: of the file.
        made: the ambigram.
        paper: colour of the paper.
        ink: colour of the letters.

    Raises:
        ValueError: vtracer is not installed.
    """
    trace = tracer()
    flat, _ = strip(made.glyphs, 2 * HEIGHT)
    black = Image.fromarray(painted(flat, (255, 255, 255), (0, 0, 0))).convert("RGBA")
    svg = trace(
        [tuple(pixel) for row in np.asarray(black) for pixel in row], size=black.size, colormode="binary", mode="spline"
    )
    fill, back = (f"#{r:02x}{g:02x}{b:02x}" for r, g, b in (ink, paper))
    svg = svg.replace("#000000", fill)
    start = svg.index(">", svg.index("<svg")) + 1
    text = f'{svg[:start]}<rect width="100%" height="100%" fill="{back}"/>{svg[start:]}'
    with images.beside(path) as file:
        file.write(text.encode())
