"""A convolution whose gradient of the kernel is one matrix product, for training on CPUs."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jdiff.types import Array

NHWC = ("NHWC", "HWIO", "NHWC")


def _forward(x: Array, kernel: Array) -> Array:
    return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=NHWC)


def _patches(x: Array, size: int) -> Array:
    """[n h w c] -> [n h w size^2 c], zeros outside."""
    _, h, w, _ = x.shape
    side = (size // 2, size // 2)
    padded = jnp.pad(x, ((0, 0), side, side, (0, 0)))
    return jnp.concatenate([padded[:, i : i + h, j : j + w] for i in range(size) for j in range(size)], axis=-1)


@jax.custom_vjp
def _convolve(x: Array, kernel: Array) -> Array:
    return _forward(x, kernel)


def _save(x: Array, kernel: Array):
    return _forward(x, kernel), (x, kernel)


def _gradients(saved, g: Array):
    x, kernel = saved
    for_kernel = jnp.einsum("nhwp,nhwo->po", _patches(x, kernel.shape[0]), g)
    return _forward(g, kernel[::-1, ::-1].swapaxes(2, 3)), for_kernel.reshape(kernel.shape)


_convolve.defvjp(_save, _gradients)


def conv_by_patches(x: Array, kernel: Array, *args: Any, **kwargs: Any) -> Array:
    """[n h w o], an odd square kernel [k k c o] at stride 1, zeros outside; reverse mode only.

    The gradient of the kernel is one matrix product of all patches instead of a convolution over the batch; which of
    the two is faster depends on sizes and machine (`python scripts/benchmark.py conv`). The further arguments are those
    of `lax.conv_general_dilated`, which it stands in for; they must say the same.

    >>> x, kernel = jnp.ones((1, 4, 4, 2)), jnp.ones((3, 3, 2, 5))
    >>> conv_by_patches(x, kernel)[0, 1, 1, 0].item()
    18.0
    """
    strides = tuple(args[0]) if args else (1, 1)
    size = kernel.shape[0]
    same = (((size - 1) // 2, (size - 1) // 2),) * 2
    padding = args[1] if len(args) > 1 else "SAME"
    if kernel.shape[1] != size or size % 2 == 0 or strides != (1, 1):
        raise ValueError(f"conv_by_patches has stride 1 and odd square kernels; given {strides} and {kernel.shape[:2]}")
    if padding != "SAME" and tuple(map(tuple, padding)) != same:
        raise ValueError(f"padding is {padding}, accepted is 'SAME'")
    del kwargs
    return _convolve(x, kernel)
