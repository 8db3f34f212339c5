"""A convolution whose gradient of the kernel is a matrix product, for training on CPUs."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jdiff.types import Array

BLOCK = 4  # images whose patches are made at a time: at 28 x 28 and 64 channels 7 MB, 1.5 times as fast as all at once
NHWC = ("NHWC", "HWIO", "NHWC")


def _forward(x: Array, kernel: Array, stride: int, up: int, pads: tuple) -> Array:
    return lax.conv_general_dilated(x, kernel, (stride, stride), pads, lhs_dilation=(up, up), dimension_numbers=NHWC)


def _patches(x: Array, size: int, stride: int, pad: int, h: int, w: int) -> Array:
    """[n h w size^2 c]: the size x size pixels of x, zeros outside, around each of h x w places `stride` apart."""
    spans = [stride * (places - 1) + 1 for places in (h, w)]
    sides = [(pad, max(span + size - 1 - pad - length, 0)) for span, length in zip(spans, x.shape[1:3], strict=True)]
    padded = jnp.pad(x, ((0, 0), *sides, (0, 0)))
    rows, columns = ([slice(i, i + span, stride) for i in range(size)] for span in spans)
    return jnp.concatenate([padded[:, row, column] for row in rows for column in columns], axis=-1)


def _products(fine: Array, coarse: Array, size: int, stride: int, pad: int) -> Array:
    """[size size f c]: patches of fine [n . . f] around the places of coarse [n h w c], times coarse, summed."""
    n, h, w, c = coarse.shape
    blocks = n // BLOCK if n % BLOCK == 0 else 1

    def add(total, block):
        patches = _patches(block[0], size, stride, pad, h, w)
        return total + jnp.einsum("nhwp,nhwc->pc", patches, block[1]), None

    zeros = jnp.zeros((size * size * fine.shape[-1], c), coarse.dtype)
    total, _ = lax.scan(add, zeros, [a.reshape(blocks, -1, *a.shape[1:]) for a in (fine, coarse)])
    return total.reshape(size, size, -1, c)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _convolve(x: Array, kernel: Array, stride: int, up: int, pad: int) -> Array:
    return _forward(x, kernel, stride, up, ((pad, pad), (pad, pad)))


def _save(x: Array, kernel: Array, stride: int, up: int, pad: int):
    return _convolve(x, kernel, stride, up, pad), (x, kernel)


def _gradients(stride: int, up: int, pad: int, saved, g: Array):
    x, kernel = saved
    size, _, inputs, outputs = kernel.shape
    turned, before = kernel[::-1, ::-1].swapaxes(2, 3), size - 1 - pad
    pads = [(before, up * (x.shape[i] - 1) - stride * (g.shape[i] - 1) + pad) for i in (1, 2)]
    of_x = _forward(g, turned, up, stride, tuple(pads))  # XLA's own, not turned beforehand, is far slower in a scan
    if up > 1 or (stride == 1 and outputs < inputs):  # of the same convolution, from g to x
        return of_x, _products(g, x, size, up, before)[::-1, ::-1].swapaxes(2, 3)
    return of_x, _products(x, g, size, stride, pad)


_convolve.defvjp(_save, _gradients)


def conv_by_patches(x: Array, kernel: Array, *args: Any, **kwargs: Any) -> Array:
    """[n h w o] of x [n h w c] and a square kernel [k k c o]; reverse mode only.

    The gradient of the kernel is a matrix product of patches, a few images' at a time, instead of a convolution over
    the batch; which of the two is faster depends on sizes and machine (`python scripts/benchmark.py conv`), and within
    a scan on a CPU the convolution is far slower. The further arguments are those of `lax.conv_general_dilated`, which
    it stands in for: strides, `padding` and `lhs_dilation`, each the same on all sides; not both of the dilation and
    the stride may be more than 1.

    >>> x, kernel = jnp.ones((1, 4, 4, 2)), jnp.ones((3, 3, 2, 5))
    >>> conv_by_patches(x, kernel)[0, 1, 1, 0].item()
    18.0
    """
    strides = tuple(args[0]) if args else (1, 1)
    padding = args[1] if len(args) > 1 else "SAME"
    up = tuple(kwargs.get("lhs_dilation") or (1, 1))
    size = kernel.shape[0]
    if isinstance(padding, str):
        if (padding, *strides, *up, size % 2) != ("SAME", 1, 1, 1, 1, 1):  # lax pads unevenly otherwise
            raise ValueError(
                f"padding is {padding!r}, accepted are pairs of numbers, and 'SAME' for odd kernels at stride 1"
            )
        padding = ((size // 2, size // 2),) * 2
    pads = tuple(map(tuple, padding))
    ((pad, _), _) = pads
    if kernel.shape[1] != size or len(set(strides)) > 1 or len(set(up)) > 1 or pads != ((pad, pad),) * 2:
        raise ValueError(
            f"conv_by_patches has square kernels, strides, padding and dilation; given {kernel.shape[:2]}, {strides}, "
            f"{padding} and {up}"
        )
    if not 0 <= pad < size:
        raise ValueError(f"padding is {pad}, accepted is 0 to {size - 1}, less than the kernel")
    if strides[0] > 1 and up[0] > 1:
        raise ValueError(f"conv_by_patches has a stride or a dilation; given {strides} and {up}")
    return _convolve(x, kernel, strides[0], up[0], pad)
