"""`conv_by_patches` and the forms that CPUs use equal XLA's own, gradients included, on one device and on several."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdiff.networks import unet
from jdiff.training.conv import conv_by_patches
from jdiff.types import Conditioning


@pytest.mark.parametrize(
    ("n", "h", "w", "size", "stride", "up", "pad"),
    [
        (3, 6, 4, 1, 1, 1, 0), (3, 6, 4, 3, 1, 1, 1), (8, 6, 4, 3, 1, 1, 1), (3, 6, 4, 5, 1, 1, 2),
        (3, 6, 4, 3, 2, 1, 1), (2, 7, 5, 3, 2, 1, 1), (2, 7, 8, 3, 2, 1, 1), (3, 9, 4, 3, 3, 1, 0),
        (3, 6, 4, 4, 1, 2, 2), (3, 1, 1, 7, 1, 7, 6), (2, 5, 4, 4, 1, 3, 1),
        (3, 6, 4, 3, 1, 1, 0), (3, 6, 4, 4, 1, 1, 1), (3, 6, 4, 3, 1, 1, 2), (3, 6, 4, 3, 1, 2, 1),
    ],
)  # fmt: skip
@pytest.mark.parametrize("outputs", [1, 5])  # fewer and more than the inputs
@pytest.mark.parametrize("devices", [1, 2])
def test_it_equals_lax_and_so_do_its_gradients(n, h, w, size, stride, up, pad, outputs, devices, x64, monkeypatch):
    monkeypatch.setattr(jax, "local_device_count", lambda: devices)
    x = jax.random.normal(jax.random.key(0), (n, h, w, 2), jnp.float64)
    kernel = jax.random.normal(jax.random.key(1), (size, size, 2, outputs), jnp.float64)
    how = {"lhs_dilation": (up, up), "dimension_numbers": ("NHWC", "HWIO", "NHWC")}
    forms = (conv_by_patches, jax.lax.conv_general_dilated)
    run = lambda conv: lambda x, k: conv(x, k, (stride, stride), [(pad, pad)] * 2, **how)
    (a, back_a), (b, back_b) = (jax.vjp(run(conv), x, kernel) for conv in forms)
    assert a.shape == b.shape
    g = jax.random.normal(jax.random.key(2), a.shape, jnp.float64)
    for ours, want in zip((a, *back_a(g)), (b, *back_b(g)), strict=True):
        np.testing.assert_allclose(ours, want, atol=1e-12)


def test_half_precision_loses_no_more_than_lax_does():
    kernel, x = jnp.ones((3, 3, 1, 1)), jax.random.uniform(jax.random.key(0), (127, 28, 28, 1))
    g = jax.random.uniform(jax.random.key(1), x.shape)

    def gradient(conv, dtype):
        how = {"padding": ((1, 1), (1, 1)), "window_strides": (1, 1), "dimension_numbers": ("NHWC", "HWIO", "NHWC")}
        back = jax.vjp(lambda kernel: conv(x.astype(dtype), kernel, **how), kernel.astype(dtype))[1]
        return np.asarray(back(g.astype(dtype))[0], np.float32)

    want = gradient(jax.lax.conv_general_dilated, jnp.float32)
    ours, lax = (abs(gradient(f, jnp.bfloat16) - want).max() for f in (conv_by_patches, jax.lax.conv_general_dilated))
    assert 0 < ours <= 2 * lax


MESH = jax.make_mesh((4,), ("data",), devices=jax.devices()[:4], axis_types=(jax.sharding.AxisType.Auto,))
COLLECTIVES = ("all-reduce", "all-gather", "all-to-all", "collective-permute")


def collectives(hlo):
    """(computation, collective) of each one in the text of a compiled program."""
    found, computation = [], ""
    for line in hlo.splitlines():
        if line and not line.startswith((" ", "}")):
            computation = line.split()[0]
        found += [(computation, name) for name in COLLECTIVES if f" {name}(" in line]
    return found


def kernels_gradient(kernels, x):
    """Two convolutions of eight blocks of images each, which may run at the same time."""
    return jax.grad(lambda kernels: sum((conv_by_patches(x, k) ** 2).sum() for k in kernels))(kernels)


@pytest.mark.parametrize("n", [64, 6])  # 6 rows cannot be split over four devices
def test_each_device_computes_its_share_of_the_gradient(n):
    x = jax.random.normal(jax.random.key(0), (n, 28, 28, 2))
    kernels = [jax.random.normal(jax.random.key(i), (3, 3, 2, i)) for i in (1, 2)]
    alone = kernels_gradient(kernels, x)
    rows = jax.sharding.PartitionSpec("data") if n % 4 == 0 else jax.sharding.PartitionSpec()
    x = jax.device_put(x, jax.sharding.NamedSharding(MESH, rows))
    with jax.set_mesh(MESH):
        compiled = jax.jit(kernels_gradient).lower(kernels, x).compile()
    for ours, want in zip(compiled(kernels, x), alone, strict=True):
        np.testing.assert_allclose(ours, want, rtol=2e-4, atol=1e-2)  # sums of 50,000 products of order 10
    names = {name for _, name in collectives(compiled.as_text())}
    assert names == ({"all-reduce"} if n == 64 else set())  # sums travel, images do not


def test_no_collective_is_inside_a_loop():
    """Collectives of two loops that run at the same time can wait for each other forever."""
    rows = jax.sharding.NamedSharding(MESH, jax.sharding.PartitionSpec("data"))
    x, kernels = jax.device_put(jnp.ones((64, 28, 28, 2)), rows), [jnp.ones((3, 3, 2, i)) for i in (1, 2)]
    with jax.set_mesh(MESH):
        text = jax.jit(kernels_gradient).lower(kernels, x).compile().as_text()
    assert " while(" in text and {where for where, _ in collectives(text)} == {"ENTRY"}
    without = jax.jit(kernels_gradient).lower(kernels, x).compile().as_text()
    assert {where for where, _ in collectives(without)} != {"ENTRY"}  # XLA's own choice, which this test can tell


def predict(*conv):
    """The prediction of a small network with attention of two heads, as a compiled function of x."""
    config = unet.Config(
        sample_size=8, block_out_channels=(8, 16), layers_per_block=(1, 1), attention_head_dim=8, norm_num_groups=4,
        down_block_types=(unet.PLAIN_DOWN, unet.CROSS_DOWN), up_block_types=(unet.CROSS_UP, unet.PLAIN_UP),
        cross_attention_dim=32, encoder_hid_dim=8, addition_embed_type_num_heads=4,
    )  # fmt: skip
    params = jax.tree.map(lambda a: a + 0.1, unet.init(config, jax.random.key(0)))
    told = Conditioning(jnp.ones((2, 5, 8)))
    return jax.jit(lambda x: unet.unet(config, *conv).apply(params, x, jnp.ones(2), told).estimate)


def test_the_network_is_the_same_with_it():
    x = jax.random.normal(jax.random.key(1), (2, 8, 4, 3))
    np.testing.assert_allclose(predict(conv_by_patches)(x), predict()(x), atol=1e-5)


def test_the_forms_for_cpus_do_not_change_the_network(monkeypatch):
    x = jax.random.normal(jax.random.key(1), (2, 8, 4, 3))
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(jax, "default_backend", lambda: "gpu")
        want = predict()(x)
    monkeypatch.setattr(jax, "local_device_count", lambda: 1)
    np.testing.assert_allclose(predict()(x), want, atol=1e-5)


def test_attention_over_heads_has_the_same_gradient(x64, monkeypatch):
    heads = [jax.random.normal(jax.random.key(i), (3, 2, 5 + i, 4), jnp.float64) for i in (0, 1, 1)]
    one_by_one, back = jax.vjp(partial(unet.over_heads, unet.attend), *heads)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    at_once, back_at_once = jax.vjp(partial(unet.over_heads, unet.attend), *heads)
    g = jnp.cos(at_once)
    for ours, want in zip((one_by_one, *back(g)), (at_once, *back_at_once(g)), strict=True):
        np.testing.assert_allclose(ours, want, atol=1e-12)


@pytest.mark.parametrize("size", [1, 3, 5])
@pytest.mark.parametrize("devices", [1, 2])
def test_convolve_equals_lax(size, devices, x64, monkeypatch):
    monkeypatch.setattr(jax, "local_device_count", lambda: devices)
    x = jax.random.normal(jax.random.key(0), (2, 6, 4, 3), jnp.float64)
    kernel = jax.random.normal(jax.random.key(1), (size, size, 3, 5), jnp.float64)
    forms = [lambda x, k, f=f: f(x, k, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
             for f in (unet.convolve, jax.lax.conv_general_dilated)]  # fmt: skip
    (a, back_a), (b, back_b) = (jax.vjp(form, x, kernel) for form in forms)
    for ours, want in zip((a, *back_a(jnp.cos(a))), (b, *back_b(jnp.cos(b))), strict=True):
        np.testing.assert_allclose(ours, want, atol=1e-12)


@pytest.mark.parametrize(
    ("arguments", "more", "message"),
    [
        (((1, 1), "VALID"), {}, "padding must be pairs of numbers, .* got 'VALID'"),
        (
            ((2, 2), "SAME"),
            {},
            "padding must be .*'SAME' with an odd kernel at stride 1, got 'SAME' .*strides .2, 2.",
        ),
        (((1, 2), [(1, 1)] * 2), {}, "must be the same on all sides, got .*1, 2.,"),
        (((1, 1), [(1, 0), (1, 0)]), {}, "must be the same on all sides, got .*1, 0."),
        (((1, 1), [(3, 3), (3, 3)]), {}, "padding must be between 0 and 2, less than the kernel, got 3"),
        (((2, 2), [(1, 1)] * 2), {"lhs_dilation": (2, 2)}, "strides or lhs_dilation must be 1, got .2, 2. and .2, 2."),
        ((), {"rhs_dilation": (2, 2)}, "does not support rhs_dilation, got 2"),
        ((), {"feature_group_count": 2}, "does not support feature_group_count, got 2"),
        ((), {"dimension_numbers": ("NCHW", "OIHW", "NCHW")}, "dimension_numbers must be .*NHWC"),
        (
            ((1, 1), [(0, 0)] * 2),
            {"kernel": 5},
            "x with its padding must be at least 5 pixels .*got 4 x 4 and padding 0",
        ),
    ],
)
def test_it_refuses_what_it_does_not_support(arguments, more, message):
    with pytest.raises(ValueError, match=message):
        size = (more := dict(more)).pop("kernel", 3)
        conv_by_patches(jnp.ones((1, 4, 4, 2)), jnp.ones((size, size, 2, 2)), *arguments, **more)
