"""Checkpoints of training, by Orbax, with a fingerprint of their run."""

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import jax
import numpy as np
from jax.sharding import Sharding
from jax.tree_util import Partial

from jdiff.parts import beside

if TYPE_CHECKING:
    from jdiff.training.loop import TrainState

# Of arrays with more bytes than this, a fingerprint contains only shape and dtype.
DIGESTED = 2**20
FINGERPRINT = "fingerprint.json"


def fingerprint(
    state: "TrainState", objective: Partial, decay: float, settings: Mapping[str, object] | None
) -> dict[str, object]:
    """Returns the fingerprint of a run, as JSON. Runs with different fingerprints do not share checkpoints.

    Args:
        state: a `TrainState`, of which shapes, dtypes and the key are used.
        objective: the objective, of which the functions' names and the arrays' contents are used.
        decay: decay of the EMA.
        settings: the caller's settings.

    Raises:
        ValueError: the settings cannot be written as JSON.
    """
    try:
        own = json.loads(json.dumps(dict(settings or {})))
    except (TypeError, ValueError) as error:
        raise ValueError(f"settings must be JSON, got {settings!r}: {error}") from error
    shapes = {name: f"{np.dtype(leaf.dtype).name} {list(np.shape(leaf))}" for name, leaf in _named(state).items()}
    return {
        "key": np.asarray(state.key).tolist(),
        "decay": float(decay),
        "objective": _names(objective),
        "objective's arrays": _digest(objective),
        "settings": own,
        "state": shapes,
    }


class Checkpoints:
    """The two newest checkpoints in a folder. It is a context manager, which closes Orbax's manager.

    Args:
        folder: folder of the checkpoints.
        run: the run's `fingerprint`.

    Raises:
        ValueError: on entry, if the folder holds checkpoints of another run.
    """

    def __init__(self, folder: str | Path, run: Mapping[str, object]):
        import orbax.checkpoint as ocp

        self.folder = Path(folder).absolute()
        self.run = run
        self.orbax = ocp

    def __enter__(self) -> "Checkpoints":
        options = self.orbax.CheckpointManagerOptions(
            max_to_keep=2, cleanup_tmp_directories=True, enable_async_checkpointing=False
        )
        self.manager = self.orbax.CheckpointManager(self.folder, options=options)
        try:
            self._agree()
        except BaseException:
            self.manager.close()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self.manager.close()

    def _agree(self) -> None:
        """Writes the fingerprint to a new folder, or compares it with that of the folder."""
        path = self.folder / FINGERPRINT
        if not path.is_file():
            if jax.process_index() == 0:
                self.folder.mkdir(parents=True, exist_ok=True)
                with beside(path) as file:
                    file.write((json.dumps(self.run, indent=1) + "\n").encode())
            return
        try:
            there = dict(json.loads(path.read_text()))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path} cannot be read ({error}); give another folder for checkpoints") from error
        now, before = (_flat(run) for run in (self.run, there))
        other = [name for name in now.keys() | before.keys() if now.get(name) != before.get(name)]
        other.sort(key=lambda name: (not name.startswith("settings "), name))  # the caller's settings first
        if other:
            name = other[0]
            more = f" and {len(other) - 1} more" if len(other) > 1 else ""
            raise ValueError(
                f"checkpoints in {self.folder} are of another run: {name} is {now.get(name)}, was {before.get(name)}"
                f"{more}; give the same settings, or another folder"
            )

    def newest(self, state: "TrainState", sharding: Sharding | None) -> "TrainState | None":
        """Reads the newest checkpoint.

        Args:
            state: a `TrainState` with the structure, shapes and dtypes of the checkpoint.
            sharding: layout of the arrays; that of `state` if None.

        Returns:
            A `TrainState`, or None if there is no checkpoint.

        Raises:
            ValueError: the checkpoint has another structure.
        """
        step = self.manager.latest_step()
        if step is None:
            return None
        wanted = jax.tree.map(
            lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding if sharding is None else sharding),
            state,
        )
        try:
            return cast("TrainState", self.manager.restore(step, args=self.orbax.args.StandardRestore(wanted)))
        except (ValueError, KeyError) as error:
            why = str(error).splitlines()[0]
            raise ValueError(
                f"the checkpoint of update {step} in {self.folder} does not fit this run: {why}; give another folder"
            ) from error

    def save(self, step: int, state: "TrainState") -> None:
        """Writes a checkpoint.

        Args:
            step: number of updates.
            state: a `TrainState`.

        Raises:
            OSError: the checkpoint cannot be written. The message says which earlier one is kept.
        """
        before = self.manager.latest_step()
        wanted, free = sum(a.nbytes for a in jax.tree.leaves(state)), shutil.disk_usage(self.folder).free
        try:
            if free < wanted:  # checked first, because Orbax prints long tracebacks
                raise OSError(f"it needs {wanted:,} bytes, and {free:,} are free")
            self.manager.save(step, args=self.orbax.args.StandardSave(state), force=True)
        except (OSError, ValueError) as error:  # tensorstore raises ValueError if the disk is full
            kept = "no earlier one is kept" if before is None else f"that of update {before} is kept"
            why = str(error).splitlines()[0]
            raise OSError(
                f"the checkpoint of update {step} cannot be written to {self.folder} ({kept}): {why}"
            ) from error


def _named(tree: object) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}


def _flat(run: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for name, value in run.items():
        flat |= _flat(value, f"{prefix}{name} ") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat


def _names(function: object) -> str:
    """Returns the names of the functions in a Partial, the outer one first."""
    if isinstance(function, Partial):
        inner = [_names(part) for part in (*function.args, *function.keywords.values())]
        return f"{_names(function.func)}({', '.join(name for name in inner if name)})"
    if callable(function):
        function = getattr(function, "func", function)  # functools.partial
        return getattr(function, "__qualname__", type(function).__qualname__)
    return ""


def _digest(tree: object) -> str:
    """Returns the sha256 of the shapes and dtypes of all arrays and the content of the small ones."""
    digest = hashlib.sha256()
    for name, leaf in _named(tree).items():
        array = np.asarray(leaf)
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        if array.nbytes <= DIGESTED:
            digest.update(array.tobytes())
    return digest.hexdigest()
