"""The `jdiff` command: what it is asked, what it checks, what it writes. JAX is imported late."""

import dataclasses
import math
import os
import sys
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, Union

import numpy as np
import tyro

import jdiff
from jdiff import images as pictures
from jdiff.cli.commands import COMMANDS, BadInput, Drawing, Embed, File, accepted, check_output, demand, is_unicode
from jdiff.cli.mnist import Mnist

DTYPES = ("float32", "bfloat16", "float16")
PACKAGES = ("jax", "flax", "numpy")  # and jdiff: what may change a picture
LARGEST_SEED = 2**32 - 1


@dataclasses.dataclass
class Convert:
    """Weights of DeepFloyd IF or of a T5 encoder, from diffusers' or transformers' folder to one that jdiff loads."""

    source: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="SRC")]]
    """Folder with config.json and its safetensors, in one file or in shards; or on the hub OWNER/NAME, whose UNet it
    is then, or OWNER/NAME/text_encoder."""
    target: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="DST")]]
    """Folder to write."""
    dtype: Literal["float32", "bfloat16", "float16", "int8"] = "float32"
    """Of the weights written; int8 is for a T5 encoder alone: kernels in 8 bits, a scale for each output channel."""


def main(args: Sequence[str] | None = None) -> int:
    """Exit status: 0 done, 1 a file could not be written, 2 bad input (one line on stderr), 130 interrupted."""
    try:
        command = parse(sys.argv[1:] if args is None else args)
        print(make(command) if isinstance(command, Drawing) else RUN[type(command)](command))
    except BadInput as error:
        print(f"jdiff: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"jdiff: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def parse(args: Sequence[str]) -> Drawing | Embed | Convert | Mnist:
    """The command that `args` ask for; what --like names stands in for every flag that is not given.

    >>> parse(["generate", "a red three", "-n", "2"]).n
    2
    """
    command = _parse(args)
    if not isinstance(command, Drawing) or command.like is None:
        return command
    return _parse(args, like(command, command.like))


def _parse(args: Sequence[str], *defaults: Drawing) -> Any:
    default = {type(command): command for command in defaults}
    drawing = [Annotated[kind, tyro.conf.subcommand(kind.name, default=default.get(kind, kind()))] for kind in COMMANDS]
    others = [Annotated[kind, tyro.conf.subcommand(kind.__name__.lower())] for kind in RUN]
    commands = Union[*drawing, *others]  # noqa: UP007, it is no literal
    config = (tyro.conf.FlagCreatePairsOff, tyro.conf.OmitSubcommandPrefixes)
    about = "DeepFloyd IF and its samplers in JAX."
    # the ignored: to the type checker a union is no type
    return tyro.cli(commands, prog="jdiff", description=about, args=list(args), config=config)  # type: ignore


def like(command: Drawing, path: Path) -> Drawing:
    """The command that made a PNG, its output beside that file; raises BadInput where its settings are not usable.

    Of `command`, of the same kind, only the flags that collect count: what it has of them is not repeated.
    """
    settings = _settings(command, path)
    names = ("model", "n", "steps", "guidance", "negative", "sampler", "seed", "dtype", "encoder", *command.own)
    flags: dict[str, Any] = {name: settings.get(name) for name in names}
    flags["embeddings"] = Path(settings["embeddings"]) if settings.get("embeddings") else None
    flags |= {name: Path(settings[name]) for name in command.files}
    for name in (name for name, kind in command.own.items() if kind is list):
        flags[name] = () if getattr(command, name) else tuple(settings[name])
    flags |= command.flags(settings["prompts"])
    return type(command)(output=path.with_name(f"{path.stem}-again.png"), like=path, **flags)


def _settings(command: Drawing, path: Path) -> dict[str, Any]:
    try:
        settings = pictures.read_settings(path)
    except ValueError as error:
        raise BadInput(f"--like is {error}") from error
    kinds = {"model": str, "n": int, "steps": int, "guidance": (int, float), "negative": str, "sampler": str}
    kinds |= {"seed": int, "dtype": str, "prompts": list, "hash": str, "versions": dict, "keep": int, "device": str}
    kinds |= dict.fromkeys(("encoder", "embeddings", "embeddings_sha256"), (str, NoneType))
    kinds |= command.own | {key: str for name in command.files for key in (name, f"{name}_sha256")}
    wrong = [name for name, kind in kinds.items() if not isinstance(settings.get(name), kind)]
    if not wrong:
        lists = [name for name, kind in kinds.items() if kind is list]
        wrong = [name for name in lists if not all(isinstance(entry, str) for entry in settings[name])]
        at, size = settings.get("image"), (command.count(settings["prompts"]), settings["n"])
        if at is not None and at not in [[i, j] for i in range(size[0]) for j in range(size[1])]:
            wrong.append("image")
        try:
            command.flags(settings["prompts"])
        except ValueError:
            wrong.append("prompts")
    if settings.get("command") != command.name or wrong:
        what = f"without usable {', '.join(wrong)}" if wrong else "of another command"
        raise BadInput(f"--like is {path}, a picture {what}, accepted is one that jdiff {command.name} wrote")
    return settings


def check(command: Drawing) -> None:
    """Nothing; raises BadInput for the first thing that is wrong, as far as that shows without the model and files."""
    command.check()
    texts = command.texts()
    for name, text in [("prompt", text) for text in texts] + [("--negative", command.negative)]:
        demand(is_unicode(text), f"{name} is {text!a}, accepted is text in UTF-8")
    demand(command.n >= 1, f"-n is {command.n}, accepted is 1 or more")
    steps, guidance = command.steps, command.guidance
    demand(steps is None or 1 <= steps <= 1000, f"--steps is {steps}, accepted is 1 to 1000")
    demand(guidance is None or math.isfinite(guidance), f"--guidance is {guidance}, accepted is any finite number")
    demand(0 <= command.seed <= LARGEST_SEED, f"--seed is {command.seed}, accepted is 0 to {LARGEST_SEED}")
    demand(command.dtype in DTYPES, f"--dtype is {command.dtype}, accepted are {', '.join(DTYPES)}")
    demand(command.model != "", "--model is empty, accepted is the name of a model or its folder")
    demand(command.encoder != "", "--encoder is empty, accepted is the folder of a text encoder")
    outputs = [("-o", command.output, ".png"), ("--gif", command.gif, ".gif"), ("--npz", command.npz, ".npz")]
    outputs.append(("--mp4", command.mp4, ".mp4"))
    if command.separate:
        places = [(i, j) for i in range(command.count(texts)) for j in range(command.n)]
        outputs += [("--separate", _alone(command.output, i, j), ".png") for i, j in places]
    video = command.mp4 is None or pictures.has_video()
    demand(video, f"--mp4 is {command.mp4}, accepted once imageio is there: pip install 'jdiff[video]'")
    read = (getattr(command, name) for name in (*command.files, "embeddings"))
    inputs = [path.resolve() for path in read if path is not None]
    for flag, path, suffix in outputs:
        if path is not None:
            check_output(flag, path, suffix)
            demand(path.resolve() not in inputs, f"{flag} is {path}, which is read, accepted is another file")


def make(command: Drawing) -> str:
    """One line that says what was written; raises BadInput, and then nothing was."""
    check(command)
    before = _settings(command, command.like) if command.like else None
    files = command.read()
    known, known_sha256 = _known(command.embeddings)

    cache_compilations()
    import jax

    from jdiff import mesh
    from jdiff.model import load
    from jdiff.sample import SAMPLERS

    pictures_drawn = command.count(command.texts()) * command.n
    if pictures_drawn > 1:
        mesh.use_cores()

    names = ", ".join(sorted(SAMPLERS))
    demand(command.sampler in (None, *SAMPLERS), f"--sampler is {command.sampler}, accepted are {names}")
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_: _note(str(message))
        texts, cache = [command.negative, *command.texts()], cache_folder("prompts")
        text = {"known": known, "encoder": command.encoder, "texts": texts, "cache": cache}
        model = accepted(lambda: interruptible(lambda: load(command.model, dtype=command.dtype, **text)))
        fitted = command.fit(model, files)
        sampler = command.sampler or model.defaults.sampler
        steps = SAMPLERS[sampler].steps if command.sampler else model.defaults.steps
        steps = steps if command.steps is None else command.steps
        weights = command.hash(model, fitted)
        settings = _filled(command, files, model, weights, sampler, steps, before)
        settings["embeddings_sha256"] = known_sha256
        keep = settings["keep"]
        if before:
            _note_differences(settings, before, command.files)
        with _Bar(settings["steps"], command.quiet) as progress:

            def run() -> tuple[np.ndarray, np.ndarray | None]:
                names = ("n", "steps", "guidance", "negative", "sampler", "keep")
                how = {name: settings[name] for name in names}
                how["mesh"] = mesh.over_devices() if pictures_drawn >= jax.device_count() else None
                made = command.draw(model, fitted, jax.random.key(settings["seed"]), progress=progress, **how)
                return np.array(made.images, np.float32), np.asarray(made.way, np.float32) if keep else None

            made, way = accepted(lambda: interruptible(run))
    broken = [(i, j) for i, j in np.ndindex(made.shape[:2]) if not np.isfinite(made[i, j]).all()]
    advice = f"try a wider dtype than {command.dtype}, or less guidance than {settings['guidance']}"
    demand(len(broken) < pictures_drawn, f"no picture is finite; {advice}")
    if broken:
        places = ", ".join(f"{j} of prompt {i}" for i, j in broken)
        _note(f"{len(broken)} of {pictures_drawn} pictures are not finite and left black: {places}; {advice}")
        for i, j in broken:
            made[i, j] = -1
    return write(command, settings, fitted, made, way if command.kept() else None)


def _known(path: Path | None) -> tuple[Mapping[str, np.ndarray], str | None]:
    """(the prompts' embeddings in the file of --prompts, its sha256)."""
    if path is None:
        return {}, None
    demand(is_unicode(str(path)), f"--prompts is {str(path)!a}, accepted is a path in UTF-8")
    from jdiff.checkpoints import digests
    from jdiff.text import embeddings

    table = accepted(lambda: embeddings.read(path), "--prompts is ")
    return table, digests.sha256(path)


def _filled(
    command: Drawing,
    files: dict[str, File],
    model: Any,
    weights: str,
    sampler: str,
    steps: int,
    before: dict[str, Any] | None,
) -> dict[str, Any]:
    """All settings of a picture, as they go into its file."""
    import jax

    texts = list(command.texts())
    same = before is not None and (texts, command.n) == (before["prompts"], before["n"])
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
        "steps": steps,
        "guidance": float(model.defaults.guidance if command.guidance is None else command.guidance),
        "negative": command.negative,
        "encoder": command.encoder,
        "embeddings": str(command.embeddings) if command.embeddings else None,
        "embeddings_sha256": None,
        "sampler": sampler,
        "seed": command.seed,
        "dtype": command.dtype,
        # another program may round differently
        "keep": command.kept() or (before["keep"] if before else 0),
        "image": before.get("image") if before and same else None,  # [prompt, picture] in a file of one picture
        "device": jax.devices()[0].device_kind,
        "versions": {"jdiff": jdiff.__version__} | {name: version(name) for name in PACKAGES},
    }


def _note(text: str) -> None:
    print(f"jdiff: note: {text}", file=sys.stderr)


def _note_differences(now: dict[str, Any], before: dict[str, Any], files: Sequence[str]) -> None:
    """One line on stderr where what made the picture is not what makes it again, unless another model is asked for."""
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
    versions = before["versions"]
    for name, number in now["versions"].items():
        if number != versions.get(name):
            changed.append(f"{name} {number} (was {versions.get(name)})")
    if changed:
        _note(f"not the same as when the picture was made, which may change it: {', '.join(changed)}")


def write(command: Drawing, settings: dict[str, Any], fitted: Any, made: np.ndarray, way: np.ndarray | None) -> str:
    """One line that names the files written, from images [p n h w c] and their way [p n m h w c]."""
    p, n, height, width = made.shape[:4]
    texts = command.texts()
    written = []
    if command.npz:
        rows = [text for text in (texts if len(texts) == p else [texts]) for _ in range(n)]
        with pictures.beside(command.npz) as file:
            np.savez_compressed(file, images=made.reshape(p * n, *made.shape[2:]), prompts=np.array(rows))
        written.append(command.npz)
    if command.gif or command.mp4:
        frames = command.frames(made, None if way is None else np.nan_to_num(way), fitted)
        sheets = np.stack([sheet(*frame) for frame in frames])
        for path, save in ((command.gif, pictures.save_gif), (command.mp4, pictures.save_mp4)):
            if path is not None:
                save(path, sheets, seconds=max(3.0, len(frames) / 20))
                written.append(path)
    if command.separate:
        for i in range(p):
            for j in range(n):
                path = _alone(command.output, i, j)
                pictures.save(path, made[i, j], settings | {"image": [i, j]})
                written.append(path)
    only = settings["image"]
    whole = sheet(*command.shown(made, fitted)) if only is None else made[only[0], only[1]]
    pictures.save(command.output, whole, settings)
    names = ", ".join(map(str, [command.output, *written]))
    return f"wrote {names}: {p * n} {'picture' if p * n == 1 else 'pictures'}, {width} x {height}"


def sheet(rows: np.ndarray, labels: Sequence[str]) -> np.ndarray:
    """Labelled sheet [h w 3] uint8 of images [r n h w c]: row by row, or where there is but one, in a square under it.

    >>> sheet(np.zeros((1, 4, 32, 32, 3)), ["a red three"]).dtype
    dtype('uint8')
    """
    labels = [label.strip() or "(no prompt)" for label in labels]
    r, n = rows.shape[:2]
    if r > 1:
        return pictures.grid(rows, labels)
    root = math.isqrt(n - 1) + 1
    columns = next((c for c in range(root, 2 * root) if n % c == 0), root)
    cells = np.full((-(-n // columns) * columns, *rows.shape[2:]), np.nan, np.float32)
    cells[:n] = rows[0]
    return pictures.grid(cells.reshape(-1, columns, *rows.shape[2:]), title=labels[0], cell=192 if n <= 4 else 128)


def _alone(output: Path, i: int, j: int) -> Path:
    return output.with_name(f"{output.stem}-{i}-{j}{output.suffix}")


def convert(command: Convert) -> str:
    """One line that says what was written; raises BadInput with everything that is wrong with the source."""
    source, target = command.source, command.target
    from jdiff.checkpoints import hub

    if hub.is_name(source):
        source = accepted(lambda: hub.find(str(source), half=command.dtype != "float32"))
    demand(source.is_dir(), f"SRC is {source}, accepted is a folder with config.json and its safetensors")
    demand(not target.is_file(), f"DST is {target}, a file, accepted is a folder to write")
    parent = target.absolute().parent
    demand(parent.is_dir(), f"DST is {target}, but there is no folder {parent}, accepted is a folder that exists")
    from jdiff.checkpoints.convert import convert as run

    try:
        run(source, target, dtype=command.dtype)
    except ValueError as error:
        raise BadInput(str(error)) from error
    return f"wrote {target}"


def embed(command: Embed) -> str:
    """One line that says what was written, or one for each prompt of a file; raises BadInput with what is wrong."""
    from jdiff.text import embeddings
    from jdiff.text import encoder as encoders

    if (listed := command.list) is not None:
        table = accepted(lambda: embeddings.read(listed), "--list is ")
        return "\n".join(f"{prompt!r} {list(x.shape)} {x.dtype}" for prompt, x in table.items())
    for prompt in command.prompts:
        demand(is_unicode(prompt), f"prompt is {prompt!a}, accepted is text in UTF-8")
    given = bool(command.prompts) or command.embeddings is not None
    demand(given, "no prompt is given, accepted is one or more, such as jdiff embed 'a red three' --encoder FOLDER")
    output, suffix = command.output, ".safetensors"
    check_output("-o", output, suffix)
    same = command.embeddings is not None and command.embeddings.resolve() == output.resolve()
    demand(not same, f"-o is {output}, which is read, accepted is another file")
    table = dict(_known(command.embeddings)[0])
    missing = [prompt for prompt in dict.fromkeys(command.prompts) if prompt not in table]
    if missing:
        wanted = "accepted is the folder of a text encoder that `jdiff convert` wrote"
        demand(bool(command.encoder), f"--encoder is not given, {wanted}")
        cache_compilations()

        def run() -> np.ndarray:
            found = encoders.find(str(command.encoder), clean=command.clean, dtype=command.dtype)
            return embeddings.embedder(encoder=found, cache=cache_folder("prompts"))(missing)

        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_: _note(str(message))
            table |= dict(zip(missing, accepted(lambda: interruptible(run)), strict=True))
    accepted(lambda: embeddings.write(output, table), "-o: ")
    return f"wrote {output}: {len(table)} {'prompt' if len(table) == 1 else 'prompts'}"


def mnist(command: Mnist) -> str:
    """What the command says it wrote; raises BadInput, and then nothing was."""
    cache_compilations()
    return interruptible(command)


RUN: dict[type, Callable[[Any], str]] = {Embed: embed, Convert: convert, Mnist: mnist}


def cache_folder(name: str) -> Path | None:
    """Where what is made of that kind is kept: in $JDIFF_CACHE or else ~/.cache/jdiff; None where that is empty.

    XLA's programs lie in $JDIFF_CACHE itself, or in ~/.cache/jdiff/xla.
    """
    given = os.environ.get("JDIFF_CACHE")
    if given == "":
        return None
    try:
        if given:
            return Path(given).expanduser() / ("" if name == "xla" else name)
        return Path.home() / ".cache" / "jdiff" / name
    except RuntimeError:  # no home
        return None


def cache_compilations() -> None:
    """Nothing; has XLA keep its programs in the cache's folder, unless there is none or it fails."""
    folder = cache_folder("xla")
    if folder is None:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
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
