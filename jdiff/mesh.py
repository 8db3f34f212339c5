"""Devices: making them of a CPU's cores, meshes of them, and how arrays are laid out over a mesh.

This module, the commands and the scripts are the only ones that touch devices. Everything else computes where its
arrays are.
"""

import os
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jdiff import checks
from jdiff.types import Params

# Axes of a mesh: images and batches are split over DATA, large parameters over MODEL.
DATA, MODEL = "data", "model"
# A pytree of arrays.
Tree = TypeVar("Tree")


def use_cores(batch: int | None = None) -> None:
    """Makes one JAX device of each of up to four CPU cores.

    On one device, XLA computes many operations on one core. This has an effect only before JAX has started, and
    where the number of devices is not set already, as by JAX_NUM_CPU_DEVICES.

    Args:
        batch: a number that the devices must divide, such as the batch size of a training.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    is_set = "host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if jax.config.values["jax_num_cpu_devices"] < 1 and not is_set:
        fits = [n for n in (1, 2, 4) if n <= cores and (batch is None or batch % n == 0)]
        with suppress(RuntimeError):  # JAX has started
            jax.config.update("jax_num_cpu_devices", max(fits))


def make(model: int = 1) -> Mesh:
    """Returns the mesh of all devices of all processes, with the axes "data" and "model".

    Args:
        model: devices over which large parameters are split; it must divide the number of devices.

    Raises:
        ValueError: `model` does not divide the number of devices.

    Example:
        >>> make().shape["model"]
        1
    """
    n = jax.device_count()
    if n % checks.whole("model", model, 1, n):
        raise ValueError(f"model must divide the number of devices, {n}, got {model}")
    return jax.make_mesh((n // model, model), (DATA, MODEL), axis_types=(AxisType.Auto,) * 2)


def over_devices() -> Mesh | None:
    """Returns `make()`, or None where there is one device."""
    return make() if jax.device_count() > 1 else None


def over_local_devices() -> Mesh | None:
    """Returns a mesh of this process's own devices, over which images are split, or None where there is one device."""
    devices = jax.local_devices()
    if len(devices) == 1:
        return None
    return jax.make_mesh((len(devices), 1), (DATA, MODEL), axis_types=(AxisType.Auto,) * 2, devices=devices)


def split_rows(mesh: Mesh, tree: Tree) -> Tree:
    """Returns arrays [n ...] whose rows are split over the mesh's data axis."""
    return place(tree, NamedSharding(mesh, PartitionSpec(DATA)))


def replicate(mesh: Mesh, tree: Tree) -> Tree:
    """Returns arrays that every device has whole. Arrays that are laid out over this mesh already stay as they are."""
    whole = NamedSharding(mesh, PartitionSpec())
    on_mesh = lambda a: getattr(getattr(a, "sharding", None), "mesh", None) == mesh
    return jax.tree.map(lambda a: a if on_mesh(a) else place(a, whole), tree)


def place(tree: Tree, sharding: NamedSharding) -> Tree:
    """Returns arrays in a layout over devices of one or several processes.

    With several processes, each has to pass the same arrays.
    """
    if jax.process_count() == 1:
        return jax.device_put(tree, sharding)

    def put(a: Any) -> jax.Array:  # a NumPy array, or one of JAX's, keys included
        if isinstance(a, jax.Array) and jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(put(jax.random.key_data(a)), impl=jax.random.key_impl(a))
        values = np.asarray(a)
        return jax.make_array_from_callback(values.shape, sharding, lambda index: values[index])

    return jax.tree.map(put, tree)


def parameter_shardings(mesh: Mesh, params: Params, least: int = 2**16) -> Any:
    """Returns a sharding for each parameter: split along its longest side over the mesh's model axis, if it is large.

    Args:
        mesh: with a "model" axis.
        params: arrays, or their shapes.
        least: arrays with fewer numbers stay whole on every device.

    Returns:
        A tree of `NamedSharding` like `params`, for `jax.device_put` or `jax.jit`.

    Example:
        >>> shapes = {"kernel": jax.ShapeDtypeStruct((3, 3, 256, 512), "float32")}
        >>> tuple(parameter_shardings(make(), shapes)["kernel"].spec)
        (None, None, None, 'model')
    """
    n = mesh.shape[MODEL]

    def of(a: Any) -> NamedSharding:  # an array or its shape
        sides = [i for i, d in enumerate(a.shape) if d % n == 0 and a.size >= least]
        longest = max(sides, key=lambda i: a.shape[i], default=None)
        return NamedSharding(mesh, PartitionSpec() if longest is None else PartitionSpec(*[None] * longest, MODEL))

    return jax.tree.map(of, params)


def groups(n: int, at_once: int | None = None, devices: int = 1) -> Iterator[tuple[np.ndarray, int]]:
    """Yields the rows of n images in groups of one size, so that one compiled program serves all of them.

    Args:
        n: number of images.
        at_once: most images in a group; all of them if None.
        devices: the size of a group is a multiple of it.

    Yields:
        (rows [size], how many of them are wanted). The last group is padded with its last row.

    Example:
        >>> [(rows.tolist(), wanted) for rows, wanted in groups(5, 3, devices=2)]
        [([0, 1], 2), ([2, 3], 2), ([4, 4], 1)]
    """
    size = n if at_once is None else min(checks.whole("images_at_once", at_once), n)
    size = -(-size // devices) * devices if at_once is None or at_once >= n else max(size // devices, 1) * devices
    for first in range(0, n, size):
        yield np.minimum(np.arange(first, first + size), n - 1), min(size, n - first)
