"""Components: linear maps of an image. The components of a factorisation add up to the image."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Shaped

from jdiff import checks
from jdiff.types import Array


def low_pass(sigma: float | Array = 2.0, kernel: int = 33) -> Partial:
    """Returns a Gaussian blur with mirrored borders.

    Args:
        sigma: standard deviation in pixels, at 64 pixels a side.
        kernel: width in pixels at which the blur is cut off, at 64 pixels a side. It must be below 128, or the result
            refuses images.

    Raises:
        ValueError: `sigma` is below 1e-6, or `kernel` below 1.

    Example:
        >>> low_pass()(jnp.ones((32, 32, 3))).std().round(5).item()
        0.0

    Reference:
        The course's 1.9; equals torchvision's gaussian_blur with a kernel of 33 (133 at 256 pixels).
    """
    if not isinstance(sigma, Array):
        checks.number("sigma", sigma, least=1e-6)
    return Partial(_Blur(checks.whole("kernel", kernel)), jnp.asarray(sigma, float))


def high_pass(sigma: float | Array = 2.0, kernel: int = 33) -> Partial:
    """Returns the image minus its `low_pass` (the course's 1.9).

    Args:
        sigma: as in `low_pass`.
        kernel: as in `low_pass`.

    Raises:
        ValueError: as `low_pass`.

    Example:
        >>> bool(jnp.allclose(high_pass()(jnp.ones((32, 32, 3))), 0, atol=1e-5))
        True
    """
    return rest(low_pass(sigma, kernel))


def low_and_high(sigma: float = 2.0) -> tuple[Partial, Partial]:
    """Returns (low_pass, high_pass) with a blur that is cut off at eight standard deviations or more.

    Args:
        sigma: standard deviation in pixels, at 64 pixels a side, up to 7.

    Raises:
        ValueError: `sigma` is below 1e-6 or above 7.

    Example:
        >>> x = jax.random.normal(jax.random.key(0), (32, 32, 3))
        >>> bool(jnp.allclose(sum(part(x) for part in low_and_high(3.0)), x, atol=1e-5))
        True
    """
    kernel = 16 * math.ceil(checks.number("sigma", sigma, 1e-6, 7)) + 1
    return low_pass(sigma, kernel), high_pass(sigma, kernel)


def bands(fine: float = 1.0, coarse: float = 2.0, kernel: int = 33) -> tuple[Partial, Partial, Partial]:
    """Returns three frequency bands: low, medium and high.

    Args:
        fine: standard deviation of the blur that removes the high band, at 64 pixels a side.
        coarse: standard deviation of the blur that separates the low band from the medium band.
        kernel: as in `low_pass`.

    Raises:
        ValueError: as `low_pass`.

    Example:
        >>> x = jax.random.normal(jax.random.key(0), (64, 64, 3))
        >>> bool(jnp.allclose(sum(part(x) for part in bands()), x, atol=1e-5))
        True

    Reference:
        Geng et al. 2024 (Factorized Diffusion), triple hybrids.
    """
    blur = low_pass(fine, kernel)
    low, medium = (Partial(_in_turn, blur, part(coarse, kernel)) for part in (low_pass, high_pass))
    return low, medium, rest(blur)


def grayscale() -> Partial:
    """Returns the component that replaces each channel by the channels' mean (Factorized Diffusion, colour hybrids).

    Example:
        >>> grayscale()(jnp.array([[[0.0, 1.0, 5.0]]])).ravel().tolist()
        [2.0, 2.0, 2.0]
    """
    return Partial(_gray)


def color() -> Partial:
    """Returns the image minus its `grayscale`.

    Example:
        >>> color()(jnp.array([[[0.0, 1.0, 5.0]]])).ravel().tolist()
        [-2.0, -1.0, 3.0]
    """
    return rest(grayscale())


def motion(length: int = 9) -> Partial:
    """Returns a blur along the diagonal from top left to bottom right, with mirrored borders (Factorized Diffusion).

    Args:
        length: length of the blur in pixels, at 64 pixels a side.

    Raises:
        ValueError: `length` is not a whole number above 0.

    Example:
        >>> blurred = motion()(jnp.eye(64)[..., None])  # of a line along the diagonal
        >>> blurred[:, :, 0].diagonal().min().item()
        1.0
    """
    return Partial(_Diagonal(checks.whole("length", length)))


def motion_res(length: int = 9) -> Partial:
    """Returns the image minus its `motion`.

    Args:
        length: as in `motion`.

    Raises:
        ValueError: as `motion`.
    """
    return rest(motion(length))


def scale(share: float = 0.5) -> Partial:
    """Returns the component that multiplies the image by a number. A hybrid of such components is a weighted mean.

    Args:
        share: the number. The shares of a factorisation must add up to 1.

    Example:
        >>> scale(0.25)(jnp.ones((1, 1, 1))).item()
        0.25
    """
    return Partial(jnp.multiply, jnp.asarray(share, float))


def unmasked(mask: Shaped[Array | np.ndarray, "height width *channel"]) -> Partial:
    """Returns the component that keeps the image where a mask is 0, and is 0 where the mask is 1.

    Args:
        mask: [h w] or [h w 1] in [0, 1].

    Example:
        >>> unmasked(jnp.array([[0.0, 1.0]]))(jnp.array([[[5.0], [7.0]]])).ravel().tolist()
        [5.0, 0.0]
    """
    mask = jnp.asarray(mask)
    return Partial(_outside, mask if mask.ndim == 3 else mask[..., None])


def rest(part: Partial) -> Partial:
    """Returns the image minus a component.

    Args:
        part: the component.

    Example:
        >>> rest(scale(0.25))(jnp.ones((1, 1, 1))).item()
        0.75
    """
    return Partial(_rest, part)


@dataclasses.dataclass(frozen=True)
class _Blur:
    kernel: int  # static, because it decides shapes

    def __call__(self, sigma: Array, x: Array) -> Array:
        h, w, _ = x.shape
        factor = min(h, w) / 64
        reach = int(self.kernel / 2 * factor)
        rows, columns = (_blur_matrix(sigma * factor, reach, n).astype(x.dtype) for n in (h, w))
        return jnp.einsum("ij,jkc,lk->ilc", rows, x, columns, precision=jax.lax.Precision.HIGHEST)


def _blur_matrix(sigma: Array, reach: int, n: int) -> Array:
    """Returns the blur of n pixels as a matrix [n n]. Weights beyond a border are mirrored."""
    _check_reach(reach, n)
    i, j = np.arange(n)[:, None], np.arange(n)[None]
    weigh = lambda d: jnp.where(np.abs(d) <= reach, jnp.exp(-0.5 * (d / sigma) ** 2), 0)
    matrix = weigh(j - i) + jnp.where(j > 0, weigh(j + i), 0) + jnp.where(j < n - 1, weigh(2 * (n - 1) - j - i), 0)
    return matrix / weigh(np.arange(-reach, reach + 1)).sum()


@dataclasses.dataclass(frozen=True)
class _Diagonal:
    length: int  # static, because it decides shapes

    def __call__(self, x: Array) -> Array:
        h, w, _ = x.shape
        reach = max(1, int(self.length / 2 * min(h, w) / 64))
        return x[_mirrored(h, reach)[:, None], _mirrored(w, reach)[None]].mean(axis=2)


def _mirrored(n: int, reach: int) -> np.ndarray:
    """Returns the indices [n 2*reach+1] of the pixels around each of n pixels, mirrored at the borders."""
    _check_reach(reach, n)
    places = np.abs(np.arange(n)[:, None] + np.arange(-reach, reach + 1))
    return n - 1 - np.abs(n - 1 - places)


def _check_reach(reach: int, n: int) -> None:
    if reach >= n:
        raise ValueError(
            f"the kernel must reach less than the image's {n} pixels to each side, got {reach}; use a smaller sigma, "
            "kernel or length"
        )


def _in_turn(first: Partial, second: Partial, x: Array) -> Array:
    return second(first(x))


def _rest(part: Partial, x: Array) -> Array:
    return x - part(x)


def _gray(x: Array) -> Array:
    return jnp.broadcast_to(x.mean(axis=-1, keepdims=True), x.shape)


def _outside(mask: Array, x: Array) -> Array:
    return (1 - mask.astype(x.dtype)) * x
