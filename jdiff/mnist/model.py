"""Part B's trained networks, and digits sampled with them."""

import json
import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jdiff import checks, combine, sample
from jdiff import mesh as meshes
from jdiff.checkpoints import files
from jdiff.mnist.objectives import one_hot
from jdiff.mnist.recipes import Recipe, recipes
from jdiff.mnist.unet import SIDE
from jdiff.model import shipped
from jdiff.parts import is_folder
from jdiff.types import Array, Combiner, Network

TOGETHER = 240  # images in one call; with guidance, the activations of the course's network then need about 2 GB


class Digits(NamedTuple):
    """A network of part B that is ready to sample."""

    network: Network  # predicts for x [n 28 28 1], t [n] and Conditioning [n ...]
    recipe: Recipe
    facts: dict[str, Any]  # contents of training.json: the kind, the recipe, and the training


class Drawn(NamedTuple):
    """Sampled digits."""

    images: np.ndarray  # [n 28 28 1] in [0, 1]
    way: np.ndarray | None = None  # [n m 28 28 1] intermediate images, not clipped


def name(kind: str, recipe: str) -> str:
    """Returns the name of a network's folder in weights/mnist.

    Args:
        kind: one of `recipes.KINDS`.
        recipe: name of the recipe, such as "best".

    Example:
        >>> name("class", "best")
        'class-best'
    """
    return f"{kind}-{recipe}"


def load(folder: str | Path = "class-best", weights: str | Path | None = None) -> Digits:
    """Loads a network of part B.

    Args:
        folder: a folder that `jdiff mnist train` wrote, or the name of a network in weights/mnist.
        weights: another file of parameters, such as those after an epoch; the folder's model.safetensors if None.

    Raises:
        ValueError: there is no such folder, or its files do not fit the network.

    Example:
        >>> load("class-best").recipe.steps <= 50
        True
    """
    given, folder = folder, Path(folder)
    folder = folder if is_folder(folder) else shipped(f"mnist/{folder}")
    try:
        facts = json.loads((folder / "training.json").read_text())
        recipe, width = recipes()[facts["kind"], facts["recipe"]], facts["width"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        names = ", ".join(name(*key) for key in recipes())
        raise ValueError(
            f"model must be a folder that `jdiff mnist train` wrote, or one of {names}, got {str(given)!r}"
        ) from error
    network = recipe.network(width, jax.lax.conv_general_dilated)
    path = folder / "model.safetensors" if weights is None else weights
    params = files.load(path, network.params, dtype=np.float32)
    return Digits(network.bind(jax.tree.map(jnp.asarray, params)), recipe, facts)


def _unscaled(watch: Callable, unscale: Callable, done: int, total: int, x: np.ndarray) -> None:
    watch(done, total, np.asarray(unscale(x)))


def guided(classes: Array, guidance: float) -> Combiner:
    """Returns `combine.guided` of each class.

    Args:
        classes: [n] in 0 to 9; -1 is no class.
        guidance: guidance scale.

    Returns:
        A Combiner with leaves [n ...].

    Example:
        >>> combine.size(guided(jnp.array([3]), 5.0))
        2
    """
    nothing = one_hot(jnp.array([-1]))[0]
    return jax.vmap(lambda text: combine.guided(text, guidance, nothing))(one_hot(classes))


def mesh_for(n: int) -> Mesh | None:
    """Returns the mesh of all devices, or None if there is one device or `draw` cannot split n images over them.

    Example:
        >>> mesh_for(jax.device_count() + 1) is None
        True
    """
    return None if math.gcd(n, TOGETHER) % jax.device_count() else meshes.over_devices()


def draw(
    model: Digits,
    classes: Sequence[int] | np.ndarray,
    key: Array,
    *,
    steps: int | None = None,
    guidance: float | None = None,
    keep: int = 0,
    mesh: Mesh | None = None,
    progress: Callable[[int, int], object] | None = None,
    watch: Callable[[int, int, np.ndarray], None] | None = None,
) -> Drawn:
    """Samples digits from pure noise.

    Args:
        model: a network of part B.
        classes: class of each image [n], 0 to 9; -1 is no class.
        key: random key. Image i gets fold_in(key, i), so it is the same in any batch.
        steps: steps of the sampler; the recipe's default if None.
        guidance: guidance scale; 1 is no guidance. The recipe's default if None.
        keep: about how many intermediate images to keep of each digit.
        mesh: devices to split the images over, from `mesh_for`. If None, the device that holds the model.
        progress: called with (finished images, images in all) after each call of 240 images.
        watch: called with (rows done, rows in all, current images [m 28 28 1]) after every row of each call. An
            exception that it raises ends the drawing.

    Raises:
        ValueError: an argument is out of range, or the number of devices does not divide n and 240.

    Reference:
        Course part B, 2.3 and 2.5 (its algorithms 2 and 4).
    """
    classes = np.asarray(classes, np.int32)
    if classes.ndim != 1 or not len(classes) or classes.min() < -1 or classes.max() > 9:
        raise ValueError(f"classes must be a list of digits 0 to 9, or -1 for no class, got {classes.tolist()}")
    recipe = model.recipe
    levels = recipe.table(recipe.steps if steps is None else steps)
    guidance = checks.number("guidance", recipe.guidance if guidance is None else guidance)
    devices = 1 if mesh is None else mesh.shape[meshes.DATA]
    if math.gcd(len(classes), TOGETHER) % devices:
        raise ValueError(f"the number of devices must divide {TOGETHER} and {len(classes)} images, got {devices}")
    whole = (lambda tree: tree) if mesh is None else partial(meshes.replicate, mesh)
    split = (lambda tree: tree) if mesh is None else partial(meshes.split_rows, mesh)
    network = whole(model.network)
    nothing = whole(combine.conditional(one_hot(jnp.array([-1]))[0]))
    keys = sample.image_keys(key, len(classes))
    images, ways = [], []
    for first in range(0, len(classes), TOGETHER):
        some = classes[first : first + TOGETHER]
        own = split(keys[first : first + TOGETHER])
        any_digit = bool((some < 0).all())
        made = sample.sample(
            network,
            own,
            sample.start(own, (SIDE, SIDE, 1)),
            levels,
            combiner=nothing if any_digit else split(guided(jnp.asarray(some), guidance)),
            in_axes=None if any_digit else 0,
            solver=recipe.solver(),
            keep_every=-(-len(levels.t) // keep) if keep else 0,
            watch=None if watch is None else partial(_unscaled, watch, recipe.unscale),
        )
        images.append(np.clip(np.asarray(recipe.unscale(made.images)), 0, 1))
        ways.append(None if made.way is None else np.asarray(recipe.unscale(made.way)))
        if progress is not None:
            progress(first + len(some), len(classes))
    way = None if ways[0] is None else np.concatenate(ways)
    return Drawn(np.concatenate(images), way)
