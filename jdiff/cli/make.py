"""How a command that draws is carried out, from its flags to its files."""

import hashlib
import logging
import math
import os
import warnings
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from jdiff.cli import cache, ladders, outputs, settings
from jdiff.cli.drawing import Drawing, File, Fitted, check, in_words
from jdiff.cli.errors import BadInput, accepted, demand, one_line
from jdiff.cli.process import note
from jdiff.cli.weights import known
from jdiff.progress import Bar

if TYPE_CHECKING:
    from jdiff.model import Model
    from jdiff.scan import Watch

# Pixels of the pictures that are drawn in one call, to bound memory: 256 pictures of 32 x 32, or 4 of 256 x 256.
AT_ONCE = 2**18
# Seconds until the progress bar appears. What is wrong with the input is told before, on a line of its own.
PATIENCE = 0.5


def make(command: Drawing) -> outputs.Done:
    """Draws and writes.

    Raises:
        BadInput: something is wrong with the input. Nothing is written.
    """
    check(command)
    before = settings.read(command, command.like) if command.like else None
    files = command.read()
    table, table_sha256 = known("--prompts", command.embeddings), _sha256(command.embeddings)
    start_jax(cores=command.count(command.texts()) * command.n > 1)
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_: note(one_line(Warning(message)))
        from jdiff.cli import grammar
        from jdiff.model import load

        _check_sampler(command)
        texts = [command.negative, *command.texts()]
        how: dict[str, Any] = {"known": table, "encoder": command.encoder, "cache": cache.usable("prompts")}
        model = accepted(lambda: load(command.model, dtype=command.dtype, texts=texts, **how))
        made = draw(command, model, files, before=before, table_sha256=table_sha256)
        grammar.note_unknown(model.name, texts)  # after the errors, since bad input is one line
    p, n, height, width = made.images.shape[:4]
    count = p * n - made.broken
    what = f"{count} {'picture' if count == 1 else 'pictures'}, {in_words((height, width))}"
    return outputs.write(outputs.of(command, made.settings, made.fitted, made.images, made.way), what)


class Drawn(NamedTuple):
    """What a command has drawn, before it is written."""

    images: np.ndarray  # [p n h w c]; one that is not finite is NaN throughout
    way: np.ndarray | None  # [p n m h w c], where the command keeps it
    settings: settings.Settings
    fitted: Fitted
    broken: int  # pictures that are not finite


def draw(
    command: Drawing,
    model: "Model",
    files: dict[str, File],
    *,
    before: settings.Settings | None = None,
    table_sha256: str | None = None,
    watch: "Watch | None" = None,
) -> Drawn:
    """Draws what a command asks for, and writes nothing.

    Args:
        command: whose flags were checked.
        model: that it names.
        files: the pictures that it starts from.
        before: settings of the picture that is drawn again.
        table_sha256: of the file of prompt embeddings.
        watch: as in `jdiff.sample.generate`.

    Raises:
        BadInput: something is wrong with the flags or the files.
    """
    from jdiff.sample import SAMPLERS

    _check_sampler(command)
    fitted = command.prepare(model, files)
    sampler = command.sampler or model.defaults.sampler
    steps = command.steps or (SAMPLERS[sampler].steps if command.sampler else model.defaults.steps)
    outputs.check_sizes(command, model, fitted)
    weights = command.hash(model, fitted)
    told = settings.of(command, files, model, weights, sampler, steps, before, table_sha256)
    if before:
        settings.note_differences(told, before, command.files)
    for one, own, _ in ladders.each(command, told):  # before the first picture is drawn
        levels = accepted(partial(SAMPLERS[sampler].table, model.schedule, own["steps"]))
        accepted(partial(one.check_levels, levels))
    images, way = _drawn(command, model, fitted, told, watch)
    broken = _without_broken(images, told, command.dtype)
    return Drawn(images, way, told, fitted, broken)


def start_jax(cores: bool = False, batch: int | None = None) -> None:
    """Starts JAX with its cache of programs.

    Args:
        cores: whether each core of a CPU becomes a device, for several pictures.
        batch: a batch size that the devices must divide.

    Raises:
        BadInput: there is no device.
    """
    cache.keep_compilations()
    import jax

    from jdiff import mesh

    if cores:
        mesh.use_cores(batch)
    log = logging.getLogger("jax._src.xla_bridge")
    log.addFilter(_as_note)
    try:
        jax.devices()
    except Exception as error:  # JAX raises RuntimeError or AssertionError
        asked = os.environ.get("JAX_PLATFORMS")
        advice = f"; JAX_PLATFORMS is {asked}, set it to cpu" if asked else ""
        raise BadInput(f"JAX found no device to compute on ({one_line(error)[:200]}){advice}") from error
    finally:
        log.removeFilter(_as_note)


def _as_note(record: logging.LogRecord) -> bool:
    """Makes a note of what JAX logs about devices, and of what to do about one that it cannot use."""
    told = " ".join(record.getMessage().split())
    for device, extra in (("NVIDIA GPU", "cuda12"), ("TPU", "tpu")):
        if f"{device} may be present" in told:
            told += f" To use it: pip install 'jax[{extra}]'. To use the CPU without this note: JAX_PLATFORMS=cpu"
    note(told)
    return False


def at_once(pictures: int, side: int, devices: int) -> int | None:
    """Returns how many pictures are drawn in one call: groups of about one size, for which memory is enough.

    Args:
        pictures: to draw.
        side: of a picture in pixels.
        devices: that share a group.

    Example:
        >>> at_once(300, 32, 2), at_once(256, 32, 2)
        (150, None)
    """
    most = max(AT_ONCE // side**2, devices)
    groups = -(-pictures // most)
    if groups == 1:
        return None
    each = -(-pictures // groups)
    return -(-each // devices) * devices


def _drawn(
    command: Drawing, model: "Model", fitted: Fitted, told: settings.Settings, watch: "Watch | None"
) -> tuple[np.ndarray, np.ndarray | None]:
    """(images [p n h w c], the way [p n m h w c] to them). `fitted` is of a type that only the command knows."""
    import jax

    from jdiff import mesh

    devices, wanted = jax.device_count(), command.count(command.texts()) * command.n
    how: dict[str, Any] = {name: told[name] for name in ("n", "negative", "sampler", "keep")}
    how["mesh"] = mesh.over_devices() if wanted >= devices else None
    how["watch"] = watch
    side = math.ceil(math.sqrt(math.prod(command.picture_size(model, fitted))))
    how["images_at_once"] = at_once(wanted, side, devices if how["mesh"] is not None else 1)
    images: list[np.ndarray] = []
    way = None
    each = ladders.each(command, told)
    with Bar(each[0][1]["steps"], unit="step", label="compiling", quiet=command.quiet, delay=PATIENCE) as bar:
        for one, own, label in each:
            label = f"sampling {label}".strip()
            how["progress"] = lambda done, total, label=label: bar.update(done, total, label=label)
            how |= {name: own[name] for name in ("steps", "guidance")}
            made = accepted(partial(one.draw, model, fitted, jax.random.key(told["seed"]), **how))
            images.append(np.array(made.images, np.float32))  # waits until they are drawn
            way = np.array(made.way, np.float32) if command.kept() else None
    return np.stack(images, axis=1).reshape(-1, *images[0].shape[1:]), way


def _without_broken(made: np.ndarray, told: settings.Settings, dtype: str) -> int:
    """Makes pictures that are not finite NaN throughout, notes them, and returns how many there are.

    Raises:
        BadInput: no picture is finite, or the one picture that --like asks for is not.
    """
    broken = [(i, j) for i, j in np.ndindex(made.shape[:2]) if not np.isfinite(made[i, j]).all()]
    advice = f"try a wider dtype than {dtype}, or less guidance than {max(ladders.values(told['guidance']))}"
    demand(len(broken) < made.shape[0] * made.shape[1], f"no picture is finite; {advice}")
    demand(tuple(told["image"] or ()) not in broken, f"the picture is not finite; {advice}")
    if broken:
        row = "prompt" if ladders.of(told) is None else "row"
        places = ", ".join(f"{j} of {row} {i}" for i, j in broken)
        count = made.shape[0] * made.shape[1]
        note(f"{len(broken)} of {count} pictures are not finite and left out: {places}; {advice}")
        for i, j in broken:
            made[i, j] = np.nan
    return len(broken)


def _check_sampler(command: Drawing) -> None:
    from jdiff.sample import SAMPLERS

    names = ", ".join(sorted(SAMPLERS))
    demand(command.sampler in (None, *SAMPLERS), f"--sampler must be one of {names}, got {command.sampler}")


def _sha256(path: Path | None) -> str | None:
    if path is None:
        return None
    with accepted(lambda: open(path, "rb"), "--prompts: ") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
