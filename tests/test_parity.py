"""The ladder of parity with diffusers and transformers: primitives, blocks, networks, IF-I-M at its full size."""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdiff.networks import unet

pytest.importorskip("torch")
pytest.importorskip("diffusers")
pytest.importorskip("transformers")
sys.path.append(str(Path(__file__).resolve().parents[1] / "scripts"))
import parity  # noqa: E402  # pyright: ignore[reportMissingImports]
import parity_pipelines  # noqa: E402  # pyright: ignore[reportMissingImports]
import parity_rungs  # noqa: E402  # pyright: ignore[reportMissingImports]

RUNGS = {rung.name: rung for make in parity_rungs.GROUPS.values() for rung in make()}


@pytest.mark.parametrize("name", RUNGS)
def test_float64_is_exact(name):
    assert parity.measure(RUNGS[name], "float64").ours < 1e-12


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", RUNGS)
def test_error_is_at_most_four_times_torchs_own(name, dtype):
    errors = parity.measure(RUNGS[name], dtype)
    assert errors.ours <= 4 * errors.theirs
    assert errors.theirs < {"float32": 1e-3, "bfloat16": 0.2}[dtype]  # else the bound would say nothing


@pytest.mark.parametrize("name", RUNGS)
def test_rungs_have_outputs_of_order_one(name):
    assert 0.1 < np.abs(parity.exact(RUNGS[name])).std() < 30


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
def test_gelu_is_torchs_in_every_dtype(dtype, x64):
    """Within one rounding: a GELU that is computed in 16 bits is off by 100 times as much."""
    import torch

    x = np.linspace(-6, 6, 4001)
    ours = np.asarray(unet.gelu(jnp.asarray(x, dtype)), np.float64)
    theirs = torch.nn.functional.gelu(torch.tensor(x).to(getattr(torch, dtype))).double().numpy()
    inside = jnp.promote_types(dtype, jnp.float32)  # both compute x (1 + erf) in this, with |x| up to 6
    np.testing.assert_allclose(ours, theirs, rtol=float(jnp.finfo(dtype).eps), atol=12 * float(jnp.finfo(inside).eps))


def test_lifting_leaves_nothing_behind():
    before = (
        parity_rungs.embeddings.get_timestep_embedding,
        parity_rungs.torch.Tensor.float,
        jax.nn.dot_product_attention,
    )
    with parity_rungs.lifted():
        assert parity_rungs.torch.Tensor.float is not before[1]
    after = (
        parity_rungs.embeddings.get_timestep_embedding,
        parity_rungs.torch.Tensor.float,
        jax.nn.dot_product_attention,
    )
    assert before == after


@pytest.mark.parametrize("name", parity_pipelines.TASKS)
def test_whole_loops_equal_the_pipelines(name):
    double, single = parity_pipelines.measure(name)
    assert double < 1e-8
    assert single.ours <= 4 * single.theirs
    assert single.theirs < 1e-3


@pytest.mark.slow
def test_t5_at_xxls_width():
    rung = parity_rungs.xxl_layer()
    assert parity.measure(rung, "float64").ours < 1e-12
    for dtype, most in (("float32", 1e-3), ("bfloat16", 0.2)):
        errors = parity.measure(rung, dtype)
        assert errors.ours <= 4 * errors.theirs
        assert errors.theirs < most
    assert parity.in_int8(rung) < 0.1


@pytest.mark.slow
def test_if_i_m_at_its_published_size(tmp_path):
    errors = parity.measure_full(tmp_path)
    assert errors.ours <= 4 * errors.theirs
    assert errors.theirs < 1e-3
