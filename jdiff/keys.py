"""Random keys and noise: one key per image, and the same bits for an image alone, in any batch, and on any mesh."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike

from jdiff.types import Array

# Key implementations whose bits are the same under `vmap`. For others (rbg, unsafe_rbg), bits are drawn image by image.
BATCHED = ("threefry2x32",)
RAW = {2: "threefry2x32", 4: "rbg"}  # length of raw key data -> implementation


def as_key(key: object, name: str = "key") -> Array:
    """Returns typed keys. Raw key data, such as `jax.random.PRNGKey` returns, is wrapped.

    Args:
        key: one key, or an array of keys; any other value is refused.
        name: the argument's name in the error.

    Raises:
        ValueError: `key` is neither a typed key nor raw key data.

    Example:
        >>> as_key(jax.random.PRNGKey(0)) == jax.random.key(0)
        Array(True, dtype=bool)
        >>> as_key(0)
        Traceback (most recent call last):
        ...
        ValueError: key must be a random key such as jax.random.key(0), got 0
    """
    if isinstance(key, Array):
        if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
            return key
        if key.dtype == jnp.uint32 and key.ndim and key.shape[-1] in RAW:
            return jax.random.wrap_key_data(key, impl=RAW[key.shape[-1]])
    raise ValueError(f"{name} must be a random key such as jax.random.key(0), got {key!r}")


def image_keys(key: Array, n: int) -> Array:
    """Returns n keys, one per image. Key i does not depend on n, so image i can be drawn again alone.

    Args:
        key: one key.
        n: number of keys.

    Returns:
        Keys [n].

    Raises:
        ValueError: `key` is not a random key.

    Example:
        >>> bool((image_keys(jax.random.key(0), 8)[:2] == image_keys(jax.random.key(0), 2)).all())
        True
    """
    return fold_in_each(as_key(key), jnp.arange(n))


def fold_in_each(key: Array, numbers: Array) -> Array:
    """Returns the keys [n] from folding each number into one key.

    Args:
        key: one key.
        numbers: whole numbers [n].

    Example:
        >>> fold_in_each(jax.random.key(0), jnp.arange(3)).shape
        (3,)
    """
    return _fold_in_each(key, numbers)


@jax.jit  # one program, and not several
def _fold_in_each(key: Array, numbers: Array) -> Array:
    return jax.vmap(partial(fold_in, key))(numbers)


def fold_in(key: Array, number: ArrayLike) -> Array:
    """Returns `jax.random.fold_in`, with the same result alone and under `vmap` for every key implementation.

    Args:
        key: one key.
        number: whole number of 32 bits, which may be traced.

    Example:
        >>> bool(fold_in(jax.random.key(0), 3) == jax.random.fold_in(jax.random.key(0), 3))
        True
    """
    if _batched(key):
        return jax.random.fold_in(key, number)
    data, number = jax.random.key_data(key), jnp.asarray(number, jnp.uint32)
    impl = jax.random.key_impl(key)
    make = lambda data, number: jax.random.key_data(
        jax.random.fold_in(jax.random.wrap_key_data(data, impl=impl), number)
    )
    return jax.random.wrap_key_data(_one_by_one(make)(data, number), impl=impl)


def normal(key: Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> Array:
    """Returns `jax.random.normal`, with the same numbers alone and under `vmap` for every key implementation.

    Args:
        key: one key.
        shape: shape of the result.
        dtype: dtype of the result.

    Example:
        >>> keys = jax.random.split(jax.random.key(0, impl="rbg"), 3)
        >>> together, alone = jax.vmap(lambda key: normal(key, (2,)))(keys)[1], normal(keys[1], (2,))
        >>> bool((together == alone).all())
        True
    """
    if _batched(key):
        return jax.random.normal(key, shape, dtype)
    impl = jax.random.key_impl(key)
    make = lambda data: jax.random.normal(jax.random.wrap_key_data(data, impl=impl), shape, dtype)
    return _one_by_one(make)(jax.random.key_data(key))


def _batched(key: Array) -> bool:
    return str(jax.random.key_impl(key)) in BATCHED


def _one_by_one(function: Callable[..., Array]) -> Callable[..., Array]:
    """Returns `function` so that `vmap` calls it once for each element of the batch."""
    call = jax.custom_batching.custom_vmap(function)

    @call.def_vmap
    def rule(size: int, batched: list[bool], *args: Array) -> tuple[Array, bool]:
        args = tuple(a if b else jnp.broadcast_to(a, (size, *a.shape)) for a, b in zip(args, batched, strict=True))
        return jax.lax.map(lambda row: call(*row), args), True

    return call
