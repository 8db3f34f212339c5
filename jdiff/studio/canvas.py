"""The square canvas: drawn on, filled from files, and read at the network's size."""

from collections.abc import Callable
from typing import Any

import gradio as gr  # pyright: ignore[reportMissingImports]  # of the extra `studio`
import numpy as np
from PIL import Image

from jdiff import images
from jdiff.cli.errors import one_line
from jdiff.studio import show, tasks
from jdiff.studio.flow import Studio

# Pixels of the canvas that is drawn on.
CANVAS = 384
# Pixels of a brush on the canvas, its colours, and the colour of a mask.
THICK = 34
COLOURS: list[str | tuple[str, float]] = [
    "#ff0000",
    "#00ff00",
    "#0000ff",
    "#ffff00",
    "#00ffff",
    "#ff00ff",
    "#ff8000",
    "#ffffff",
    "#000000",
]
MASK = "#ff3df2"


def canvas(brush: gr.Brush, label: str) -> gr.ImageEditor:
    """Draws the square canvas."""
    return gr.ImageEditor(
        blank(), label=label, type="numpy", image_mode="RGBA", sources=(), transforms=(),
        canvas_size=(CANVAS, CANVAS), fixed_canvas=True, layers=False, brush=brush, eraser=gr.Eraser(THICK),
        buttons=[], height=CANVAS + 120, format="png", elem_classes="jd-canvas",
    )  # fmt: skip


def blank() -> Any:  # a value that Gradio types for itself
    """Returns a black canvas."""
    return background(-np.ones((1, 1, 3), np.float32))


def background(image: np.ndarray) -> dict[str, Any]:
    """Returns the value of a canvas that shows a picture [h w 3] in [-1, 1], each pixel as a square."""
    places = np.arange(CANVAS) * len(image) // CANVAS
    pixels = images.to_uint8(np.broadcast_to(image, (*image.shape[:2], 3)))[places][:, places]
    return {"background": pixels, "layers": [], "composite": pixels}


def flat(value: Any, side: int) -> np.ndarray | None:
    """Returns what a canvas shows at the network's size, [side side 3] in [-1, 1]; None for an empty one."""
    value = value or {}
    pixels = value.get("background") if value.get("composite") is None else value["composite"]
    if pixels is None:
        return None
    if pixels.shape[-1] == 3:  # without transparency
        return images.square(pixels, side)
    alpha = pixels[..., 3:] / np.float32(255)
    return images.square(pixels[..., :3] / np.float32(127.5) * alpha - alpha + (1 - alpha) * -1, side)


def painted(value: Any, side: int) -> tuple[np.ndarray | None, np.ndarray]:
    """Returns the picture under the strokes [side side 3], and where the strokes are [side side]."""
    base = None if value is None else value.get("background")
    image = flat({"background": base}, side)
    mask = np.zeros((side, side), np.float32)
    for layer in (value or {}).get("layers") or []:
        covered = images.square((layer[..., 3:] > 0).astype(np.float32), side, Image.Resampling.BOX)[..., 0]
        mask = np.maximum(mask, (covered > 0.5).astype(np.float32))
    return image, mask


def sources(studio: Studio, editor: gr.ImageEditor, last: gr.State) -> None:
    """Draws the buttons that put a picture on a canvas."""
    with gr.Row(elem_classes="jd-tight"):
        file = gr.UploadButton("Open", file_types=["image"], type="filepath", size="sm", min_width=70)
        camera = gr.Button("Camera", size="sm", min_width=70)
        drawn = gr.Button("Latest", size="sm", min_width=70)
        example = gr.Button("Example", size="sm", min_width=70)
        clear = gr.Button("Clear", size="sm", min_width=60)

    # a camera and the clipboard: the canvas itself offers them only once its picture is cleared away
    taker = gr.Image(
        sources=["webcam", "clipboard"], type="filepath", format="png", label="Camera, or the clipboard", buttons=[],
        visible=False, elem_classes="jd-camera",
    )  # fmt: skip
    told = gr.HTML("", elem_classes="jd-told")

    def opened(path: str | None) -> tuple[Any, str]:
        if path is None:
            return gr.skip(), ""
        try:
            data = images.read_bytes(path)
            return background(tasks.uploaded(data, "the picture", CANVAS)), ""
        except ValueError as error:
            return gr.skip(), show.trouble(one_line(error).replace(path, "the picture"))

    def taken(image: np.ndarray | None) -> tuple[Any, str]:
        if image is None:
            return gr.skip(), show.trouble("nothing is drawn yet; draw a picture in another tab first")
        return background(image), ""

    how: dict[str, Any] = {"show_progress": "hidden", "queue": False, "api_visibility": "private"}
    file.upload(opened, file, [editor, told], **how)
    shown = gr.State(False)
    camera.click(lambda on: (not on, gr.Image(None, visible=not on)), shown, [shown, taker], **how)
    taken_now = taker.input(opened, taker, [editor, told], **how)
    taken_now.then(lambda: (False, gr.Image(None, visible=False)), None, [shown, taker], **how)
    drawn.click(taken, last, [editor, told], **how)
    example.click(lambda: (background(studio.example), ""), None, [editor, told], **how)
    clear.click(lambda: (blank(), ""), None, [editor, told], **how)


def watched(editor: gr.ImageEditor, look: Callable[[Any], str], place: gr.HTML) -> None:
    """Shows in a place what `look` makes of a canvas, whenever it changes."""
    how: dict[str, Any] = {"show_progress": "hidden", "trigger_mode": "always_last", "api_visibility": "private"}
    gr.on([editor.input, editor.change], look, editor, place, concurrency_limit=4, **how)
