"""A convolution for training on CPUs. It computes the gradient of its kernel as a matrix product.

With several devices, each device computes the product for its own images, and one all-reduce adds the products.
Otherwise XLA would put an all-reduce for every block of images into a loop. Two such loops can run at the same time,
and their all-reduces can then wait for each other forever.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import cast

import jax
import jax.numpy as jnp
from einops import rearrange
from jax import lax
from jax.sharding import PartitionSpec, get_abstract_mesh

from jdiff.mesh import DATA
from jdiff.networks.unet import with_one_more_row
from jdiff.types import Array

# Pixels in a block of images. At 64 channels, the copies of a block take 6 MB, which fits into a core's cache.
PLACES = 4 * 32 * 32
NHWC = ("NHWC", "HWIO", "NHWC")
# (before, after) of rows or columns.
Sides = tuple[int, int]


def _pad(a: Array, rows: Sides, columns: Sides) -> Array:
    """Pads [n h w c] with zeros; negative numbers crop."""
    return lax.pad(a, jnp.zeros((), a.dtype), ((0, 0, 0), (*rows, 0), (*columns, 0), (0, 0, 0)))


def _forward(x: Array, kernel: Array, stride: int, up: int, pads: tuple[Sides, Sides]) -> Array:
    if up > 1:
        return _spread(x, kernel, up, pads)
    if stride == 1:
        return with_one_more_row(x, kernel, pads, dimension_numbers=NHWC)
    return lax.conv_general_dilated(x, kernel, (stride, stride), pads, dimension_numbers=NHWC)


def _spread(x: Array, kernel: Array, up: int, pads: tuple[Sides, Sides]) -> Array:
    """Computes a transposed convolution as a plain one with up x up outputs at each pixel of x.

    The pixels of x are `up` apart. Output q is the sum over r of kernel[r] times the pixel at q + r - low. With
    r = up * m + b and q = up * i - b + low % up, this is the pixel of x at i + m - low // up.
    """
    size, ((low, _), _) = kernel.shape[0], pads
    taps, first, skip = -(-size // up), low // up, up - 1 - low % up
    lengths = [up * (n - 1) + 1 + sum(sides) - size + 1 for n, sides in zip(x.shape[1:3], pads, strict=True)]
    more = (0, up * taps - size)
    folded = rearrange(_pad(kernel.transpose(2, 0, 1, 3), more, more), "c (h a) (w b) o -> h w c a b o", a=up, b=up)
    folded = folded[:, :, :, ::-1, ::-1].reshape(taps, taps, x.shape[-1], -1)
    counts = [-(-(length + skip) // up) for length in lengths]
    sides = [(first, count + taps - 1 - n - first) for count, n in zip(counts, x.shape[1:3], strict=True)]
    y = with_one_more_row(x, folded, sides, dimension_numbers=NHWC)
    y = rearrange(y, "n h w (a b o) -> n (h a) (w b) o", a=up, b=up)
    return y[:, skip : skip + lengths[0], skip : skip + lengths[1]]


def _products(fine: Array, coarse: Array, size: int, stride: int, pad: int) -> Array:
    """Returns the products of patches of fine [n . . f] with pixels of coarse [n h w c], summed over images and pixels.

    The result is [size size f c]. The patch of pixel i of coarse has size x size pixels of fine, from stride * i - pad.
    Shifted copies of fine give the columns of the patches, and shifted copies of coarse give their rows. So one matrix
    product computes everything from size + size / stride copies instead of size^2. Let fine have pad % stride more rows
    at its top. Then row r = stride * m + a of the patches pairs row stride * q + a of fine with row
    q - m + pad // stride of coarse.
    """
    n, h, w, c = coarse.shape
    before, first, taps = pad % stride, pad // stride, -(-size // stride)
    rows = -(-(fine.shape[1] + before) // stride)
    images = math.gcd(n, 1 << max(PLACES // (rows * w), 1).bit_length() - 1)  # a power of two
    wide = jnp.promote_types(coarse.dtype, jnp.float32)

    def add(total: Array, block: list[Array]) -> tuple[Array, None]:
        x, y = block
        x = _pad(x, (before, stride * rows - before - x.shape[1]), (pad, stride * (w - 1) + size - pad - x.shape[2]))
        x = jnp.concatenate([x[:, :, s : s + stride * (w - 1) + 1 : stride] for s in range(size)], -1)
        x = rearrange(x, "n (q a) w f -> (n q w) (a f)", a=stride)
        y = _pad(y, (taps - 1 - first, rows + first - h), (0, 0))
        y = jnp.concatenate([y[:, i : i + rows] for i in reversed(range(taps))], -1)
        y = rearrange(y, "n q w c -> (n q w) c")
        times = partial(jnp.matmul, preferred_element_type=wide)
        product = (
            times(x.T, y) if x.shape[1] <= y.shape[1] else times(y.T, x).T
        )  # the smaller factor is transposed, because that copies it
        return total + product, None

    # A block has images from all parts of the batch, so that every device has a part of each block.
    blocks = [a.reshape(images, -1, *a.shape[1:]).swapaxes(0, 1) for a in (fine, coarse)]
    zeros = jnp.zeros((stride * size * fine.shape[-1], taps * c), wide)
    total, _ = lax.scan(add, zeros, blocks)
    total = rearrange(total, "(a s f) (m c) -> (m a) s f c", a=stride, s=size, m=taps)
    return total[:size].astype(coarse.dtype)


def _products_of_all(fine: Array, coarse: Array, size: int, stride: int, pad: int) -> Array:
    """Returns `_products`. If `jax.set_mesh` has set a mesh with an axis "data", each device does its own images."""
    products = partial(_products, size=size, stride=stride, pad=pad)
    mesh = get_abstract_mesh()
    automatic = not mesh.empty and DATA in mesh.auto_axes
    if not automatic or coarse.shape[0] % mesh.shape[DATA]:
        return products(fine, coarse)
    rows = PartitionSpec(DATA)
    add_up = lambda fine, coarse: lax.psum(products(fine, coarse), DATA)
    shares = jax.shard_map(
        add_up, in_specs=(rows, rows), out_specs=PartitionSpec(), axis_names={DATA}, check_vma=False
    )  # fmt: skip
    return shares(fine, coarse)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _convolve(x: Array, kernel: Array, stride: int, up: int, pad: int) -> Array:
    return _forward(x, kernel, stride, up, ((pad, pad), (pad, pad)))


def _save(x: Array, kernel: Array, stride: int, up: int, pad: int) -> tuple[Array, tuple[Array, Array]]:
    return _convolve(x, kernel, stride, up, pad), (x, kernel)


def _gradients(stride: int, up: int, pad: int, saved: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    x, kernel = saved
    size = kernel.shape[0]
    turned, low = kernel[::-1, ::-1].swapaxes(2, 3), size - 1 - pad
    pads = [(low, up * (x.shape[i] - 1) - stride * (g.shape[i] - 1) + pad) for i in (1, 2)]
    of_x = _forward(g, turned, up, stride, (pads[0], pads[1]))  # XLA's own gradient is much slower in a scan
    if up > 1:  # g has the finer pixels: this is the flipped kernel of the convolution from g to x
        return of_x, _products_of_all(g, x, size, up, low)[::-1, ::-1].swapaxes(2, 3)
    return of_x, _products_of_all(x, g, size, stride, pad)


_convolve.defvjp(_save, _gradients)


def conv_by_patches(
    x: Array, kernel: Array, window_strides: Sequence[int] = (1, 1), padding: str | Sequence[Sequence[int]] = "SAME",
    lhs_dilation: Sequence[int] | None = None, rhs_dilation: Sequence[int] | None = None, **others: object,
) -> Array:  # fmt: skip
    """Convolves like `lax.conv_general_dilated`, with reverse-mode gradients that are fast on CPUs.

    The gradient of the kernel is a matrix product of patches, for a few images at a time. A transposed convolution is a
    plain one with blocks of outputs. XLA's own versions of both are much slower inside a scan on a CPU; see
    `python scripts/benchmark.py conv`. There is no forward-mode gradient.

    Args:
        x: images [n h w c].
        kernel: square kernel [k k c o].
        window_strides: two equal strides.
        padding: two equal pairs of equal numbers, each smaller than k; or "SAME", for an odd k with stride 1.
        lhs_dilation: two equal numbers. A transposed convolution has more than 1, with stride 1.
        rhs_dilation: 1 or None.
        others: other arguments of `lax.conv_general_dilated`. They must have their defaults, and `dimension_numbers`
            must be NHWC.

    Returns:
        [n h w o].

    Raises:
        ValueError: an argument has a value that is not supported.

    Example:
        >>> x, kernel = jnp.ones((1, 4, 4, 2)), jnp.ones((3, 3, 2, 5))
        >>> conv_by_patches(x, kernel)[0, 1, 1, 0].item()
        18.0
    """
    strides, up, size = tuple(window_strides), tuple(lhs_dilation or (1, 1)), kernel.shape[0]
    numbers = lax.conv_dimension_numbers(x.shape, kernel.shape, others.pop("dimension_numbers", None) or NHWC)
    others = {"rhs_dilation": rhs_dilation and max(rhs_dilation)} | others
    if given := [name for name, value in others.items() if value not in (None, 1)]:
        raise ValueError(f"conv_by_patches does not support {given[0]}, got {others[given[0]]!r}; leave it out")
    if numbers != lax.conv_dimension_numbers(x.shape, kernel.shape, NHWC):
        raise ValueError(f"dimension_numbers must be {NHWC}, got {numbers}")
    if isinstance(padding, str):
        if (padding, *strides, *up, size % 2) != ("SAME", 1, 1, 1, 1, 1):  # otherwise lax pads the sides unequally
            raise ValueError(
                f"padding must be pairs of numbers, or 'SAME' with an odd kernel at stride 1, got {padding!r} with "
                f"kernel {kernel.shape[:2]}, strides {strides} and lhs_dilation {up}"
            )
        padding = ((size // 2, size // 2),) * 2
    pads = tuple(map(tuple, padding))
    pad = pads[0][0]
    if kernel.shape[1] != size or len(set(strides)) > 1 or len(set(up)) > 1 or pads != ((pad, pad),) * 2:
        raise ValueError(
            f"kernel, strides, padding and lhs_dilation must be the same on all sides, got {kernel.shape[:2]}, "
            f"{strides}, {pads} and {up}"
        )
    if not 0 <= pad < size:
        raise ValueError(f"padding must be between 0 and {size - 1}, less than the kernel, got {pad}")
    if strides[0] > 1 and up[0] > 1:
        raise ValueError(f"either strides or lhs_dilation must be 1, got {strides} and {up}")
    if min(up[0] * (n - 1) + 1 for n in x.shape[1:3]) + 2 * pad < size:
        raise ValueError(
            f"x with its padding must be at least {size} pixels high and wide, got {x.shape[1]} x {x.shape[2]} and "
            f"padding {pad}"
        )
    return cast(Array, _convolve(x, kernel, strides[0], up[0], pad))


def fitting_conv() -> Callable[..., Array]:
    """Returns the convolution whose gradients are fast on this backend: `conv_by_patches` on CPUs, else XLA's own."""
    return conv_by_patches if jax.default_backend() == "cpu" else lax.conv_general_dilated
