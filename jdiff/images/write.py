"""Pictures and animations into files, each complete or not there."""

import io
import json
import math
import re
import subprocess
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from jdiff.images.read import KEY, Settings
from jdiff.images.values import Pictures, as_array, to_uint8
from jdiff.parts import beside, path_beside, running

# Largest width and height, in pixels, of each kind of file: H.264's and GIF's own limits, and a PNG that Pillow writes.
LIMITS = {".mp4": 16384, ".gif": 65535, ".png": 2**24}
# ffmpeg's quality of H.264: 18 looks as good as the original.
QUALITY = "18"
# Milliseconds of a GIF's frame: below the first browsers slow it down, and the second is the most it can be.
SHORTEST, LONGEST = 20, 655350


def save(path: str | Path, image: Pictures, settings: Settings | None = None) -> None:
    """Writes a picture as PNG, with settings in it as JSON. The file appears only when it is complete.

    Args:
        path: of the file.
        image: [h w 3] or [h w 1] floats in [-1, 1], uint8, or a PIL picture.
        settings: what `read_settings` is to return.

    Raises:
        ValueError: the image is not finite or no picture, or the settings are no JSON.
        OSError: the file cannot be written.
    """
    data = png(image, settings)
    with beside(path) as file:
        file.write(data)


def png(image: Pictures, settings: Settings | None = None) -> bytes:
    """Returns a picture as the bytes of a PNG file; otherwise as `save`.

    Example:
        >>> png(np.zeros((2, 2, 3)))[:4]
        b'\\x89PNG'
    """
    info = PngInfo()
    if settings is not None:
        try:
            info.add_itxt(KEY, json.dumps(settings, ensure_ascii=False, allow_nan=False))
        except (TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"settings must be JSON in Unicode: {error}") from error
    file = io.BytesIO()
    as_pil(image).save(file, "PNG", pnginfo=info)
    return file.getvalue()


def save_gif(path: str | Path, frames: Pictures, seconds: float = 3.0, hold: float = 2.0) -> None:
    """Writes an animation as a GIF that repeats. The file appears only when it is complete.

    Args:
        path: of the file.
        frames: [m h w 3] floats in [-1, 1], uint8, or a list of PIL pictures. Frames that equal the one before are
            merged with it.
        seconds: how long it lasts.
        hold: how much longer the last frame stays.

    Raises:
        ValueError: there is no frame, a frame is not finite, a side is longer than 65,535 pixels, or a frame stays
            longer than 655 seconds.
        OSError: the file cannot be written.
    """
    shown, seconds = _frames(frames, seconds, hold, ".gif")
    pictures = [as_pil(frame).convert("RGB").quantize(256) for frame in shown]
    each = max(SHORTEST, round(1000 * seconds / len(shown)))
    times = [each] * (len(shown) - 1) + [each + round(1000 * hold)]
    if times[-1] > LONGEST:
        raise ValueError(
            f"seconds and hold must give a GIF frames of at most {LONGEST / 1000:.0f} s, got {times[-1] / 1000:.0f} s"
        )
    durations = times[0] if len(times) == 1 else times
    with beside(path) as file:
        pictures[0].save(file, "GIF", save_all=True, append_images=pictures[1:], duration=durations, loop=0)


def save_mp4(path: str | Path, frames: Pictures, seconds: float = 3.0, hold: float = 2.0) -> None:
    """Writes frames as `save_gif` does, as an MP4 (H.264) that every browser plays; needs the extra `video`.

    An odd row or column is filled up with white, since the format has colour for every second pixel. The file is
    decoded once before it gets its name.

    Args:
        path: of the file.
        frames: as in `save_gif`.
        seconds: as in `save_gif`.
        hold: as in `save_gif`.

    Raises:
        ValueError: as `save_gif`, with 16,384 pixels a side, or the extra is not installed.
        OSError: the file cannot be written, or ffmpeg failed.
    """
    if not has_video():
        raise ValueError("an MP4 needs imageio and its ffmpeg: pip install 'imageio[ffmpeg]'")
    import imageio_ffmpeg

    given, seconds = _frames(frames, seconds, hold, ".mp4")
    shown = given if given.dtype == np.uint8 else np.stack([to_uint8(frame) for frame in given])
    shown = np.broadcast_to(shown, (*shown.shape[:3], 3))
    rate = len(shown) / seconds
    shown = np.concatenate([shown, np.repeat(shown[-1:], round(hold * rate), axis=0)])
    height, width = shown.shape[1:3]
    shown = np.pad(shown, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), constant_values=255)
    size = f"{shown.shape[2]}x{shown.shape[1]}"
    try:
        program = imageio_ffmpeg.get_ffmpeg_exe()
    except RuntimeError as error:
        raise ValueError(f"an MP4 needs ffmpeg, which imageio does not find: {error}") from error
    ffmpeg = [program, "-nostdin", "-hide_banner", "-loglevel", "error"]
    raw = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", size, "-framerate", f"{rate:.6f}", "-i", "pipe:0"]
    h264 = ["-c:v", "libx264", "-crf", QUALITY, "-pix_fmt", "yuv420p", "-movflags", "+faststart", "-f", "mp4", "-y"]
    with path_beside(path) as part:
        _run([*ffmpeg[:1], *ffmpeg[2:], *raw, *h264, str(part)], shown, path)
        told = _run([*ffmpeg, "-xerror", "-progress", "pipe:1", "-i", str(part), "-f", "null", "-"], None, path)
        counts = re.findall(r"^frame=\s*(\d+)", told, re.MULTILINE)
        if not counts or int(counts[-1]) != len(shown):
            raise OSError(f"{path}: ffmpeg wrote {counts[-1] if counts else 'no'} of {len(shown)} frames")


def has_video() -> bool:
    """Returns whether what `save_mp4` needs is installed."""
    return all(find_spec(name) for name in ("imageio", "imageio_ffmpeg"))


def check_size(path: str | Path, height: int, width: int) -> None:
    """Checks that a file of this kind can have this size.

    Raises:
        ValueError: a side is too long.

    Example:
        >>> check_size("way.mp4", 64, 20000)
        Traceback (most recent call last):
        ...
        ValueError: way.mp4: an .mp4 has at most 16384 pixels a side, got 20000 x 64; draw fewer pictures
    """
    suffix = Path(path).suffix.lower()
    most = LIMITS.get(suffix)
    if most is not None and max(height, width) > most:
        article = "an" if suffix == ".mp4" else "a"
        raise ValueError(
            f"{path}: {article} {suffix} has at most {most} pixels a side, got {width} x {height}; draw fewer pictures"
        )


def as_pil(image: Pictures) -> Image.Image:
    """Returns a picture [h w 3] or [h w 1], floats in [-1, 1] or uint8, as Pillow has it."""
    found = as_array(image)
    if found.ndim != 3 or found.shape[-1] not in (1, 3) or not all(found.shape):
        raise ValueError(f"image must have shape [h w 3] or [h w 1], got {list(found.shape)}")
    found = to_uint8(found)
    return Image.fromarray(found[..., 0] if found.shape[-1] == 1 else found)


def _frames(frames: Pictures, seconds: float, hold: float, suffix: str) -> tuple[np.ndarray, float]:
    """(frames, seconds), checked."""
    found = as_array(frames, "frames")
    if found.ndim != 4 or not all(found.shape) or found.shape[-1] not in (1, 3):
        raise ValueError(f"frames must have shape [m h w 3] with at least one frame, got {list(found.shape)}")
    if not (0 < seconds < math.inf and 0 <= hold < math.inf):
        raise ValueError(f"seconds must be more than 0 and hold at least 0, got {seconds} and {hold}")
    check_size(f"frames for a file{suffix}", *found.shape[1:3])
    return found, seconds


def _run(command: list[str], frames: np.ndarray | None, path: str | Path) -> str:
    """What a process prints; raises OSError, with its last line, unless it ends well."""
    source = subprocess.DEVNULL if frames is None else subprocess.PIPE
    with running(command, stdin=source) as process:
        out, err = process.communicate(None if frames is None else np.ascontiguousarray(frames).tobytes())
    lines = err.decode(errors="replace").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")
    if process.returncode != 0:
        raise OSError(f"{path}: ffmpeg failed with status {process.returncode} ({last})")
    return out.decode(errors="replace")
