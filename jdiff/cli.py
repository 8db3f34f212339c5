"""The `jdiff` command: `jdiff generate` makes pictures, `jdiff convert` brings weights over. JAX is imported late."""

import dataclasses
import math
import os
import sys
import threading
import warnings
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro

import jdiff
from jdiff import images as pictures

Dtype = Literal["float32", "bfloat16", "float16"]
DTYPES = ("float32", "bfloat16", "float16")
PACKAGES = ("jax", "flax", "numpy")  # and jdiff: what may change a picture
KEPT = 20  # pictures of the way in a GIF
LARGEST_SEED = 2**32 - 1
MODEL_DEFAULT = "(default: the model's own)"


class BadInput(Exception):
    """What the user gave cannot be done; its text says what was given and what is accepted."""


@dataclasses.dataclass
class Generate:
    """Pictures of prompts, in a labelled sheet: one row a prompt, or a square of one prompt's."""

    prompts: Annotated[
        tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="PROMPT...", help_behavior_hint="(one or more)")
    ] = ()
    """What to draw, each prompt in quotes, such as "a red three"."""
    model: Annotated[str, tyro.conf.arg(metavar="NAME|FOLDER")] = "mini"
    """A model that ships with jdiff, or the folder of a converted one."""
    n: Annotated[int, tyro.conf.arg(aliases=["-n"])] = 4
    """Pictures of each prompt."""
    steps: Annotated[int | None, tyro.conf.arg(metavar="INT", help_behavior_hint=MODEL_DEFAULT)] = None
    """Steps of the sampler, 1 to 1000."""
    guidance: Annotated[float | None, tyro.conf.arg(metavar="FLOAT", help_behavior_hint=MODEL_DEFAULT)] = None
    """How strongly the prompt is followed; 1 is no guidance."""
    negative: Annotated[str, tyro.conf.arg(metavar="PROMPT")] = ""
    """What to keep away from."""
    sampler: Annotated[str | None, tyro.conf.arg(metavar="NAME", help_behavior_hint=MODEL_DEFAULT)] = None
    """Named sampler: diffusers, deepfloyd, course or another; a wrong name gets the list."""
    seed: int = 0
    """Picks the noise; picture k of a prompt is the same however many are made (to rounding)."""
    dtype: Dtype = "float32"
    """Of the network; everything else is float32."""
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"], metavar="FILE.png")] = Path("out.png")
    """Where the sheet goes; with --like, unless given, beside that picture under NAME-again.png."""
    separate: bool = False
    """Also write each picture alone, beside the sheet: NAME-0-1.png is prompt 0, picture 1."""
    gif: Annotated[Path | None, tyro.conf.arg(metavar="FILE.gif", help_behavior_hint="(optional)")] = None
    """Also write the way from noise to picture, as an animation."""
    npz: Annotated[Path | None, tyro.conf.arg(metavar="FILE.npz", help_behavior_hint="(optional)")] = None
    """Also write the arrays: images [n h w c] float32 in [-1, 1], and prompts, one row each."""
    like: Annotated[Path | None, tyro.conf.arg(metavar="FILE.png", help_behavior_hint="(optional)")] = None
    """Make a picture of jdiff again: its settings are the defaults of all the others."""
    quiet: bool = False
    """No progress bar."""


@dataclasses.dataclass
class Convert:
    """DeepFloyd IF's weights, from a folder of diffusers (or its unet/ folder) to a folder that jdiff loads."""

    source: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="SRC")]]
    """Folder with config.json and its safetensors, in one file or in shards."""
    target: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="DST")]]
    """Folder to write."""
    dtype: Dtype = "float32"
    """Of the weights written."""


def main(args: Sequence[str] | None = None) -> int:
    """Exit status: 0 done, 1 a file could not be written, 2 bad input (one line on stderr), 130 interrupted."""
    try:
        command = parse(sys.argv[1:] if args is None else args)
        print(generate(command) if isinstance(command, Generate) else convert(command))
    except BadInput as error:
        print(f"jdiff: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"jdiff: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def parse(args: Sequence[str]) -> Generate | Convert:
    """The command that `args` ask for; what --like names stands in for every flag that is not given.

    >>> parse(["generate", "a red three", "-n", "2"]).n
    2
    """
    command = _parse(args, Generate())
    if isinstance(command, Convert) or command.like is None:
        return command
    return _parse(args, like(command.like))


def _parse(args: Sequence[str], default: Generate) -> Generate | Convert:
    commands = (
        Annotated[Generate, tyro.conf.subcommand("generate", default=default)]
        | Annotated[Convert, tyro.conf.subcommand("convert")]
    )
    config = (tyro.conf.FlagCreatePairsOff, tyro.conf.OmitSubcommandPrefixes)
    about = "DeepFloyd IF and its samplers in JAX."
    # the ignored: to the type checker a union is no type
    return tyro.cli(commands, prog="jdiff", description=about, args=list(args), config=config)  # type: ignore


def like(path: Path) -> Generate:
    """The command that made a PNG, its output beside that file; raises BadInput where its settings are not usable."""
    settings = _settings(path)
    names = ("model", "n", "steps", "guidance", "negative", "sampler", "seed", "dtype")
    return Generate(
        prompts=tuple(settings["prompts"]),
        output=path.with_name(f"{path.stem}-again.png"),
        like=path,
        **{name: settings[name] for name in names},
    )


def _settings(path: Path) -> dict[str, Any]:
    try:
        settings = pictures.read_settings(path)
    except ValueError as error:
        raise BadInput(f"--like is {error}") from error
    kinds = {"model": str, "n": int, "steps": int, "guidance": (int, float), "negative": str, "sampler": str}
    kinds |= {"seed": int, "dtype": str, "prompts": list, "hash": str, "versions": dict, "keep": int, "device": str}
    wrong = [name for name, kind in kinds.items() if not isinstance(settings.get(name), kind)]
    if not wrong:
        wrong = ["prompts"] if not all(isinstance(prompt, str) for prompt in settings["prompts"]) else []
        at, size = settings.get("image"), (len(settings["prompts"]), settings["n"])
        if at is not None and at not in [[i, j] for i in range(size[0]) for j in range(size[1])]:
            wrong.append("image")
    if settings.get("command") != "generate" or wrong:
        what = f"without usable {', '.join(wrong)}" if wrong else "of another command"
        raise BadInput(f"--like is {path}, a picture {what}, accepted is one that jdiff generate wrote")
    return settings


def check(command: Generate) -> None:
    """Nothing; raises BadInput for the first thing that is wrong, as far as that shows without JAX and the model."""
    prompts = command.prompts
    _demand(len(prompts) > 0, "no prompt is given, accepted is one or more, such as jdiff generate 'a red three'")
    for name, text in [("prompt", p) for p in prompts] + [("--negative", command.negative)]:
        _demand(_is_unicode(text), f"{name} is {text!a}, accepted is text in UTF-8")
    _demand(command.n >= 1, f"-n is {command.n}, accepted is 1 or more")
    steps, guidance = command.steps, command.guidance
    _demand(steps is None or 1 <= steps <= 1000, f"--steps is {steps}, accepted is 1 to 1000")
    _demand(guidance is None or math.isfinite(guidance), f"--guidance is {guidance}, accepted is any finite number")
    _demand(0 <= command.seed <= LARGEST_SEED, f"--seed is {command.seed}, accepted is 0 to {LARGEST_SEED}")
    _demand(command.dtype in DTYPES, f"--dtype is {command.dtype}, accepted are {', '.join(DTYPES)}")
    _demand(command.model != "", "--model is empty, accepted is the name of a model or its folder")
    for flag, path, suffix in (
        ("-o", command.output, ".png"),
        ("--gif", command.gif, ".gif"),
        ("--npz", command.npz, ".npz"),
    ):
        if path is not None:
            _check_output(flag, path, suffix)
    if command.separate:
        for i in range(len(prompts)):
            for j in range(command.n):
                _check_output("--separate", _alone(command.output, i, j), ".png")


def _check_output(flag: str, path: Path, suffix: str) -> None:
    _demand(not path.is_dir(), f"{flag} is {path}, a folder, accepted is a file that ends in {suffix}")
    _demand(path.suffix.lower() == suffix, f"{flag} is {path}, accepted is a file that ends in {suffix}")
    folder = path.parent
    _demand(folder.is_dir(), f"{flag} is {path}, but there is no folder {folder}, accepted is a folder that exists")
    writable = os.access(folder, os.W_OK | os.X_OK)
    _demand(writable, f"{flag} is {path}, but {folder} cannot be written to, accepted is a folder that can")


def _demand(holds: bool, message: str) -> None:
    if not holds:
        raise BadInput(message)


def _is_unicode(text: str) -> bool:
    try:
        return bool(text.encode()) or True
    except UnicodeEncodeError:
        return False


def generate(command: Generate) -> str:
    """One line that says what was written; raises BadInput, and then nothing was."""
    check(command)
    before = _settings(command.like) if command.like else None

    cache_compilations()
    import jax

    from jdiff.model import load
    from jdiff.sample import SAMPLERS
    from jdiff.sample import generate as sample

    names = ", ".join(sorted(SAMPLERS))
    _demand(command.sampler in (None, *SAMPLERS), f"--sampler is {command.sampler}, accepted are {names}")
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_: _note(str(message))
        model = _accepted(lambda: load(command.model, dtype=command.dtype))
        sampler = command.sampler or model.defaults.sampler
        steps = SAMPLERS[sampler].steps if command.sampler else model.defaults.steps
        steps = steps if command.steps is None else command.steps
        settings = _filled(command, model, sampler, steps, before)
        keep = settings["keep"]
        if before:
            _note_differences(settings, before)
        with _Bar(settings["steps"], command.quiet) as progress:

            def run() -> tuple[np.ndarray, np.ndarray | None]:
                made = sample(
                    model,
                    command.prompts,
                    jax.random.key(settings["seed"]),
                    n=settings["n"],
                    steps=settings["steps"],
                    guidance=settings["guidance"],
                    negative=settings["negative"],
                    sampler=settings["sampler"],
                    keep=keep,
                    progress=progress,
                )
                return np.asarray(made.images, np.float32), np.asarray(made.way, np.float32) if keep else None

            made, way = _accepted(lambda: interruptible(run))
    finite = bool(np.isfinite(made).all())
    given = f"--dtype is {command.dtype} and --guidance {settings['guidance']}"
    _demand(finite, f"{given}, with which pictures are not finite, accepted are a wider dtype and less guidance")
    return write(command, settings, made, way if command.gif else None)


def _filled(command: Generate, model: Any, sampler: str, steps: int, before: dict[str, Any] | None) -> dict[str, Any]:
    """All settings of a picture, as they go into its file."""
    import jax

    same = before is not None and (list(command.prompts), command.n) == (before["prompts"], before["n"])
    return {
        "command": "generate",
        "model": command.model,
        "hash": model.hash,
        "prompts": list(command.prompts),
        "n": command.n,
        "steps": steps,
        "guidance": float(model.defaults.guidance if command.guidance is None else command.guidance),
        "negative": command.negative,
        "sampler": sampler,
        "seed": command.seed,
        "dtype": command.dtype,
        "keep": KEPT if command.gif else before["keep"] if before else 0,  # another program may round differently
        "image": before.get("image") if before and same else None,  # [prompt, picture] in a file of one picture
        "device": jax.devices()[0].device_kind,
        "versions": {"jdiff": jdiff.__version__} | {name: version(name) for name in PACKAGES},
    }


def _note(text: str) -> None:
    print(f"jdiff: note: {text}", file=sys.stderr)


def _note_differences(now: dict[str, Any], before: dict[str, Any]) -> None:
    """One line on stderr where what made the picture is not what makes it again, unless another model is asked for."""
    changed = []
    if now["model"] == before["model"] and now["hash"] != before["hash"]:
        changed.append(f"model {now['model']} (hash {now['hash'][:12]}, was {before['hash'][:12]})")
    if now["device"] != before["device"]:
        changed.append(f"device {now['device']} (was {before['device']})")
    versions = before["versions"]
    for name, number in now["versions"].items():
        if number != versions.get(name):
            changed.append(f"{name} {number} (was {versions.get(name)})")
    if changed:
        _note(f"not the same as when the picture was made, which may change it: {', '.join(changed)}")


def write(command: Generate, settings: dict[str, Any], made: np.ndarray, way: np.ndarray | None) -> str:
    """One line that names the files written, from images [p n h w c] and their way [p n m h w c]."""
    p, n, height, width = made.shape[:4]
    written = []
    if command.npz:
        rows = [prompt for prompt in command.prompts for _ in range(n)]
        with pictures.beside(command.npz) as file:
            np.savez_compressed(file, images=made.reshape(p * n, *made.shape[2:]), prompts=np.array(rows))
        written.append(command.npz)
    if command.gif and way is not None:
        frames = np.nan_to_num(way)
        pictures.save_gif(
            command.gif, np.stack([sheet(frames[:, :, i], command.prompts) for i in range(frames.shape[2])])
        )
        written.append(command.gif)
    if command.separate:
        for i in range(p):
            for j in range(n):
                path = _alone(command.output, i, j)
                pictures.save(path, made[i, j], settings | {"image": [i, j]})
                written.append(path)
    only = settings["image"]
    whole = sheet(made, command.prompts) if only is None else made[only[0], only[1]]
    pictures.save(command.output, whole, settings)
    names = ", ".join(map(str, [command.output, *written]))
    return f"wrote {names}: {p * n} {'picture' if p * n == 1 else 'pictures'}, {width} x {height}"


def sheet(made: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
    """Labelled sheet [h w 3] uint8 of images [p n h w c]: one row a prompt, or one prompt's in a square under it.

    >>> sheet(np.zeros((1, 4, 32, 32, 3)), ["a red three"]).dtype
    dtype('uint8')
    """
    labels = [prompt.strip() or "(no prompt)" for prompt in prompts]
    p, n = made.shape[:2]
    if p > 1:
        return pictures.grid(made, labels)
    root = math.isqrt(n - 1) + 1
    columns = next((c for c in range(root, 2 * root) if n % c == 0), root)
    rows = -(-n // columns)
    cells = np.full((rows * columns, *made.shape[2:]), np.nan, np.float32)
    cells[:n] = made[0]
    return pictures.grid(cells.reshape(rows, columns, *made.shape[2:]), title=labels[0], cell=192 if n <= 4 else 128)


def _alone(output: Path, i: int, j: int) -> Path:
    return output.with_name(f"{output.stem}-{i}-{j}{output.suffix}")


def convert(command: Convert) -> str:
    """One line that says what was written; raises BadInput with everything that is wrong with the source."""
    source, target = command.source, command.target
    _demand(source.is_dir(), f"SRC is {source}, accepted is a folder with config.json and its safetensors")
    _demand(not target.is_file(), f"DST is {target}, a file, accepted is a folder to write")
    parent = target.absolute().parent
    _demand(parent.is_dir(), f"DST is {target}, but there is no folder {parent}, accepted is a folder that exists")
    from jdiff.convert import convert as run

    try:
        run(source, target, dtype=command.dtype)
    except ValueError as error:
        raise BadInput(str(error)) from error
    return f"wrote {target}"


def cache_compilations() -> None:
    """Nothing; has XLA keep its programs in $JDIFF_CACHE (or ~/.cache/jdiff/xla), unless that is empty or fails."""
    given = os.environ.get("JDIFF_CACHE")
    if given == "":
        return
    try:
        folder = Path(given).expanduser() if given else Path.home() / ".cache" / "jdiff" / "xla"
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):
        return
    if not os.access(folder, os.W_OK | os.X_OK):
        return
    import jax

    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)


def interruptible(function: Callable[[], Any]) -> Any:
    """What `function()` returns or raises; Ctrl-C ends the process at once, with status 130.

    XLA does not hand signals on while it compiles or computes, so the work is done in another thread.
    """
    outcome: dict[str, Any] = {}

    def run() -> None:
        try:
            outcome["value"] = function()
        except BaseException as error:
            outcome["error"] = error

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        thread.join()
    except KeyboardInterrupt:
        sys.stderr.flush()
        os._exit(130)  # nothing is being written yet, and there is no way to stop a running XLA program
    if "error" in outcome:
        raise outcome["error"]
    return outcome["value"]


def _accepted(function: Callable[[], Any]) -> Any:
    """What `function()` returns; a ValueError, or a file that cannot be read, becomes one line of BadInput."""
    try:
        return function()
    except (ValueError, OSError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        first, *rest = lines or ["bad input"]
        raise BadInput(" ".join([first, "; ".join(rest)]).strip()) from error


class _Bar:
    """A progress bar on stderr that is called with (done, total) network calls; quiet shows nothing."""

    def __init__(self, total: int, quiet: bool):
        from tqdm import tqdm

        # shown only after half a second: what is wrong with the input is said before, on a line of its own
        wait = 0.5
        self.bar = tqdm(total=total, desc="compiling", unit="step", leave=False, disable=quiet, delay=wait)
        self.timer = threading.Timer(wait, self.bar.refresh)

    def __call__(self, done: int, total: int) -> None:
        self.bar.total = total
        self.bar.set_description("sampling", refresh=False)
        self.bar.update(int(done) - self.bar.n)

    def __enter__(self) -> "_Bar":
        self.timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.timer.cancel()
        self.bar.close()


if __name__ == "__main__":
    sys.exit(main())
