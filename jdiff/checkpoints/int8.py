"""Kernels as whole numbers of eight bits: symmetric, one scale for each output channel; everything else stays."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

MOST = 127


def quantise(kernel: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(int8 [i o], scale float32 [o]) with kernel = int8 * scale, to half a scale; a channel of zeros has scale 1.

    >>> kernel, scale = quantise(np.float32([[1.27, 0], [-0.5, 0]]))
    >>> kernel.tolist(), scale.round(6).tolist()
    ([[127, 0], [-50, 0]], [0.009999999776482582, 1.0])

    Source: LLM.int8() (Dettmers et al. 2022), section 2.1: absmax, one constant a column.
    """
    kernel = np.asarray(kernel, np.float32)
    largest = np.maximum(kernel.max(axis=0, initial=0), -kernel.min(axis=0, initial=0))
    scale = np.where(largest > 0, largest / np.float32(MOST), np.float32(1))
    scale = np.maximum(scale, np.finfo(np.float32).tiny)  # below, the quotient would overflow
    whole = kernel / scale
    return np.rint(whole, out=whole).astype(np.int8), scale


def shapes(abstract: Mapping) -> dict:
    """`abstract` (nested parameters) with the leaf `scale` [o] beside each kernel [i o]."""
    tree: dict[Any, Any] = {k: shapes(v) if isinstance(v, Mapping) else v for k, v in abstract.items()}
    return tree | ({"scale": jax.ShapeDtypeStruct(tree["kernel"].shape[-1:], np.float32)} if "kernel" in tree else {})


def restore(params: Mapping, dtype: Any) -> dict:
    """The parameters in `dtype`, kernels of int8 multiplied by their scale; others are cast.

    >>> kernel, scale = quantise(np.float32([[1.27], [-0.5]]))
    >>> restore({"q": {"kernel": kernel, "scale": scale}}, jnp.float32)["q"]["kernel"].shape
    (2, 1)
    """
    if {"kernel", "scale"} <= params.keys():
        kernel, scale = jnp.asarray(params["kernel"]), jnp.asarray(params["scale"])
        return {"kernel": (kernel.astype(scale.dtype) * scale[None]).astype(dtype)}
    return {k: restore(v, dtype) if isinstance(v, Mapping) else jnp.asarray(v, dtype) for k, v in params.items()}
