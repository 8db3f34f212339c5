"""Measures how far jdiff is from diffusers and transformers, and writes docs/parity.md.

    python scripts/parity.py          # parts, small networks, the six pipelines, the Gaussian law
    python scripts/parity.py --full   # also IF-I-M at its published size and one layer of T5 XXL

The comparisons are in parity_rungs.py (parts and networks), parity_pipelines.py (whole sampling loops) and
parity_laws.py (the Gaussian law). The tests check all of them. Needs the extra `torch`.
"""

import tempfile
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import parity_laws
import parity_pipelines
import torch
import tyro
from parity_rungs import (
    GROUPS,
    IF_I_M,
    Errors,
    Rung,
    UNet2DConditionModel,
    call_ours,
    call_theirs,
    inputs_of,
    lifted,
    quietly,
    randomise,
    relative,
    xxl_layer,
)

from jdiff.checkpoints import convert, files, int8
from jdiff.networks import unet
from jdiff.parts import write_text
from jdiff.results import machine as this_machine
from jdiff.results import table

DTYPES = ("float64", "float32", "bfloat16")
PAGE = Path(__file__).resolve().parents[1] / "docs" / "parity.md"


def exact(rung: Rung) -> np.ndarray:
    """Returns torch's output, all in float64: the reference of all errors."""
    with lifted(), torch.no_grad():
        return rung.theirs(rung.module, *map(torch.as_tensor, rung.inputs)).double().numpy()


def _narrow(x: np.ndarray, dtype: str) -> str:
    """Returns the dtype of an input. Timesteps (one dimension) are at least float32: in bfloat16, 990 would be 992."""
    return "float32" if x.ndim == 1 and dtype != "float64" else dtype


def ours(rung: Rung, dtype: str) -> np.ndarray:
    """Returns our output in a dtype."""
    inputs = [x.astype(_narrow(x, dtype)) if x.dtype == np.float64 else x for x in rung.inputs]
    params = jax.tree.map(lambda x: jnp.asarray(x, dtype), rung.params)
    y = jax.jit(rung.ours)(params, *map(jnp.asarray, inputs))
    return np.asarray(y.astype(jnp.promote_types(y.dtype, jnp.float32)))


def theirs(rung: Rung, dtype: str) -> np.ndarray:
    """Returns torch's output in a dtype."""
    module = quietly(rung.module, getattr(torch, dtype))
    inputs = [
        torch.as_tensor(x).to(getattr(torch, _narrow(x, dtype)) if x.dtype == np.float64 else torch.int64)
        for x in rung.inputs
    ]
    with torch.no_grad():
        return rung.theirs(module, *inputs).double().numpy()


def measure(rung: Rung, dtype: str) -> Errors:
    """Measures both sides in a dtype. In float64, torch's error comes from its own casts to float32."""
    truth = exact(rung)
    with jax.enable_x64(dtype == "float64"):
        error = relative(ours(rung, dtype), truth)
    return Errors(error, relative(theirs(rung, dtype), truth))


def in_int8(rung: Rung) -> float:
    """Returns the error of our float32 output when the kernels are stored in int8."""

    def stored(tree: dict) -> dict:
        if list(tree) == ["kernel"]:
            tree = dict(zip(("kernel", "scale"), int8.quantise(tree["kernel"]), strict=True))
        return {k: stored(v) if isinstance(v, dict) else v for k, v in tree.items()}

    like = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, jnp.float32), rung.params)
    params = jax.tree.map(np.asarray, int8.restore(stored(rung.params), like))
    return relative(ours(rung._replace(params=params), "float32"), exact(rung))


def measure_full(folder: Path) -> Errors:
    """Measures IF-I-M at its published size in float32, with random weights that are written, converted and loaded.

    Args:
        folder: for the weights, 4 GB.
    """
    torch.manual_seed(0)
    module: Any = randomise(UNet2DConditionModel(**IF_I_M))
    module.save_pretrained(folder / "theirs" / "unet", max_shard_size="400MB")
    config = unet.read_config(dict(module.config))
    inputs = inputs_of(config, 1, 64, 64, 77)
    with torch.no_grad():
        own = call_theirs(module, *(torch.as_tensor(x).float() for x in inputs)).double().numpy()
        with lifted():
            truth = call_theirs(module.double(), *map(torch.as_tensor, inputs)).numpy()
    del module
    path = convert.convert(folder / "theirs", folder / "ours") / "unet"
    made = unet.unet(unet.read_config(path))
    params = jax.tree.map(jnp.asarray, files.load(path, made.params))
    got = jax.jit(call_ours, static_argnums=0)(made.apply, params, *(jnp.asarray(x, jnp.float32) for x in inputs))
    return Errors(relative(got, truth), relative(own, truth))


TOP = """# How far jdiff is from the originals

Each row of the table is one part of a network. Both sides get the same random weights and inputs, and the inputs are
not square. The reference is torch in float64. An error is the largest difference from the reference, divided by the
largest value of the reference. The columns "torch" are the errors of diffusers or transformers in the same dtype, so
they show how much of jdiff's error is rounding.

Even in float64, torch casts a few values to float32: the sinusoid, the softmax of the text pooling, and T5's variance.
The reference is computed without these casts. The errors in the first column "torch" come from them.

The tests require an error below 1e-12 in float64, and at most 4 times torch's own error in float32 and bfloat16.
Timesteps stay in float32, because 990 would be 992 in bfloat16.

Measured by `{command}` on {machine}: jax {jax}, torch {torch}, diffusers {diffusers}, transformers {transformers}.

{rows}
"""
HELD = """
The slow tests in `tests/test_parity.py` check IF-I-M at its full size (371,605,830 parameters, float32, converted from
shards) and one layer of T5 XXL with the same bounds. `python scripts/parity.py --full` adds their numbers here.
"""
INT8 = """
The last row is one layer of T5 XXL with its final norm: width 4096, 64 heads of 64, feed-forward 10240, two prompts of
77 tokens, one of them padded. When its kernels are stored in int8 (symmetric, one scale for each output channel), the
error of jdiff's float32 output is {:.1e}. This holds for random weights. Trained weights have larger outliers.
"""
LOOPS = """
## Whole loops

This table compares diffusers' six IF pipelines with jdiff's tasks. Both sides get the same small random networks,
embeddings, pictures and noise. Each loop takes several guided steps with learned variance and dynamic thresholding, on
two images of 16 x 24. In float64 both sides use the scheduler's float32 values of abar, and torch's casts are removed.
The tests require an error below 1e-8 in float64, and at most 4 times torch's own error in float32.

{rows}
"""


def row(name: str, errors: Sequence[Errors]) -> tuple[str, ...]:
    """Returns a rung's row of the page."""
    return (name, *(f"{x:.1e}" if x else "0" for pair in errors for x in pair))


def main(full: bool = False, machine: str = "", page: Path = PAGE) -> None:
    """Measures everything and writes the page.

    Args:
        full: also measure IF-I-M at its published size and one layer of T5 XXL. This takes 10 GB of memory, 4 GB of
            disk and some minutes.
        machine: description of the machine for the page; detected if not given.
        page: file to write to.
    """
    rows, note = [], HELD
    for group, rungs in GROUPS.items():
        for rung in rungs():
            rows.append(row(rung.name, [measure(rung, dtype) for dtype in DTYPES]))
            print(group, *rows[-1], flush=True)
    if full:
        with tempfile.TemporaryDirectory() as folder:
            e = measure_full(Path(folder))
        name = "IF-I-M, 371,605,830 parameters, 64x64, converted from shards"
        rows.append((name, "", "", f"{e.ours:.1e}", f"{e.theirs:.1e}", "", ""))
        print(*rows[-1], flush=True)
        layer = xxl_layer()
        rows.append(row(layer.name, [measure(layer, dtype) for dtype in DTYPES]))
        note = INT8.format(in_int8(layer))
        print(*rows[-1], note, flush=True)
    loops = []
    for name, task in parity_pipelines.TASKS.items():
        double, single = parity_pipelines.measure(name)
        calls = int(task.steps * task.strength)
        loops.append((name, task.pipeline, calls, f"{double:.1e}", *(f"{x:.1e}" for x in single)))
        print(*loops[-1], flush=True)
    head = ("rung", *(title for dtype in DTYPES for title in (f"{dtype}, jdiff", "torch")))
    versions = {name: metadata.version(name) for name in ("jax", "torch", "diffusers", "transformers")}
    command = f"python scripts/parity.py{' --full' if full else ''}"
    top = TOP.format(command=command, machine=machine or this_machine(), rows=table(head, rows), **versions)
    loop_head = ("jdiff", "diffusers", "calls", "float64, jdiff", "float32, jdiff", "torch")
    page.parent.mkdir(exist_ok=True)
    write_text(page, top + note + LOOPS.format(rows=table(loop_head, loops)) + parity_laws.section())


if __name__ == "__main__":
    tyro.cli(main)
