"""A convolution whose gradient of the kernel is one matrix product, for training on CPUs."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jdiff.types import Array

BLOCK = 4  # images whose patches are made at a time: at 28 x 28 and 64 channels 7 MB, 1.5 times as fast as all at once
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
    size, blocks = kernel.shape[0], x.shape[0] // BLOCK if x.shape[0] % BLOCK == 0 else 1
    cut = [a.reshape(blocks, -1, *a.shape[1:]) for a in (x, g)]

    def add(total, block):
        return total + jnp.einsum("nhwp,nhwo->po", _patches(block[0], size), block[1]), None

    for_kernel, _ = lax.scan(add, jnp.zeros((kernel.size // kernel.shape[-1], kernel.shape[-1]), x.dtype), cut)
    return _forward(g, kernel[::-1, ::-1].swapaxes(2, 3)), for_kernel.reshape(kernel.shape)


_convolve.defvjp(_save, _gradients)


def _strided(x: Array, kernel: Array, stride: int, pad: int) -> Array:
    """A convolution at a stride, as one product of patches [n h/stride w/stride k k c]."""
    n, h, w, c = x.shape
    k, _, _, o = kernel.shape
    padded = jnp.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    rows, columns = ((side + 2 * pad - k) // stride + 1 for side in (h, w))
    reach = [slice(i, i + stride * (length - 1) + 1, stride) for length in (rows, columns) for i in range(k)]
    patches = [padded[:, a, b] for a in reach[:k] for b in reach[k:]]
    return (jnp.concatenate(patches, axis=-1).reshape(-1, k * k * c) @ kernel.reshape(-1, o)).reshape(
        n, rows, columns, o
    )


def _spread(x: Array, kernel: Array, up: int, pad: int) -> Array:
    """A convolution of x with its pixels spread `up` apart, as one product that makes `up` x `up` pixels of each.

    Pixel up i + a of a line is the sum over d of x[i + d] kernel[pad - a + up d].
    """
    n, h, w, c = x.shape
    k, _, _, o = kernel.shape
    taps = [[pad - a + up * d for a in range(up)] for d in range(-k, k + 1)]
    used = [d for d, row in zip(range(-k, k + 1), taps, strict=True) if any(0 <= m < k for m in row)]
    taps = [[m if 0 <= m < k else k for m in row] for row in taps if any(0 <= m < k for m in row)]  # k is a zero
    zeroed = jnp.pad(kernel, ((0, 1), (0, 1), (0, 0), (0, 0)))
    index = np.array(taps)  # [d up]
    spread = zeroed[index[:, None, :, None], index[None, :, None, :]]  # [d d up up c o]
    weights = spread.transpose(0, 1, 4, 2, 3, 5).reshape(-1, up * up * o)
    before, after = -min(used), max(used)
    padded = jnp.pad(x, ((0, 0), (before, after), (before, after), (0, 0)))
    patches = [padded[:, before + d : before + d + h, before + e : before + e + w] for d in used for e in used]
    made = jnp.concatenate(patches, axis=-1).reshape(-1, len(used) ** 2 * c) @ weights
    return made.reshape(n, h, w, up, up, o).transpose(0, 1, 3, 2, 4, 5).reshape(n, h * up, w * up, o)


def conv_by_patches(x: Array, kernel: Array, *args: Any, **kwargs: Any) -> Array:
    """[n h w o] of x [n h w c] and a square kernel [k k c o], zeros outside; reverse mode only.

    The gradient of the kernel is one matrix product of all patches instead of a convolution over the batch; which of
    the two is faster depends on sizes and machine (`python scripts/benchmark.py conv`). The further arguments are those
    of `lax.conv_general_dilated`, which it stands in for. It has three forms: odd kernels at stride 1 that keep the
    size; any at a larger stride; and transposed ones (`lhs_dilation`) that make each pixel that many.

    >>> x, kernel = jnp.ones((1, 4, 4, 2)), jnp.ones((3, 3, 2, 5))
    >>> conv_by_patches(x, kernel)[0, 1, 1, 0].item()
    18.0
    """
    strides = tuple(args[0]) if args else (1, 1)
    padding = args[1] if len(args) > 1 else "SAME"
    up = tuple(kwargs.get("lhs_dilation") or (1, 1))
    size = kernel.shape[0]
    same = (((size - 1) // 2, (size - 1) // 2),) * 2
    if isinstance(padding, str) and (padding, *strides, *up) != ("SAME", 1, 1, 1, 1):  # lax pads unevenly at strides
        raise ValueError(f"padding is {padding!r}, accepted are 'SAME' at stride 1 and pairs of numbers")
    pads: Any = same if padding == "SAME" else tuple(map(tuple, padding))
    (pad, _), *_ = pads
    if kernel.shape[1] != size or len(set(strides)) > 1 or len(set(up)) > 1 or pads != ((pad, pad),) * 2:
        raise ValueError(
            f"conv_by_patches has square kernels, strides, padding and dilation; given {kernel.shape[:2]}, {strides}, "
            f"{padding} and {up}"
        )
    if up[0] > 1:
        if strides != (1, 1) or 2 * pad - size + 2 != up[0]:
            raise ValueError(
                f"conv_by_patches spreads pixels where each becomes {up[0]}; given stride {strides}, {pad=}"
            )
        return _spread(x, kernel, up[0], pad)
    if strides[0] > 1:
        return _strided(x, kernel, strides[0], pad)
    if size % 2 == 0 or pads != same:
        raise ValueError(f"at stride 1 the kernel is {size} and padding {padding}, accepted are odd ones with 'SAME'")
    return _convolve(x, kernel)
