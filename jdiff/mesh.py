"""Devices: CPU cores as devices, meshes of devices, and the layout of arrays over a mesh.

Only this module, the commands, bulk drawing and the scripts choose devices. All other modules compute where their
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
    """Makes the CPU 1, 2 or 4 JAX devices: as many as it has cores for.

    On one device, XLA computes many operations on one core. This has no effect once JAX has started, or if the number
    of devices is already set, such as by JAX_NUM_CPU_DEVICES.

    Args:
        batch: a number that the number of devices must divide, such as the batch size of a training.
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
        model: number of devices that large parameters are split over; it must divide the number of all devices.

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
    """Returns `make()`, or None if there is one device."""
    return make() if jax.device_count() > 1 else None


def over_local_devices() -> Mesh | None:
    """Returns a mesh of this process's devices, to split images over, or None if there is one device."""
    devices = jax.local_devices()
    if len(devices) == 1:
        return None
    return jax.make_mesh((len(devices), 1), (DATA, MODEL), axis_types=(AxisType.Auto,) * 2, devices=devices)


def split_rows(mesh: Mesh, tree: Tree) -> Tree:
    """Returns arrays [n ...] with their rows split over the mesh's axis "data".

    Args:
        mesh: mesh with an axis "data", whose size divides n.
        tree: arrays.

    Example:
        >>> tuple(split_rows(make(), jnp.zeros((jax.device_count(), 3))).sharding.spec)
        ('data',)
    """
    return place(tree, NamedSharding(mesh, PartitionSpec(DATA)))


def replicate(mesh: Mesh, tree: Tree) -> Tree:
    """Returns arrays copied whole to every device of a mesh. Arrays that are already on this mesh do not change.

    Args:
        mesh: any mesh.
        tree: arrays.

    Example:
        >>> replicate(make(), jnp.zeros(3)).sharding.is_fully_replicated
        True
    """
    whole = NamedSharding(mesh, PartitionSpec())
    on_mesh = lambda a: getattr(getattr(a, "sharding", None), "mesh", None) == mesh
    return jax.tree.map(lambda a: a if on_mesh(a) else place(a, whole), tree)


def place(tree: Tree, sharding: NamedSharding) -> Tree:
    """Returns arrays laid out over the devices of one or several processes.

    Args:
        tree: arrays. Several processes must all pass the same ones.
        sharding: layout of each array.
    """
    if jax.process_count() == 1:
        return jax.device_put(tree, sharding)

    def put(a: jax.Array | np.ndarray) -> jax.Array:
        if isinstance(a, jax.Array) and jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(put(jax.random.key_data(a)), impl=jax.random.key_impl(a))
        values = np.asarray(a)
        return jax.make_array_from_callback(values.shape, sharding, lambda index: values[index])

    return jax.tree.map(put, tree)


def parameter_shardings(mesh: Mesh, params: Params, least: int = 2**16) -> Any:
    """Returns a sharding for each parameter. Large ones are split over the mesh's axis "model" along one array axis.

    It is the longest axis whose length is a multiple of the number of devices. Without one, the array stays whole.

    Args:
        mesh: mesh with an axis "model".
        params: arrays, or their shapes.
        least: arrays with fewer numbers than this stay whole on every device.

    Returns:
        A tree of `NamedSharding` like `params`, for `jax.device_put` or `jax.jit`.

    Example:
        >>> shapes = {"kernel": jax.ShapeDtypeStruct((3, 3, 256, 512), "float32")}
        >>> tuple(parameter_shardings(make(), shapes)["kernel"].spec)
        (None, None, None, 'model')
    """
    n = mesh.shape[MODEL]

    def of(a: jax.Array | np.ndarray | jax.ShapeDtypeStruct) -> NamedSharding:
        sides = [i for i, d in enumerate(a.shape) if d % n == 0 and a.size >= least]
        longest = max(sides, key=lambda i: a.shape[i], default=None)
        return NamedSharding(mesh, PartitionSpec() if longest is None else PartitionSpec(*[None] * longest, MODEL))

    return jax.tree.map(of, params)


def groups(n: int, at_once: int | None = None, devices: int = 1) -> Iterator[tuple[np.ndarray, int]]:
    """Yields the rows of n images in groups of one size, so that one compiled program serves all groups.

    Args:
        n: number of images.
        at_once: largest number of images in a group, but at least one per device; all of them if None.
        devices: number of devices. The size of a group is a multiple of it.

    Yields:
        (rows [size], number of rows that count). The last group is padded with its last row.

    Raises:
        ValueError: `at_once` is below 1.

    Example:
        >>> [(rows.tolist(), wanted) for rows, wanted in groups(5, 3, devices=2)]
        [([0, 1], 2), ([2, 3], 2), ([4, 4], 1)]
    """
    size = n if at_once is None else min(checks.whole("images_at_once", at_once), n)
    size = -(-size // devices) * devices if at_once is None or at_once >= n else max(size // devices, 1) * devices
    for first in range(0, n, size):
        yield np.minimum(np.arange(first, first + size), n - 1), min(size, n - first)
