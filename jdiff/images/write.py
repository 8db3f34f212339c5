"""Pictures and animations into files, each complete or not there."""

import contextlib
import json
import math
import os
import re
import secrets
import stat
import subprocess
import threading
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from jdiff.images.read import KEY
from jdiff.images.values import as_array, to_uint8

# Largest width and height, in pixels, of each kind of file: H.264's and GIF's own limits, and a PNG that Pillow writes.
LIMITS = {".mp4": 16384, ".gif": 65535, ".png": 2**24}
# ffmpeg's quality of H.264: 18 looks as good as the original.
QUALITY = "18"
# Milliseconds of a GIF's frame: below the first browsers slow it down, and the second is the most it can be.
SHORTEST, LONGEST = 20, 655350
# Bytes of the longest file name, on every common file system.
LONGEST_NAME = 255

# What is being written: parts of files, and processes that write them. `discard_parts` takes it all away.
_parts: set[Path] = set()
_processes: set[subprocess.Popen] = set()
_lock = threading.RLock()


def save(path: str | Path, image: Any, settings: dict[str, Any] | None = None) -> None:
    """Writes a picture as PNG, with settings in it as JSON. The file appears only when it is complete.

    Args:
        path: of the file.
        image: [h w 3] or [h w 1] floats in [-1, 1], uint8, or a PIL picture.
        settings: what `read_settings` is to return.

    Raises:
        ValueError: the image is not finite or no picture, or the settings are no JSON.
        OSError: the file cannot be written.
    """
    info = PngInfo()
    if settings is not None:
        try:
            info.add_itxt(KEY, json.dumps(settings, ensure_ascii=False, allow_nan=False))
        except (TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"settings must be JSON in Unicode: {error}") from error
    picture = as_pil(image)
    with beside(path) as file:
        picture.save(file, "PNG", pnginfo=info)


def save_gif(path: str | Path, frames: Any, seconds: float = 3.0, hold: float = 2.0) -> None:
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


def save_mp4(path: str | Path, frames: Any, seconds: float = 3.0, hold: float = 2.0) -> None:
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
        raise ValueError("an MP4 needs imageio and its ffmpeg: pip install 'jdiff[video]'")
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
    with _part(path) as part:
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


def as_pil(image: Any) -> Image.Image:
    """Returns a picture [h w 3] or [h w 1], floats in [-1, 1] or uint8, as Pillow has it."""
    found = as_array(image)
    if found.ndim != 3 or found.shape[-1] not in (1, 3) or not all(found.shape):
        raise ValueError(f"image must have shape [h w 3] or [h w 1], got {list(found.shape)}")
    found = to_uint8(found)
    return Image.fromarray(found[..., 0] if found.shape[-1] == 1 else found)


def _frames(frames: Any, seconds: float, hold: float, suffix: str) -> tuple[np.ndarray, float]:
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
    with _lock:
        # a group of its own: Ctrl-C in a terminal is for us, and we end it
        process = subprocess.Popen(
            command, stdin=source, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=os.name == "posix"
        )
        _processes.add(process)
    try:
        out, err = process.communicate(None if frames is None else np.ascontiguousarray(frames).tobytes())
    finally:
        process.kill()
        process.wait()
        _processes.discard(process)
    lines = err.decode(errors="replace").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")
    if process.returncode != 0:
        raise OSError(f"{path}: ffmpeg failed with status {process.returncode} ({last})")
    return out.decode(errors="replace")


@contextlib.contextmanager
def beside(path: str | Path) -> Iterator[IO[bytes]]:
    """Opens a binary file that becomes `path` when the block ends well; otherwise `path` stays as it was.

    Links are followed, and a file that is replaced keeps its mode.

    Args:
        path: of the file.

    Yields:
        The open file.

    Raises:
        OSError: the file cannot be written; see `check_writable`.
    """
    with _part(path) as part:
        with _lock:  # not after `discard_parts`
            file = open(part, "xb")
        with file:
            yield file


def check_writable(path: str | Path) -> None:
    """Checks that a file can be written, before the work whose result goes there. A link stands for its target.

    Raises:
        OSError: the name is too long, the folder does not exist or cannot be written to, or what is there is a
            folder, no regular file, or read-only.

    Example:
        >>> check_writable("no-such-folder/a.png")
        Traceback (most recent call last):
        ...
        FileNotFoundError: no-such-folder/a.png: there is no folder no-such-folder
    """
    _mode_of(path, _target(path))


def _target(path: str | Path) -> Path:
    """The file that `path` stands for: a link's target."""
    if os.path.islink(path):
        with contextlib.suppress(FileNotFoundError):  # the target is not there yet
            os.stat(path)  # a loop of links raises
    return Path(os.path.realpath(path))


def _mode_of(path: str | Path, target: Path) -> int | None:
    """The mode of the file that will be replaced, None where there is none; raises OSError if it must not be."""
    size = len(os.fsencode(target.name))
    if size > LONGEST_NAME:
        raise OSError(f"{path}: the file name has {size} bytes; give one of at most {LONGEST_NAME}")
    folder = target.parent if os.path.islink(path) else Path(path).parent
    if not target.parent.is_dir():
        raise FileNotFoundError(f"{path}: there is no folder {folder}")
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise PermissionError(f"{path}: no permission to write to the folder {folder}")
    try:
        mode = target.stat().st_mode
    except FileNotFoundError:
        return None
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(f"{path}: this is a folder; give the name of a file")
    if not stat.S_ISREG(mode):
        raise OSError(f"{path}: this is no regular file, and it is not replaced")
    if not mode & 0o222 or not os.access(target, os.W_OK):
        raise PermissionError(f"{path}: the file is read-only; give another name, or allow writing")
    return stat.S_IMODE(mode)


@contextlib.contextmanager
def _part(path: str | Path) -> Iterator[Path]:
    """A path beside the file that `path` stands for, to which it is renamed when the block ends well."""
    target = _target(path)
    mode = _mode_of(path, target)
    part = target.with_name(f".jdiff-{secrets.token_hex(8)}.part")  # short, whatever the name
    with _lock:
        _parts.add(part)
    try:
        yield part
        if mode is not None:
            with contextlib.suppress(OSError):
                os.chmod(part, mode)
        os.replace(part, target)
    except OSError as error:
        if error.errno is not None and error.filename in (None, str(part)):  # named by what the user asked for
            raise type(error)(error.errno, error.strerror, str(path)) from error
        raise
    finally:
        with contextlib.suppress(OSError):
            part.unlink()
        _parts.discard(part)


def discard_parts() -> None:
    """Takes away what is half written and ends the processes that write it. For a process that is about to end.

    It keeps the lock, so that no other thread begins to write.
    """
    _lock.acquire()
    for process in list(_processes):
        with contextlib.suppress(OSError):
            process.kill()
            process.wait()
    for part in list(_parts):
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
