"""A convolution whose gradient of the kernel is a matrix product, for training on CPUs."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from jax import lax

from jdiff.types import Array

PLACES = 4 * 32 * 32  # of a block of images, or one: what is copied of them, 6 MB at 64 channels, stays near the core
NHWC = ("NHWC", "HWIO", "NHWC")


def _pad(a: Array, rows: tuple, columns: tuple) -> Array:
    """[n h w c] with so many zeros around it, (before, after); fewer than none cut off."""
    return lax.pad(a, jnp.zeros((), a.dtype), ((0, 0, 0), (*rows, 0), (*columns, 0), (0, 0, 0)))


def _forward(x: Array, kernel: Array, stride: int, up: int, pads: tuple) -> Array:
    if up > 1:
        return _spread(x, kernel, up, pads)
    return lax.conv_general_dilated(x, kernel, (stride, stride), pads, dimension_numbers=NHWC)


def _spread(x: Array, kernel: Array, up: int, pads: tuple) -> Array:
    """The convolution of x with its pixels `up` apart, as a plain one: of a block of up x up outputs in each place.

    Output q is the sum over r of kernel[r] times the spread pixel q + r - low. With r = up * m + b and
    q = up * i - b + low % up, that is the pixel of x at i + m - low // up.
    """
    size, ((low, _), _) = kernel.shape[0], pads
    taps, first, skip = -(-size // up), low // up, up - 1 - low % up
    lengths = [up * (n - 1) + 1 + sum(sides) - size + 1 for n, sides in zip(x.shape[1:3], pads, strict=True)]
    more = (0, up * taps - size)
    folded = rearrange(_pad(kernel.transpose(2, 0, 1, 3), more, more), "c (h a) (w b) o -> h w c a b o", a=up, b=up)
    folded = folded[:, :, :, ::-1, ::-1].reshape(taps, taps, x.shape[-1], -1)
    counts = [-(-(length + skip) // up) for length in lengths]
    sides = [(first, count + taps - 1 - n - first) for count, n in zip(counts, x.shape[1:3], strict=True)]
    y = lax.conv_general_dilated(x, folded, (1, 1), sides, dimension_numbers=NHWC)
    y = rearrange(y, "n h w (a b o) -> n (h a) (w b) o", a=up, b=up)
    return y[:, skip : skip + lengths[0], skip : skip + lengths[1]]


def _products(fine: Array, coarse: Array, size: int, stride: int, pad: int) -> Array:
    """[size size f c]: fine [n . . f], size x size pixels from stride i - pad on, times coarse [n h w c] at i; summed.

    A kernel's columns are read from shifted copies of fine, its rows from shifted copies of coarse: one product has
    all, of size + size / stride copies in place of size^2. Row r = stride * m + a of the kernel meets row
    stride * q + a of fine, once it has pad % stride rows before it, where coarse is at q - m + pad // stride.
    """
    n, h, w, c = coarse.shape
    before, first, taps = pad % stride, pad // stride, -(-size // stride)
    rows = -(-(fine.shape[1] + before) // stride)
    images = math.gcd(n, 1 << max(PLACES // (rows * w), 1).bit_length() - 1)  # a power of two, as of devices
    wide = jnp.promote_types(coarse.dtype, jnp.float32)

    def add(total, block):
        x, y = block
        x = _pad(x, (before, stride * rows - before - x.shape[1]), (pad, stride * (w - 1) + size - pad - x.shape[2]))
        x = jnp.concatenate([x[:, :, s : s + stride * (w - 1) + 1 : stride] for s in range(size)], -1)
        x = rearrange(x, "n (q a) w f -> (n q w) (a f)", a=stride)
        y = _pad(y, (taps - 1 - first, rows + first - h), (0, 0))
        y = jnp.concatenate([y[:, i : i + rows] for i in reversed(range(taps))], -1)
        y = rearrange(y, "n q w c -> (n q w) c")
        times = partial(jnp.matmul, preferred_element_type=wide)
        product = times(x.T, y) if x.shape[1] <= y.shape[1] else times(y.T, x).T  # what is turned is copied
        return total + product, None

    # A block has some of each device's images, so that each does its own: of as many devices as it has images.
    blocks = [a.reshape(images, -1, *a.shape[1:]).swapaxes(0, 1) for a in (fine, coarse)]
    zeros = jnp.zeros((stride * size * fine.shape[-1], taps * c), wide)
    total, _ = lax.scan(add, zeros, blocks)
    total = rearrange(total, "(a s f) (m c) -> (m a) s f c", a=stride, s=size, m=taps)
    return total[:size].astype(coarse.dtype)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _convolve(x: Array, kernel: Array, stride: int, up: int, pad: int) -> Array:
    return _forward(x, kernel, stride, up, ((pad, pad), (pad, pad)))


def _save(x: Array, kernel: Array, stride: int, up: int, pad: int):
    return _convolve(x, kernel, stride, up, pad), (x, kernel)


def _gradients(stride: int, up: int, pad: int, saved, g: Array):
    x, kernel = saved
    size = kernel.shape[0]
    turned, low = kernel[::-1, ::-1].swapaxes(2, 3), size - 1 - pad
    pads = [(low, up * (x.shape[i] - 1) - stride * (g.shape[i] - 1) + pad) for i in (1, 2)]
    of_x = _forward(g, turned, up, stride, tuple(pads))  # XLA's own, which turns it within, is far slower in a scan
    if up > 1:  # g has the finer pixels: the kernel of the convolution from g to x, turned
        return of_x, _products(g, x, size, up, low)[::-1, ::-1].swapaxes(2, 3)
    return of_x, _products(x, g, size, stride, pad)


_convolve.defvjp(_save, _gradients)


def conv_by_patches(
    x: Array, kernel: Array, window_strides: Sequence[int] = (1, 1), padding: Any = "SAME",
    lhs_dilation: Sequence[int] | None = None, rhs_dilation: Sequence[int] | None = None, **others: Any,
) -> Array:  # fmt: skip
    """[n h w o] of x [n h w c] and a square kernel [k k c o]; reverse mode only.

    The gradient of the kernel is a matrix product of its rows' and columns' patches, a few images' at a time, instead
    of a convolution over the batch, and a transposed convolution is a plain one of blocks of outputs: within a scan on
    a CPU both are far slower as XLA has them (`python scripts/benchmark.py conv`).

    It stands in for `lax.conv_general_dilated`, whose arguments it has: strides, padding and `lhs_dilation`, each the
    same on all sides, stride or dilation 1. Raises ValueError for what it does not do.

    >>> x, kernel = jnp.ones((1, 4, 4, 2)), jnp.ones((3, 3, 2, 5))
    >>> conv_by_patches(x, kernel)[0, 1, 1, 0].item()
    18.0
    """
    strides, up, size = tuple(window_strides), tuple(lhs_dilation or (1, 1)), kernel.shape[0]
    numbers = lax.conv_dimension_numbers(x.shape, kernel.shape, others.pop("dimension_numbers", None) or NHWC)
    others = {"rhs_dilation": rhs_dilation and max(rhs_dilation)} | others
    if given := [name for name, value in others.items() if value not in (None, 1)]:
        raise ValueError(f"conv_by_patches does not have {given[0]}, accepted is what leaves it out")
    if numbers != lax.conv_dimension_numbers(x.shape, kernel.shape, NHWC):
        raise ValueError(f"dimension_numbers are {numbers}, accepted are {NHWC}")
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
    if min(up[0] * (n - 1) + 1 for n in x.shape[1:3]) + 2 * pad < size:
        raise ValueError(f"x is {x.shape[1]} x {x.shape[2]} with a padding of {pad}, accepted is {size} or more in all")
    return _convolve(x, kernel, strides[0], up[0], pad)


def fitting_conv() -> Callable:
    """What convolves in training: XLA's own, or on CPUs, where its gradient within a loop is far slower, by patches."""
    return conv_by_patches if jax.default_backend() == "cpu" else lax.conv_general_dilated
