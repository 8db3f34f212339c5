"""Reads damaged files of embeddings and weights, and counts what happens.

    python scripts/fuzz_files.py --count 1500

Reading a damaged file must raise a ValueError of one line that names the file, or return the numbers that were written.
`.npy`, PyTorch's older format and safetensors of other programs have no checksum, so a changed number cannot be noticed
there. For these formats, wrong numbers are counted but allowed.
"""

import io
import signal
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tyro
from safetensors.numpy import save

from jdiff.checkpoints import files
from jdiff.text import embeddings

LONGEST = 10  # seconds that reading a damaged file may take
Table = Mapping[str, np.ndarray]
OUTCOMES = ("refused", "right", "other numbers", "raised", "slow")


class Format(NamedTuple):
    """A kind of file."""

    suffix: str
    make: Callable[[Path, Table], object]  # writes a file
    checked: bool  # whether the format has a checksum or a digest
    read: Callable[[Path, Table], Table] = lambda path, table: embeddings.read(path)


def _torch(path: Path, table: Table, **how: Any) -> None:
    import torch

    torch.save({prompt: torch.as_tensor(x)[None] for prompt, x in table.items()}, path, **how)


def _only(path: Path, table: Table) -> None:
    np.save(path, table[""])


FORMATS: dict[str, Format] = {
    ".safetensors of `jdiff embed`": Format(".safetensors", embeddings.write, True),
    ".safetensors of others": Format(".safetensors", lambda p, t: p.write_bytes(save(dict(t))), False),
    ".npz": Format(".npz", lambda p, t: np.savez(p, **t), True),
    ".npz, compressed": Format(".npz", lambda p, t: np.savez_compressed(p, **t), True),
    ".npy": Format(".npy", _only, False),
    ".pth": Format(".pth", _torch, True),
    ".pth, older": Format(".pth", lambda p, t: _torch(p, t, _use_new_zipfile_serialization=False), False),
    "weights, model.safetensors": Format(
        ".safetensors", lambda p, t: files.save(p, {f"a.{i}": x for i, x in enumerate(t.values())}), True,
        lambda p, t: dict(zip(t, files.load(p, {"a": {str(i): x for i, x in enumerate(t.values())}})["a"].values(),
                              strict=True)),
    ),
}  # fmt: skip


def table(rng: np.random.Generator) -> Table:
    """Draws small embeddings of prompts."""
    prompts = ("", "a photo of a dog", "an oil painting of a snowy mountain village", "ein grünes Haus")
    return {prompt: rng.normal(size=(7, 16)).astype(np.float16) for prompt in prompts}


def damaged(data: bytes, rng: np.random.Generator) -> bytes:
    """Damages a file in one of eight ways, drawn at random."""
    out, n = bytearray(data), len(data)
    at, size = int(rng.integers(n)), int(rng.integers(1, 65))
    kind = rng.integers(8)
    if kind == 0:  # one bit
        out[at] ^= 1 << int(rng.integers(8))
    elif kind == 1:  # one byte
        out[at] = (out[at] + int(rng.integers(1, 256))) % 256
    elif kind == 2:  # a few bytes
        for i in rng.integers(n, size=int(rng.integers(2, 9))):
            out[i] = int(rng.integers(256))
    elif kind == 3:  # a block of zeros
        out[at : at + size] = bytes(len(out[at : at + size]))
    elif kind == 4:  # the end is missing
        del out[at:]
    elif kind == 5:  # a block is missing
        del out[at : at + size]
    elif kind == 6:  # a block is there twice
        out[at:at] = out[at : at + size]
    else:  # two bytes are swapped
        other = int(rng.integers(n))
        out[at], out[other] = out[other], out[at]
    return bytes(out)


def outcome(form: Format, path: Path, want: Table) -> tuple[str, str]:
    """Reads a file, and returns one of OUTCOMES and the error message."""

    def late(*_: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, LONGEST)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # a user would see a warning on stderr
            found = form.read(path, want)
    except ValueError as error:
        line = str(error)
        return ("refused" if str(path) in line and "\n" not in line else "raised"), line
    except TimeoutError:
        return "slow", ""
    except BaseException as error:  # a panic of pyo3 is no Exception
        return "raised", f"{type(error).__name__}: {error}"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    same = found.keys() == want.keys() and all(
        found[k].dtype == x.dtype and found[k].shape == x.shape and found[k].tobytes() == x.tobytes()
        for k, x in want.items()
    )
    return ("right" if same else "other numbers"), ""


def fuzz(name: str, count: int, seed: int, folder: Path) -> tuple[Counter[str], list[str]]:
    """Damages a file of one format `count` times.

    Returns:
        How often each of OUTCOMES happened, and the messages of the bad ones.
    """
    form, rng = FORMATS[name], np.random.default_rng(seed)
    want = table(rng)
    want = {"": want[""]} if form.suffix == ".npy" else want
    path = folder / f"whole{form.suffix}"
    form.make(path, want)
    data, seen, said = path.read_bytes(), Counter(), []
    if outcome(form, path, want)[0] != "right":
        raise ValueError(f"{name}: the undamaged file is not read as it was written")
    path = folder / f"damaged{form.suffix}"
    for _ in range(count):
        broken = damaged(data, rng)
        path.write_bytes(broken)
        kind, line = outcome(form, path, want)
        kind = "right" if broken == data else kind
        seen[kind] += 1
        said += [line] if kind in ("raised", "slow") else []
    return seen, said


def main(count: int = 1500, seed: int = 0) -> None:
    """Damages a file of every format `count` times, and prints a table.

    Args:
        count: damaged files of each format.
        seed: of everything random.
    """
    out = io.StringIO()
    print("| format | checksum | " + " | ".join(OUTCOMES) + " | seconds |", file=out)
    print("|---|---|" + "---|" * (len(OUTCOMES) + 1), file=out)
    bad = []
    with tempfile.TemporaryDirectory() as folder:
        for name, form in FORMATS.items():
            began = time.monotonic()
            seen, said = fuzz(name, count, seed, Path(folder))
            took = time.monotonic() - began
            row = [name, "yes" if form.checked else "no", *(str(seen[kind]) for kind in OUTCOMES), f"{took:.0f}"]
            print("| " + " | ".join(row) + " |", file=out, flush=True)
            bad += [f"{name}: {line}" for line in said]
            bad += [f"{name}: other numbers"] * (seen["other numbers"] if form.checked else 0)
    print(out.getvalue(), end="")
    for line in bad:
        print(line)
    if bad:
        raise SystemExit(1)


if __name__ == "__main__":
    tyro.cli(main)
