"""The settings of a picture: written into its file, read back by --like, and compared."""

import hashlib
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any

import jdiff
from jdiff import images
from jdiff.cli import ladders
from jdiff.cli.drawing import Drawing, File
from jdiff.cli.errors import accepted, check_local, demand, is_unicode
from jdiff.cli.flags import place
from jdiff.cli.process import note

if TYPE_CHECKING:
    from jdiff.model import Model

Settings = images.Settings

# Packages that may change a picture, jdiff aside.
PACKAGES = ("jax", "flax", "numpy")
# Flags that any command has and that go into the settings under their own names.
SHARED = ("model", "n", "steps", "guidance", "negative", "sampler", "seed", "dtype", "encoder", "size")
TEXT = (str, NoneType)
# Settings that pictures of older versions lack, and what they were.
ADDED = {"size": None, "fit": "crop"}
# Types of the settings that any command has.
TYPES: dict[str, Any] = {
    "model": str, "n": int, "steps": (int, list), "guidance": (int, float, list), "negative": str, "sampler": str,
    "seed": int, "dtype": str, "encoder": TEXT, "prompts": list, "embeddings": TEXT, "embeddings_sha256": TEXT,
    "hash": str, "versions": dict, "keep": int, "device": str, "size": TEXT,
}  # fmt: skip


def read(command: Drawing, path: Path) -> Settings:
    """Returns the settings in a picture that this command drew.

    Raises:
        BadInput: it is no such picture.
    """
    check_local("--like", path)
    demand(is_unicode(str(path)), f"--like must be a path in UTF-8, got {str(path)!a}")
    settings = ADDED | accepted(lambda: images.read_settings(path), "--like: ")
    wanted = f"--like must be a picture that jdiff {command.name} drew, got {path}"
    demand(settings.get("command") == command.name, f"{wanted}, which is another command's")
    types = TYPES | command.own | {key: str for name in command.files for key in (name, f"{name}_sha256")}
    wrong = [name for name, kind in types.items() if not isinstance(settings.get(name), kind)]
    if not wrong:
        lists = [name for name, kind in types.items() if kind is list]
        wrong = [name for name in lists if not all(isinstance(entry, str) for entry in settings[name])]
        wrong += [] if 0 <= settings["keep"] <= 1000 else ["keep"]
        wrong += [name for name in ladders.LABELS if not _are_numbers(settings.get(name), types.get(name, ()))]
    if not wrong:
        wrong += [] if _is_place(settings, command) else ["image"]
        try:
            command.flags(settings["prompts"])
        except ValueError:
            wrong.append("prompts")
    demand(not wrong, f"{wanted}, whose settings have no usable {', '.join(wrong)}")
    return settings


def like(command: Drawing, path: Path) -> Drawing:
    """Returns the command that drew a picture, with its output beside that file.

    Files that are not where the settings say are looked for beside the picture.

    Args:
        command: of the same kind. Flags that collect values, of which it has some, are not filled.
        path: of the picture.

    Raises:
        BadInput: the settings cannot be used.
    """
    settings = read(command, path)
    flags = {name: settings[name] for name in (*SHARED, *command.own)}
    flags |= {name: tuple(flags[name]) for name in ladders.LABELS if isinstance(flags.get(name), list)}
    for name in ("model", "encoder", "stage2"):
        if isinstance(flags.get(name), str):
            flags[name] = found_folder(flags[name], path.parent)
    for name in (*command.files, "embeddings"):
        given = settings[name]
        flags[name] = None if given is None else _found(place(given), path.parent, settings.get(f"{name}_sha256"))
    for name in (name for name, kind in command.own.items() if kind is list):
        flags[name] = () if getattr(command, name) else tuple(settings[name])
    flags |= command.flags(settings["prompts"])
    return type(command)(output=path.with_name(f"{path.stem}-again.png"), like=path, **flags)


def of(
    command: Drawing,
    files: dict[str, File],
    model: "Model",
    weights: str,
    sampler: str,
    steps: int | tuple[int, ...],
    before: Settings | None,
    embeddings_sha256: str | None = None,
) -> Settings:
    """Returns all settings of a picture that is about to be drawn.

    Args:
        command: that draws.
        files: the pictures that it starts from.
        model: that draws.
        weights: identifies the weights.
        sampler: its name.
        steps: of the sampler, or several.
        before: settings of the picture that is drawn again.
        embeddings_sha256: of the file of prompt embeddings.
    """
    import jax

    texts = list(command.texts())
    same = before is not None and (texts, command.n) == (before["prompts"], before["n"])
    same = same and ladders.rungs(command) == ladders.rungs(before or {})
    guidance = [float(g) for g in ladders.values(command.guidance)] or [model.defaults.guidance]
    read = {name: str(file.path) for name, file in files.items()}
    read |= {f"{name}_sha256": file.sha256 for name, file in files.items()}
    return {
        "command": command.name,
        "model": command.model,
        "hash": weights,
        "prompts": texts,
        **read,
        **{name: getattr(command, name) for name in command.own},
        "n": command.n,
        "steps": list(steps) if isinstance(steps, tuple) else steps,
        "guidance": guidance if isinstance(command.guidance, tuple) else float(guidance[0]),
        "size": command.size,
        "negative": command.negative,
        "encoder": command.encoder,
        "embeddings": str(command.embeddings) if command.embeddings else None,
        "embeddings_sha256": embeddings_sha256,
        "sampler": sampler,
        "seed": command.seed,
        "dtype": command.dtype,
        # a program that keeps pictures of the way may round differently
        "keep": command.kept() or (before["keep"] if before else 0),
        "image": before.get("image") if before and same else None,  # [prompt, picture] in a file of one picture
        "device": jax.devices()[0].device_kind,
        "versions": {"jdiff": jdiff.__version__} | {name: version(name) for name in PACKAGES},
    }


def note_differences(now: Settings, before: Settings, files: Sequence[str]) -> None:
    """Prints a note where the picture may come out differently, unless another model is asked for."""
    changed = []
    models = [[settings[name] for name in ("model", "stage2") if settings.get(name)] for settings in (now, before)]
    if models[0] == models[1] and now["hash"] != before["hash"]:
        changed.append(f"model {' and '.join(models[0])} (hash {now['hash'][:12]}, was {before['hash'][:12]})")
    for name in (*files, "embeddings"):
        new, old = (settings.get(f"{name}_sha256") for settings in (now, before))
        if new and old and now[name] == before[name] and new != old:
            changed.append(f"{name} {now[name]} (sha256 {new[:12]}, was {old[:12]})")
    if now["device"] != before["device"]:
        changed.append(f"device {now['device']} (was {before['device']})")
    for name, number in now["versions"].items():
        if number != before["versions"].get(name):
            changed.append(f"{name} {number} (was {before['versions'].get(name)})")
    if changed:
        note(f"this differs from when the picture was drawn, and may change it: {', '.join(changed)}")


def _is_place(settings: Settings, command: Drawing) -> bool:
    """Whether "image" is [prompt, picture], or nothing."""
    at, count = settings.get("image"), command.count(settings["prompts"]) * ladders.rungs(settings)
    counts = (count, settings["n"])
    if at is None:
        return True
    whole = isinstance(at, list) and len(at) == 2 and all(type(i) is int for i in at)
    return whole and all(0 <= i < count for i, count in zip(at, counts, strict=True))


def _are_numbers(given: Any, kind: Any) -> bool:
    """Whether a setting of types such as (int, list) has one value, or a list of two or more."""
    if not isinstance(given, list):
        return True
    numbers = tuple(each for each in kind if each is not list)
    return len(given) > 1 and all(isinstance(value, numbers) for value in given)


def _found(given: Path | str, folder: Path, sha256: str | None) -> Path | str:
    """A file as it is named, or beside the picture; of two, the one with the content that the settings name."""
    if isinstance(given, str) or given.is_absolute():  # a URL stays as it is
        return given
    existing = [path for path in (given, folder / given) if accepted(path.is_file, "--like: ")]
    same = (path for path in existing if sha256 and _sha256(path) == sha256)
    return next(same, existing[0] if existing else given)


def found_folder(given: str, folder: Path) -> str:
    """Returns the folder of a model as it is named, or beside a picture in `folder` if it is only there."""
    exists = lambda path: accepted(path.is_dir, "--like: ")
    return str(folder / given) if given and not exists(Path(given)) and exists(folder / given) else given


def _sha256(path: Path) -> str | None:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None
