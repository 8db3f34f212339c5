"""Kernels in 8 bits: symmetric, with one scale for each output channel. Everything else keeps its dtype."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jdiff.types import Params

MOST = 127


def quantise(kernel: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rounds a kernel [i o] to 8 bits: kernel = int8 * scale, with an error of at most half a scale.

    Returns:
        (int8 [i o], scale float32 [o]). The scale of a channel of zeros is 1.

    Example:
        >>> kernel, scale = quantise(np.float32([[1.27, 0], [-0.5, 0]]))
        >>> kernel.tolist(), scale.round(6).tolist()
        ([[127, 0], [-50, 0]], [0.009999999776482582, 1.0])

    Reference:
        Dettmers et al. 2022 (LLM.int8()), section 2.1: absmax, one constant for each column.
    """
    kernel = np.asarray(kernel, np.float32)
    largest = np.maximum(kernel.max(axis=0, initial=0), -kernel.min(axis=0, initial=0))
    scale = np.where(largest > 0, largest / np.float32(MOST), np.float32(1))
    scale = np.maximum(scale, np.finfo(np.float32).tiny)  # below, the quotient would overflow
    whole = kernel / scale
    return np.rint(whole, out=whole).astype(np.int8), scale


def shapes(abstract: Params) -> Params:
    """Returns a network's parameter shapes with the shape of a `scale` [o] beside each kernel [i o]."""
    tree: dict[Any, Any] = {k: shapes(v) if isinstance(v, Mapping) else v for k, v in abstract.items()}
    return tree | ({"scale": jax.ShapeDtypeStruct(tree["kernel"].shape[-1:], np.float32)} if "kernel" in tree else {})


def restore(params: Params, like: Params) -> Params:
    """Returns parameters in the dtypes of `like`; kernels of int8 are multiplied by their scales.

    Args:
        params: nested dict of arrays, as stored.
        like: nested dict of the network's parameter shapes and dtypes.

    Example:
        >>> kernel, scale = quantise(np.float32([[1.27], [-0.5]]))
        >>> like = {"q": {"kernel": jax.ShapeDtypeStruct((2, 1), jnp.float32)}}
        >>> restore({"q": {"kernel": kernel, "scale": scale}}, like)["q"]["kernel"].shape
        (2, 1)
    """
    if {"kernel", "scale"} <= params.keys():
        kernel, scale = jnp.asarray(params["kernel"]), jnp.asarray(params["scale"])
        return {"kernel": (kernel.astype(scale.dtype) * scale[None]).astype(like["kernel"].dtype)}
    return {
        k: restore(v, like[k]) if isinstance(v, Mapping) else jnp.asarray(v, like[k].dtype) for k, v in params.items()
    }
