"""Where a model lies: in a folder, among the models that are shipped, or on the hub."""

import difflib
import os
from pathlib import Path

from jdiff.checkpoints import hub
from jdiff.parts import is_folder

ACCEPTED = "a folder that `jdiff convert` or diffusers wrote, or OWNER/NAME on the hub"  # besides shipped names
WEIGHTS = ("model*.safetensors", "diffusion_pytorch_model*.safetensors")


def shipped(name: str) -> Path:
    """Returns the folder of weights that come with the library, in a wheel or in a checkout.

    Args:
        name: name of the folder under weights/. Where there is none of that name, it is returned as a path.

    Example:
        >>> (shipped("mini") / "unet" / "config.json").is_file()
        True
    """
    return next((folder for root in _roots() if is_folder(folder := root / name)), Path(name))


def shipped_names() -> list[str]:
    """Returns the names of the text-to-image models that come with the library.

    Example:
        >>> "mini" in shipped_names()
        True
    """
    return sorted({folder.parent.name for root in _roots() for folder in root.glob("*/unet")})


def find(name_or_folder: str | Path, half: bool = False) -> Path:
    """Finds the folder of a model.

    Args:
        name_or_folder: a folder, the name of a shipped model, or OWNER/NAME on the hub, which is downloaded by
            `hub.find`. A name whose first part is a folder here is a folder.
        half: whether the hub's fp16 variant is preferred.

    Raises:
        ValueError: there is no such model; the nearest folder or shipped model is named. Or the folder holds no UNet.

    Example:
        >>> find("mini") == shipped("mini")
        True
    """
    name, folder = str(name_or_folder), Path(name_or_folder)
    if not is_folder(folder):
        folder = shipped(name)
    if not is_folder(folder) and hub.is_name(name):
        try:
            folder = hub.find(name, half)
        except ValueError as error:
            near = nearest(name)
            raise ValueError(
                f"{error}{f'; there is no folder of that name either, did you mean {near!r}?' if near else ''}"
            ) from error
    if not is_folder(folder):
        raise ValueError(missing("model", name_or_folder, ACCEPTED))
    if not any(path for pattern in WEIGHTS for path in (folder / "unet").glob(pattern)):
        raise ValueError(f"model must be {ACCEPTED}, got {name!r}, which holds no unet/model.safetensors")
    return folder


def missing(what: str, name: str | Path, accepted: str) -> str:
    """Returns the error for a name that is neither a folder nor a shipped model, with the nearest one there is.

    Args:
        what: what the error calls it.
        name: what was given.
        accepted: what can be given besides the shipped models' names.
    """
    near = nearest(name)
    hint = f"; did you mean {near!r}?" if near else ""
    return f"{what} must be {', '.join(shipped_names())}, {accepted}, got {str(name)!r}, which does not exist{hint}"


def nearest(name: str | Path) -> str | None:
    """Returns the folder here or the shipped model whose name is nearest to one that does not exist, if any is near.

    Example:
        >>> nearest("mimi")
        'mini'
    """
    path = Path(name).expanduser()
    at = Path(path.anchor) if path.anchor else Path()
    for part in path.parts[1 if path.anchor else 0 :]:
        if is_folder(at / part):
            at = at / part
            continue
        close = difflib.get_close_matches(part, _folders(at), 1)
        if not close:
            break
        at = at / close[0]
    else:
        return str(at)
    close = difflib.get_close_matches(path.name, shipped_names(), 1)
    return close[0] if close else None


def _roots() -> list[Path]:
    package = Path(__file__).resolve().parents[1]
    return [package / "weights", package.parent / "weights"]


def _folders(at: Path) -> list[str]:
    try:
        return [entry.name for entry in os.scandir(at) if entry.is_dir()]
    except OSError:
        return []
