"""The settings of a folder of pictures, in its manifest.json. Other settings are refused."""

import dataclasses
import hashlib
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jdiff.parts import beside

NAME = "manifest.json"
KIND, VERSION = "jdiff bulk", 1


@dataclasses.dataclass(frozen=True)
class Settings:
    """The settings that decide the pictures of a folder and its files.

    Attributes:
        prompts_sha256: of the lines of the prompt file.
        n: pictures of each prompt.
        model: sha256 of the network, its config, noise schedule and rules.
        steps: of the sampler.
        guidance: guidance scale.
        negative: negative prompt.
        sampler: its name.
        seed: random seed. The number of each picture is folded into its key.
        dtype: what the network computes in.
        encoder: the text encoder, as the user gave it. None is the model's own.
        embeddings_sha256: of the file of prompt embeddings that was given.
        shard_size: pictures in a shard.
        batch: pictures that a device draws in one call. Another batch changes the rounding of pictures.
        format: parquet or png.
    """

    prompts_sha256: str
    n: int
    model: str
    steps: int
    guidance: float
    negative: str
    sampler: str
    seed: int
    dtype: str
    encoder: str | None
    embeddings_sha256: str | None
    shard_size: int
    batch: int
    format: str

    @property
    def hash(self) -> str:
        """sha256 in hex of the settings that decide the pictures, up to rounding: all but `LAYOUT`."""
        told = {name: value for name, value in dataclasses.asdict(self).items() if name not in LAYOUT}
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


# Settings that change the files and not the pictures.
LAYOUT = ("shard_size", "batch", "format")
# What an error calls a setting, where it is not the flag of its name.
CALLED = {
    "prompts_sha256": "the prompt file's sha256",
    "n": "-n",
    "model": "the model's sha256",
    "embeddings_sha256": "the sha256 of --prompts",
}


def check_folder(folder: str | Path) -> None:
    """Checks that a folder has a manifest or is empty. Hidden files do not count.

    Raises:
        ValueError: it holds something else.
        OSError: it cannot be read.
    """
    folder = Path(folder)
    if not (folder / NAME).exists():
        others = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
        if others:
            raise ValueError(f"{folder} holds {others[0]} and no {NAME}; give a new or empty folder")


def agree(folder: str | Path, settings: Settings, told: Mapping[str, Any]) -> bool:
    """Writes the settings into a new folder, or compares them with the folder's.

    Args:
        folder: of the pictures.
        settings: of this run.
        told: what else the manifest says, such as versions. Other "versions" or another "device" are warnings, since
            they may change the rounding of pictures.

    Returns:
        Whether the folder is new.

    Raises:
        ValueError: the folder has other settings; the first difference is named.
        OSError: the manifest cannot be written.
    """
    path = Path(folder) / NAME
    here = dataclasses.asdict(settings)
    if not path.exists():
        manifest = {"kind": KIND, "version": VERSION, "settings": here, "hash": settings.hash, **told}
        with beside(path) as file:
            file.write(json.dumps(manifest, indent=2, ensure_ascii=False).encode() + b"\n")
        return True
    manifest = read(folder)
    there = manifest["settings"]
    for name in [*here, *(name for name in there if name not in here)]:
        if here.get(name) != there.get(name) or (name in here) != (name in there):
            what = CALLED.get(name, f"--{name.replace('_', '-')}")
            raise ValueError(
                f"{folder} is of other settings: {what} is {_shown(there.get(name))} there, and "
                f"{_shown(here.get(name))} here; give another folder, or the settings in its {NAME}"
            )
    for name in ("versions", "device"):
        if manifest.get(name) != told.get(name):
            warnings.warn(
                f"{folder} was begun with {name} {_shown(manifest.get(name))}, and this is {_shown(told.get(name))}: "
                "pictures may differ in rounding",
                stacklevel=2,
            )
    return False


def remove(folder: str | Path) -> None:
    """Removes the manifest of a folder that holds nothing else."""
    (Path(folder) / NAME).unlink(missing_ok=True)


def read(folder: str | Path) -> Mapping[str, Any]:
    """Returns what a folder's manifest says.

    Raises:
        ValueError: there is none, or it is damaged or of another version.
    """
    path = Path(folder) / NAME
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read ({error}); restore it, or give another folder") from error
    wanted = {"kind": KIND, "version": VERSION}
    good = isinstance(manifest, dict) and isinstance(manifest.get("settings"), dict)
    if not good or not wanted.items() <= manifest.items():
        raise ValueError(f"{path} is no manifest of {KIND} {VERSION}; give another folder")
    return manifest


def _shown(value: Any) -> str:
    """A value of JSON in an error, cut where it is long."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:16]}...{text[-8:]}"
