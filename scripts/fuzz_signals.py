"""Interrupts and kills commands at random moments, and checks what they leave.

    python scripts/fuzz_signals.py --count 100 --data data/tensorflow_datasets

Half of the signals come at any moment of the run, the other half soon after a command has started to write a file.
After every signal, each output file must be the old one or a complete new one. After SIGINT, the command must end with
status 130, without a traceback and without a part of a file. Training continues after each signal, and must finish in
the end.
"""

import argparse
import contextlib
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from safetensors.numpy import save_file

from jdiff import images
from jdiff.checkpoints import files
from jdiff.model import shipped

# What the console script does. It creates a file once jdiff handles signals; before that, Python does.
ENTRY = """
import sys
from jdiff.cli import main, process
mark, after = sys.argv.pop(1), process.open_streams
process.open_streams = lambda: (open(mark, "w").close(), after())  # which is called when signals are handled
sys.exit(main.main())
"""
# Seconds after which a run counts as hanging.
LONGEST = 300
SIGNALS = {"SIGINT": signal.SIGINT, "SIGKILL": signal.SIGKILL}


class Job(NamedTuple):
    """A command."""

    args: list[str]
    outputs: list[str]  # files or folders that it writes
    prepare: Callable[[Path], None]  # prepares a folder for another run


def jobs(data: str | None) -> dict[str, Job]:
    """Returns the commands by name. Training is one of them if there is MNIST."""
    separate = [f"w-{i}-{j}.png" for i in (0, 1) for j in (0, 1)]
    pictures = ["w.png", *separate, "w.npz", "w.gif"]
    draw = ["generate", "a red three", "a blue six", "-n", "2", "--steps", "3", "--separate", "--quiet"]
    words = [f"a {colour} {digit}" for colour in ("red", "green", "blue") for digit in ("one", "two", "three", "four")]
    found = {
        "generate": Job([*draw, "-o", "w.png", "--gif", "w.gif", "--npz", "w.npz"], pictures, lambda folder: None),
        "convert": Job(["convert", "t5", "new"], ["new"], lambda folder: shutil.rmtree(folder / "new", True)),
        "embed": Job(
            ["embed", *words, "--encoder", str(shipped("mini") / "text_encoder"), "-o", "e.safetensors"],
            ["e.safetensors"], lambda folder: shutil.rmtree(folder / "cache" / "prompts", True),
        ),
    }  # fmt: skip
    if data is not None:
        train = ["mnist", "train", "class", "--first", "96", "--batch", "16", "--width", "2", "--epochs", "4"]
        train += ["--save-every", "3", "--run", "run", "--data-dir", str(Path(data).resolve()), "--quiet"]
        found["mnist train"] = Job(train, ["run/model"], lambda folder: None)
    return found


def furnish(folder: Path) -> None:
    """Writes a text encoder of 130 MB in transformers' layout, for `convert`."""
    (folder / "t5").mkdir()
    d, inner, layers, vocabulary = 512, 1024, 8, 32128
    config = {
        "model_type": "t5", "d_model": d, "d_kv": 64, "d_ff": inner, "num_layers": layers, "num_heads": 8,
        "vocab_size": vocabulary, "feed_forward_proj": "gated-gelu", "relative_attention_num_buckets": 32,
        "relative_attention_max_distance": 128, "layer_norm_epsilon": 1e-6, "is_encoder_decoder": True,
    }  # fmt: skip
    (folder / "t5" / "config.json").write_text(json.dumps(config))
    rng = np.random.default_rng(0)
    shapes = {"shared.weight": (vocabulary, d), "encoder.final_layer_norm.weight": (d,)}
    shapes["encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"] = (32, 8)
    for i in range(layers):
        block = f"encoder.block.{i}.layer"
        shapes |= {f"{block}.0.SelfAttention.{name}.weight": (d, d) for name in "qkvo"}
        shapes |= {f"{block}.{j}.layer_norm.weight": (d,) for j in (0, 1)}
        shapes |= {f"{block}.1.DenseReluDense.{name}.weight": (inner, d) for name in ("wi_0", "wi_1")}
        shapes[f"{block}.1.DenseReluDense.wo.weight"] = (d, inner)
    tensors = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    save_file(tensors, folder / "t5" / "model.safetensors")


@contextlib.contextmanager
def inherited(number: int, handler: signal.Handlers) -> Iterator[None]:
    """Sets the action of a signal in processes that are started inside the block."""
    before = signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, before)


def start(job: Job, folder: Path) -> subprocess.Popen:
    """Starts a command, and returns once it handles signals. Slow imports come later."""
    mark = folder / "mark"
    mark.unlink(missing_ok=True)
    environment = os.environ | {"JDIFF_CACHE": str(folder / "cache")}
    with inherited(signal.SIGINT, signal.SIG_DFL):
        process = subprocess.Popen(
            [sys.executable, "-c", ENTRY, str(mark), *job.args], cwd=folder, env=environment, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )  # fmt: skip
    while not mark.exists() and process.poll() is None:
        time.sleep(0.001)
    return process


def parts(folder: Path) -> list[Path]:
    """Returns the unfinished files in the folder and in the cache."""
    found = []
    for place, folders, names in os.walk(folder):  # which passes over folders that are removed meanwhile
        if "checkpoints" in folders:
            folders.remove("checkpoints")
        found += [Path(place) / name for name in (*folders, *names) if name.endswith(".part")]
    return found


def wait_for_part(process: subprocess.Popen, folder: Path) -> None:
    """Waits until the process starts to write a file, or ends."""
    before = set(parts(folder))
    while process.poll() is None and not set(parts(folder)) - before:
        time.sleep(0.0005)


def whole(path: Path) -> str:
    """Reads a file or folder to its end, and returns what is wrong with it, or an empty string."""
    try:
        if path.is_dir():
            files.check(path)
        elif path.suffix == ".safetensors":
            files.check(path)
        elif path.suffix == ".npz":
            with np.load(path) as arrays:
                assert arrays["images"].shape[0] == len(arrays["prompts"]) == 4
        elif path.suffix == ".gif":
            with Image.open(io.BytesIO(path.read_bytes())) as moving:
                for frame in range(moving.n_frames):  # pyright: ignore[reportAttributeAccessIssue]
                    moving.seek(frame)
                    moving.load()
        else:
            images.load(path)
            images.read_settings(path)
    except Exception as error:  # a half-written file can raise anything
        return f"{path.name} is not whole: {type(error).__name__} {error}"
    return ""


def trial(name: str, job: Job, folder: Path, number: int, late: bool, moment: float) -> tuple[str, list[str]]:
    """Runs a command and sends it a signal.

    Args:
        name: of the command.
        job: the command.
        folder: where it runs.
        number: of the signal.
        late: whether to wait first until a file is being written.
        moment: seconds from then, or from the start, to the signal.

    Returns:
        How the command ended, and all failures.
    """
    job.prepare(folder)
    for path in parts(folder):  # of the run before
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    process = start(job, folder)
    if late:
        wait_for_part(process, folder)
    deadline = time.monotonic() + moment
    while process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.0005)
    alive = process.poll() is None
    process.send_signal(number)
    try:
        out, err = process.communicate(timeout=LONGEST)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return "hung", [f"{name} hung"]
    wrong = [problem for output in job.outputs if (folder / output).exists() and (problem := whole(folder / output))]
    status = process.returncode
    if number == signal.SIGKILL:
        how = "killed" if status == -signal.SIGKILL else "had ended"
        wrong += [] if status in (-signal.SIGKILL, 0) else [f"status {status}: {err[-300:]!r}"]
    else:
        wrote = b"wrote " in out
        how = "130" if status == 130 else "had ended" if status == 0 and (wrote or not alive) else f"status {status}"
        wrong += [] if how in ("130", "had ended") else [f"{how}: {err[-300:]!r}"]
        wrong += [f"left {path.name}" for path in parts(folder)]
    wrong += ["a traceback"] if b"Traceback" in err else []
    wrong += [f"{output} is gone" for output in job.outputs if name != "convert" and name != "mnist train"
              and not (folder / output).exists()]  # fmt: skip
    return how, wrong


def main() -> None:
    """Sends signals and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100, help="number of signals of each kind, over all commands")
    parser.add_argument("--seed", type=int, default=0, help="of everything random")
    parser.add_argument("--data", help="folder of TensorFlow Datasets, with MNIST; without it, training is left out")
    args = parser.parse_args()
    dice, all_wrong = random.Random(args.seed), []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        furnish(folder)
        all_jobs = jobs(args.data)
        lengths = {}
        for command, job in all_jobs.items():
            for _ in range(2):  # the second run has everything in the compilation cache
                job.prepare(folder)
                shutil.rmtree(folder / "run", ignore_errors=True)
                began = time.monotonic()
                process = start(job, folder)
                _, err = process.communicate(timeout=LONGEST)
                if process.returncode != 0:
                    raise SystemExit(f"{command} fails without a signal: {err.decode()[-1000:]}")
                lengths[command] = time.monotonic() - began
            print(f"{command}: {lengths[command]:.1f} s", flush=True)
        shutil.rmtree(folder / "run", ignore_errors=True)
        table: Counter = Counter()
        for kind, number in SIGNALS.items():
            for i in range(args.count):
                command = list(all_jobs)[i % len(all_jobs)]
                late = (i // len(all_jobs)) % 2 == 1
                moment = dice.uniform(0, 0.03) if late else dice.uniform(0, lengths[command])
                how, wrong = trial(command, all_jobs[command], folder, number, late, moment)
                table[kind, command, how] += 1
                for problem in wrong:
                    all_wrong.append(problem)
                    print(f"{kind} {command} {'late' if late else 'early'} {moment:.3f}: {problem}", flush=True)
                if command == "mnist train" and (folder / "run" / "model").exists():
                    shutil.rmtree(folder / "run")  # finished: the next signal meets a new run
        if "mnist train" in all_jobs:
            process = start(all_jobs["mnist train"], folder)
            _, err = process.communicate(timeout=LONGEST)
            if process.returncode != 0:
                all_wrong.append("training does not continue")
                print(f"training does not continue: {err.decode()[-1000:]}")
    for (kind, command, how), count in sorted(table.items()):
        print(f"{kind:8s} {command:12s} {how:10s} {count:4d}")
    print(f"{2 * args.count} signals, {len(all_wrong)} failures")
    raise SystemExit(bool(all_wrong))


if __name__ == "__main__":
    main()
