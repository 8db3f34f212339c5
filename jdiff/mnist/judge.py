"""The digit judge: a classifier that reads the digit, its colour and the background of the mini model's images."""

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx, traverse_util
from jax.tree_util import Partial
from safetensors.numpy import load_file, save

from jdiff.mnist.captions import BACKGROUNDS, COLOURS
from jdiff.model import shipped
from jdiff.networks.pure import Apply, pure
from jdiff.networks.unet import halve
from jdiff.parts import beside
from jdiff.types import Array, Params

SIZE = 32
CHANNELS = (16, 32, 64, 64)  # channels of the convolutions, at 32, 16, 8 and 8 pixels a side
FEATURES = 128
BORDER = 2  # pixels; MNIST padded to 32 has six empty ones on each side
# The quantile of the distances from the background that counts as full ink: the 20th highest of 1024 pixels. Thin
# digits have 30 pixels of full ink.
INK = 0.98
# The colour is read from pixels with more ink than this. Pixels with less are edges, mixed with the background. With
# a value of 0.5, 0.35 % of yellow on black and of red on white were misread.
CORE = 0.8
# Smallest distance of full ink from the background, in RGB in [-1, 1], so that noise is not read as ink. The smallest
# distance between a colour and a background of the captions is 2.
FAINT = 1.0
# Largest distances from a named background and from a named colour, in RGB in [-1, 1]. Black and white are 3.46 apart.
# Two named colours are at least 1 apart, and grey is 1.41 from the nearest one.
FAR_BACKGROUND = 0.5
FAR_COLOUR = 1.0


def convolution(inputs: int, outputs: int, conv: Callable, rngs: nnx.Rngs) -> nnx.Conv:
    """Returns a layer of 3 x 3 convolution."""
    return nnx.Conv(
        inputs, outputs, (3, 3), conv_general_dilated=conv, kernel_init=nnx.initializers.he_normal(), rngs=rngs
    )


class Judge(nnx.Module):
    """Four convolutions and two dense layers. There is no normalisation, because it would remove the contrast."""

    def __init__(self, conv: Callable, rngs: nnx.Rngs):
        a, b, c, d = CHANNELS
        self.conv_1 = convolution(1, a, conv, rngs)
        self.conv_2 = convolution(a, b, conv, rngs)
        self.conv_3 = convolution(b, c, conv, rngs)
        self.conv_4 = convolution(c, d, conv, rngs)
        self.dense = nnx.Linear((SIZE // 8) ** 2 * d, FEATURES, rngs=rngs)
        self.head = nnx.Linear(FEATURES, 10, rngs=rngs)

    def features(self, strokes: Array) -> Array:
        """Returns the features [n 128] of strokes [n 32 32]."""
        x = _checked(strokes)[..., None] - 0.1  # the mean of MNIST at 32 pixels
        x = halve(nnx.relu(self.conv_1(x)))
        x = halve(nnx.relu(self.conv_2(x)))
        x = nnx.relu(self.conv_3(x))
        x = halve(nnx.relu(self.conv_4(x)))
        return nnx.relu(self.dense(x.reshape(x.shape[0], -1)))

    def __call__(self, strokes: Array) -> Array:
        """Returns the logits [n 10] of strokes [n 32 32]."""
        return self.head(self.features(strokes))


def _checked(strokes: Array) -> Array:
    if strokes.ndim != 3 or strokes.shape[1:] != (SIZE, SIZE):
        raise ValueError(f"strokes must have shape [n {SIZE} {SIZE}], got {strokes.shape}")
    return strokes


@cache
def network(conv: Callable = jax.lax.conv_general_dilated) -> tuple[Apply, Params]:
    """Returns the judge as a pure function, and the shapes of its parameters.

    The function is `(params, strokes [n 32 32] in [0, 1]) -> logits [n 10]`. Its `at("features")` returns the features
    [n 128] of the last hidden layer, which are at least 0.

    Args:
        conv: convolution function; `jdiff.training.conv.conv_by_patches` is fast for training on CPUs.

    Example:
        >>> apply, shapes = network()
        >>> sum(a.size for a in jax.tree.leaves(shapes))
        192714
    """
    return pure(lambda rngs: Judge(conv, rngs=rngs), (Judge, conv))


def init(key: Array) -> dict:
    """Returns new parameters in float32.

    Args:
        key: random key.
    """
    return nnx.to_pure_dict(nnx.state(Judge(jax.lax.conv_general_dilated, rngs=nnx.Rngs(key))))


def background_of(images: Array) -> Array:
    """Returns the background's colour [n 3] of images [n h w 3]: the median of the border in each channel.

    Args:
        images: [n h w 3], with h and w above 4.

    Raises:
        ValueError: the images have another shape.
    """
    n, h, w, _ = _pictures(images).shape
    inner = np.pad(np.ones((h - 2 * BORDER, w - 2 * BORDER), bool), BORDER)
    return jnp.median(images.reshape(n, h * w, 3)[:, np.flatnonzero(~inner)], axis=1)


def _pictures(images: Array) -> Array:
    if images.ndim != 4 or images.shape[-1] != 3 or min(images.shape[1:3]) <= 2 * BORDER:
        raise ValueError(
            f"images must have shape [n h w 3] and more than {2 * BORDER} pixels a side, got {images.shape}"
        )
    return images


def strokes(images: Array) -> Array:
    """Returns the ink of images with any colour and any background.

    The ink of a pixel is its distance from the background's colour, measured along the line to the mean colour of all
    pixels that differ from the background. Full ink is 1. An empty image has no ink; see `FAINT`.

    Args:
        images: [n h w 3] in [-1, 1].

    Returns:
        [n h w] in [0, 1].

    Raises:
        ValueError: the images have another shape.

    Example:
        >>> white = jnp.ones((1, 8, 8, 3))
        >>> image = white.at[:, 3:5, 3:5].set(jnp.array([1.0, 0.0, -1.0]))  # an orange square
        >>> strokes(image)[0, 2:6, 3].tolist()
        [0.0, 1.0, 1.0, 0.0]
        >>> strokes(white).max().item()
        0.0
    """
    n, h, w, _ = _pictures(images).shape
    away = (images - background_of(images)[:, None, None]).reshape(n, h * w, 3)
    distance = jnp.linalg.norm(away, axis=-1)
    much = distance >= jnp.maximum(jnp.quantile(distance, INK, axis=-1, keepdims=True), FAINT) / 2
    towards = (away * much[..., None]).sum(axis=1)
    towards = towards / jnp.maximum(jnp.linalg.norm(towards, axis=-1, keepdims=True), 1e-6)
    along = jnp.einsum("npc,nc->np", away, towards)
    full = jnp.maximum(jnp.quantile(along, INK, axis=-1, keepdims=True), FAINT)
    return jnp.clip(along / full, 0.0, 1.0).reshape(n, h, w)


class Colours(NamedTuple):
    """The nearest named colours, and the distances to them in RGB in [-1, 1]."""

    colour: Array  # [n] index into COLOURS; -1 if none is within FAR_COLOUR, or if there is no ink
    background: Array  # [n] index into BACKGROUNDS; -1 if none is within FAR_BACKGROUND
    colour_distance: Array  # [n]; infinite if there is no ink
    background_distance: Array  # [n]


def colour(images: Array) -> Colours:
    """Finds the named colours of the ink and of the background.

    The colour of the ink is the mean of the pixels with more ink than `CORE`, weighted by their ink. The colour of the
    background is the median of the border.

    Args:
        images: [n h w 3] in [-1, 1].

    Raises:
        ValueError: the images have another shape.

    Example:
        >>> image = jnp.ones((1, 8, 8, 3)).at[:, 3:5, 3:5].set(jnp.array([1.0, 0.0, -1.0]))
        >>> found = colour(image)
        >>> list(COLOURS)[int(found.colour[0])], list(BACKGROUNDS)[int(found.background[0])]
        ('orange', ' on white')
    """
    ink = strokes(images)
    ink = jnp.where(ink > CORE, ink, 0.0)
    total = ink.sum(axis=(1, 2))
    mean = jnp.einsum("nhw,nhwc->nc", ink, images) / jnp.maximum(total, 1e-6)[:, None]
    hue, far = _nearest(mean, COLOURS)
    far = jnp.where(total > 0, far, jnp.inf)
    behind, behind_far = _nearest(background_of(images), BACKGROUNDS)
    return Colours(
        jnp.where(far > FAR_COLOUR, -1, hue), jnp.where(behind_far > FAR_BACKGROUND, -1, behind), far, behind_far
    )


def _nearest(rgb: Array, table: dict) -> tuple[Array, Array]:
    """Returns the index into `table` of the colour nearest to rgb [n 3], and its distance, both [n]."""
    names = jnp.array(list(table.values()), rgb.dtype)
    distance = jnp.linalg.norm(rgb[:, None] - names[None], axis=-1)
    return distance.argmin(axis=-1), distance.min(axis=-1)


class Verdict(NamedTuple):
    """The judge's result for n images."""

    digit: Array  # [n] most likely digit, 0 to 9
    probability: Array  # [n] probability of that digit
    colour: Array  # [n] as in Colours
    background: Array  # [n] as in Colours
    colour_distance: Array  # [n] as in Colours
    background_distance: Array  # [n]


def judge(params: Params, images: Array) -> Verdict:
    """Reads the digit, the colour and the background of images.

    Args:
        params: parameters of the network.
        images: [n 32 32 3] in [-1, 1].

    Raises:
        ValueError: the images have another shape.
    """
    apply, _ = network()
    images = images.astype(jnp.promote_types(images.dtype, jnp.float32))
    chances = jax.nn.softmax(apply(params, strokes(images)))
    return Verdict(chances.argmax(axis=-1), chances.max(axis=-1), *colour(images))


def load_params(folder: str | Path | None = None) -> dict:
    """Reads the parameters of the trained judge, in float32.

    Args:
        folder: folder of model.safetensors; the judge that ships with the library if None.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file does not hold exactly the parameters of this network.
    """
    path = (Path(folder) if folder is not None else shipped("judge")) / "model.safetensors"
    found = load_file(path)
    # Any: flax types the leaves of a flat dict as dicts
    wanted: Any = traverse_util.flatten_dict(network()[1], sep="/")
    bad = [f"{name} is missing" for name in wanted.keys() - found.keys()]
    bad += [f"{name} is unknown" for name in found.keys() - wanted.keys()]
    bad += [
        f"{name} must have shape {wanted[name].shape}, got {a.shape}"
        for name, a in found.items()
        if name in wanted and a.shape != wanted[name].shape
    ]
    if bad:
        raise ValueError(f"{path} does not hold the judge's parameters: {'; '.join(sorted(bad))}")
    return traverse_util.unflatten_dict({name: jnp.asarray(a, jnp.float32) for name, a in found.items()}, sep="/")


def save_params(folder: str | Path, params: Params, metadata: Mapping[str, str]) -> None:
    """Writes a judge's parameters to a folder, which `load_params` reads.

    Args:
        folder: folder for model.safetensors, which is made if it does not exist.
        params: parameters of the network, which keep their dtypes.
        metadata: metadata of the file, such as how the judge was trained.

    Raises:
        OSError: the file cannot be written. What was there stays.
    """
    flat: Any = traverse_util.flatten_dict(params, sep="/")
    path = Path(folder) / "model.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    with beside(path) as file:
        file.write(save(flat, {"format": "jdiff.mnist.judge", **metadata}))


def load_judge(folder: str | Path | None = None) -> Partial:
    """Returns the trained judge as a function of images [n 32 32 3] in [-1, 1].

    It is a Partial. In `jax.jit(lambda judge, images: judge(images))` its parameters are arguments and not constants.

    Args:
        folder: as in `load_params`.

    Raises:
        FileNotFoundError: as `load_params`.
        ValueError: as `load_params`.
    """
    return Partial(judge, load_params(folder))
