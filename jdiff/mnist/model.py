"""Part B's trained networks, and digits drawn by them, through the same scan as every other picture."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jdiff import combine, sample
from jdiff.checkpoints import files
from jdiff.mnist.objectives import one_hot
from jdiff.mnist.recipes import Recipe, recipes
from jdiff.mnist.unet import SIDE
from jdiff.model import shipped
from jdiff.types import Array, Combiner, Network

TOGETHER = 250  # pictures in one call of the scan: 2 x 250 of the course's network are about 2 GB on their way


class Digits(NamedTuple):
    """A network of part B that is ready to sample."""

    network: Network  # predicts for x [n 28 28 1], t [n] and Conditioning [n ...]
    recipe: Recipe
    facts: dict[str, Any]  # training.json: kind, recipe, how long and on what it was trained


class Drawn(NamedTuple):
    """Digits, and what was kept of the way to them."""

    images: np.ndarray  # [n 28 28 1] in [0, 1]
    way: np.ndarray | None = None  # [n m 28 28 1] as the network has it, not clipped


def name(kind: str, recipe: str) -> str:
    """Folder of that network, under weights/mnist.

    >>> name("class", "best")
    'class-best'
    """
    return f"{kind}-{recipe}"


def load(folder: str | Path = "class-best", weights: str | Path | None = None) -> Digits:
    """The network in a folder that `jdiff mnist train` wrote, or of that name under weights/mnist, which ships.

    `weights` is another file of its parameters, such as one kept after an epoch. Raises ValueError, in one message,
    where there is no such folder or its files are no such network's.

    >>> load("class-best").recipe.steps <= 50
    True
    """
    given, folder = folder, Path(folder)
    folder = folder if folder.is_dir() else shipped(f"mnist/{folder}")
    try:
        facts = json.loads((folder / "training.json").read_text())
        recipe, width = recipes()[facts["kind"], facts["recipe"]], facts["width"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        names = ", ".join(name(*key) for key in recipes())
        raise ValueError(
            f"model is {str(given)!r}, accepted are {names} where they ship, and folders that `jdiff mnist train` wrote"
        ) from error
    network = recipe.network(width, jax.lax.conv_general_dilated)
    path = folder / "model.safetensors" if weights is None else weights
    params = files.load(path, network.params, dtype=np.float32)
    return Digits(network.bind(jax.tree.map(jnp.asarray, params)), recipe, facts)


def guided(classes: Array, guidance: Any) -> Combiner:
    """Combiners [n ...] that guide each image to its class of [n]; -1 is none, and needs no guidance.

    >>> combine.size(guided(jnp.array([3]), 5.0))
    2
    """
    nothing = one_hot(jnp.array([-1]))[0]
    return jax.vmap(lambda text: combine.cfg(text, guidance, nothing))(one_hot(classes))


def draw(
    model: Digits,
    classes: Sequence[int] | np.ndarray,
    key: Array,
    *,
    steps: int | None = None,
    guidance: float | None = None,
    keep: int = 0,
    progress: Callable[[int, int], Any] | None = None,
) -> Drawn:
    """One digit of each of `classes` [n], -1 for any, from pure noise.

    Image i has the key fold_in(key, i), the same in any batch. What is not given is the recipe's: `steps`, network
    calls; `guidance`, 1 for none. `keep` is about how many images of the way to keep. `progress` is called with the
    images done and all of them.

    Source: course part B, 2.3 and 2.5 (its algorithms 2 and 4).
    """
    classes = np.asarray(classes, np.int32)
    if classes.ndim != 1 or not len(classes) or classes.min() < -1 or classes.max() > 9:
        raise ValueError(f"classes are {classes.tolist()}, accepted is a list of digits 0 to 9, or -1 for any")
    recipe = model.recipe
    levels = recipe.table(recipe.steps if steps is None else steps)
    guidance = recipe.guidance if guidance is None else guidance
    nothing = combine.conditional(one_hot(jnp.array([-1]))[0])
    keys = sample.image_keys(key, len(classes))
    images, ways = [], []
    for first in range(0, len(classes), TOGETHER):
        some = classes[first : first + TOGETHER]
        any_digit = bool((some < 0).all())
        made = sample.sample(
            model.network,
            keys[first : first + len(some)],
            sample.start(keys[first : first + len(some)], (SIDE, SIDE, 1)),
            levels,
            combiner=nothing if any_digit else guided(jnp.asarray(some), guidance),
            in_axes=None if any_digit else 0,
            solver=recipe.solver(),
            keep_every=-(-len(levels.t) // keep) if keep else 0,
        )
        images.append(np.clip(np.asarray(recipe.unscale(made.images)), 0, 1))
        ways.append(None if made.way is None else np.asarray(recipe.unscale(made.way)))
        if progress is not None:
            progress(first + len(some), len(classes))
    way = None if ways[0] is None else np.concatenate(ways)
    return Drawn(np.concatenate(images), way)
