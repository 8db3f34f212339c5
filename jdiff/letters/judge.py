"""The judges of letters. They read which character a glyph shows, in upper or lower case."""

import dataclasses
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.tree_util import Partial
from safetensors.numpy import load_file, save

from jdiff.letters.captions import CHARACTERS
from jdiff.model import shipped
from jdiff.networks.pure import Apply, pure
from jdiff.networks.unet import fold, halve
from jdiff.parts import beside
from jdiff.training.augment import jitter
from jdiff.types import Array, Params

SIZE = 32
READINGS = 16  # of each glyph by a judge that ranks
vary = partial(jitter, degrees=8.0, scale=0.15)  # changes glyphs [n h h] in [0, 1], in training and ranking
# The classes. O, o and 0 are one class, and so are I, i, l and 1. A capital L is the class "l".
CLASSES = "abcdefghijklmnopqrstuvwxyz23456789"
# Characters that look like another one. The small l does, the capital L does not.
ALIKE = {"0": "o", "1": "i", "l": "i"}
# Classes that count as right for a character of a word.
READ_AS = {"0": "o", "1": "i", "l": "il"}


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Sizes of a judge: 3 x 3 convolutions on patches of the glyph, then two dense layers."""

    patch: int  # side of a patch in pixels
    channels: tuple[int, ...]  # of the convolutions
    halve: tuple[int, ...]  # numbers of the convolutions after which height and width are halved
    features: int  # width of the first dense layer
    smooth: bool = False  # GELU and means, in the place of ReLU and maxima, whose gradients jump


# The second judge only measures, the gradient of the guide changes ambigrams, and the others rank candidates. Each has
# a seed of its own, because a glyph that one judge chose or changed looks better to this judge than to others.
KINDS = {
    "judge": Sizes(1, (16, 32, 64, 96), (0, 1, 3), 128),
    "second-judge": Sizes(2, (32, 48, 64, 64), (1, 3), 128),
    "third-judge": Sizes(2, (40, 56, 80, 96), (1, 3), 128),
    "fourth-judge": Sizes(1, (16, 32, 64, 96), (0, 1, 3), 128),
    "guide": Sizes(1, (24, 48, 64), (0, 1, 2), 128, smooth=True),
}
RANKERS = ("judge", "third-judge", "fourth-judge")


def class_of(character: str) -> int:
    """Returns the index in `CLASSES` of a glyph's class.

    Example:
        >>> [CLASSES[class_of(character)] for character in "OoL0lI1"]
        ['o', 'o', 'l', 'o', 'i', 'i', 'i']
    """
    return CLASSES.index(ALIKE.get(character, character.lower()))


def accepted(character: str) -> np.ndarray:
    """Returns the classes that count as right for a character of a word in any case: ones and zeros [classes].

    Example:
        >>> [CLASSES[i] for i in np.flatnonzero(accepted("L"))]
        ['i', 'l']
    """
    classes = READ_AS.get(character.lower(), character.lower())
    return np.array([float(name in classes) for name in CLASSES])


LABELS = np.array([class_of(character) for character in CHARACTERS])


class Judge(nnx.Module):
    """Convolutions and two dense layers, without normalisation, which would remove the contrast."""

    def __init__(self, sizes: Sizes, conv: Callable, rngs: nnx.Rngs):
        self.sizes = sizes
        init = nnx.initializers.he_normal()
        ins = (sizes.patch**2, *sizes.channels[:-1])
        self.convs = nnx.List(
            [
                nnx.Conv(a, b, (3, 3), conv_general_dilated=conv, kernel_init=init, rngs=rngs)
                for a, b in zip(ins, sizes.channels, strict=True)
            ]
        )
        side = SIZE // sizes.patch // 2 ** len(sizes.halve)
        self.dense = nnx.Linear(side**2 * sizes.channels[-1], sizes.features, rngs=rngs)
        self.head = nnx.Linear(sizes.features, len(CLASSES), rngs=rngs)

    def features(self, ink: Array) -> Array:
        """Returns the features [n features] of ink [n 32 32 1] in [0, 1]."""
        active, reduce = (nnx.gelu, jnp.mean) if self.sizes.smooth else (nnx.relu, jnp.max)
        x = fold(ink - 0.2, self.sizes.patch)
        for i, conv in enumerate(self.convs):
            x = active(conv(x))
            x = halve(x, reduce) if i in self.sizes.halve else x
        return active(self.dense(x.reshape(x.shape[0], -1)))

    def __call__(self, ink: Array) -> Array:
        """Returns the logits [n classes] of ink [n 32 32 1] in [0, 1]."""
        return self.head(self.features(ink))


def network(kind: str = "judge", conv: Callable = jax.lax.conv_general_dilated) -> tuple[Apply, Params]:
    """Returns a judge as a pure function, and the shapes of its parameters.

    The function is `(params, ink [n 32 32 1] in [0, 1]) -> logits [n classes]`.

    Args:
        kind: a name in `KINDS`.
        conv: the convolution; `jdiff.training.conv.conv_by_patches` is fast for training on CPUs.

    Example:
        >>> apply, shapes = network()
        >>> sum(a.size for a in jax.tree.leaves(shapes))
        279810
    """
    return _network(KINDS[kind], conv)


@cache
def _network(sizes: Sizes, conv: Callable) -> tuple[Apply, Params]:  # once for judges of the same sizes
    return pure(lambda rngs: Judge(sizes, conv, rngs), (Judge, sizes, conv))


def init(kind: str, key: Array) -> dict:
    """Returns fresh parameters of a judge in float32."""
    return nnx.to_pure_dict(nnx.state(Judge(KINDS[kind], jax.lax.conv_general_dilated, nnx.Rngs(key))))


def chances(params: Params, images: Array, kind: str = "judge") -> Array:
    """Returns the probability of each class [n classes].

    Args:
        params: of the judge.
        images: glyphs [n 32 32 1] in [-1, 1] with ink at 1.
        kind: a name in `KINDS`.

    Raises:
        ValueError: the images have another shape.
    """
    if images.ndim != 4 or images.shape[1:] != (SIZE, SIZE, 1):
        raise ValueError(f"images must have shape [n {SIZE} {SIZE} 1], got {list(images.shape)}")
    ink = jnp.clip((images.astype(jnp.float32) + 1) / 2, 0, 1)
    return jax.nn.softmax(network(kind)[0](params, ink))


def load_params(folder: str | Path | None = None, kind: str = "judge") -> dict:
    """Reads the parameters of a trained judge, in float32.

    Args:
        folder: folder of model.safetensors; the judge that ships with the library if None.
        kind: a name in `KINDS`.

    Raises:
        ValueError: the file does not exist, or does not hold exactly the parameters of this judge.
    """
    path = (Path(folder) if folder is not None else shipped("letters") / kind) / "model.safetensors"
    if not path.is_file():
        raise ValueError(f"{path.parent} has no model.safetensors; train a judge by scripts/train_letters_judge.py")
    found = load_file(path)
    wanted = named(network(kind)[1])
    if found.keys() != wanted.keys() or any(a.shape != wanted[name].shape for name, a in found.items()):
        raise ValueError(f"{path} does not hold the weights of the {kind}; train it by scripts/train_letters_judge.py")
    # NumPy converts without a program to compile
    return unnamed({name: jax.device_put(a.astype(np.float32)) for name, a in found.items()}, network(kind)[1])


def save_params(folder: str | Path, params: Params, kind: str = "judge") -> None:
    """Writes a judge's parameters to a folder, which `load_params` reads.

    Args:
        folder: for model.safetensors.
        params: of the network, in the dtype that they are stored in.
        kind: a name in `KINDS`.

    Raises:
        OSError: the file cannot be written. What was there stays.
    """
    path = Path(folder) / "model.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    with beside(path) as file:
        file.write(save(named(params), {"format": "jdiff.letters.judge", "kind": kind}))


def named(tree: Params) -> dict[str, Any]:
    """Returns the leaves of a tree of parameters, by names such as "convs/0/kernel"."""
    return {_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def unnamed(flat: dict[str, Any], shapes: Params) -> dict:
    """Returns the tree of parameters of named leaves: the inverse of `named`."""
    return jax.tree_util.tree_map_with_path(lambda path, _: flat[_name(path)], shapes)


def _name(path: tuple[Any, ...]) -> str:  # keys of several types
    return "/".join(str(getattr(key, "key", key)) for key in path)


def load_judge(folder: str | Path | None = None, kind: str = "judge") -> Partial:
    """Returns a trained judge as a function of images [n 32 32 1] in [-1, 1], which returns `chances`.

    It is a Partial. In `jax.jit(lambda judge, images: judge(images))` its parameters are arguments and not constants.

    Args:
        folder: as in `load_params`.
        kind: a name in `KINDS`.
    """
    return Partial(_CHANCES[kind], load_params(folder, kind))


def jittered(judged: Callable[[Array], Array], n: int = READINGS) -> Partial:
    """Returns a judge that reads every glyph n times, and takes the mean of the chances.

    Each time, all glyphs are changed alike: turned, scaled, shifted, with another contrast, and with noise, as in
    training. The mean agrees better with other judges than one reading does. This is test-time augmentation.

    Args:
        judged: reads images [n 32 32 1] in [-1, 1], as `load_judge` returns.
        n: number of readings.

    Example:
        >>> judged = jittered(lambda images: images.mean((1, 2)))
        >>> judged(jnp.full((1, 32, 32, 1), -1.0)).shape
        (1, 1)

    Reference:
        Krizhevsky et al. 2012, section 4.1, which takes the mean over ten crops.
    """
    return Partial(_jittered, judged, jax.random.split(jax.random.key(0), n))


def _jittered(judged: Callable[[Array], Array], keys: Array, images: Array) -> Array:
    ink = jnp.clip((images[..., 0] + 1) / 2, 0, 1)

    def read(key: Array) -> Array:
        changed = jax.vmap(lambda one: vary(key, one[None])[0])(ink)
        return judged(2 * changed[..., None] - 1)

    return jax.lax.map(read, keys).mean(axis=0)


def ranker(folder: str | Path | None = None) -> Partial:
    """Returns what ranks the candidates of ambigrams: the mean of the chances of all `RANKERS`, `jittered`.

    Args:
        folder: of the letters model and its judges; the model that ships with the library if None.

    Reference:
        Lakshminarayanan et al. 2017 (Deep Ensembles), section 2.4.
    """
    home = shipped("letters") if folder is None else Path(folder)
    return jittered(Partial(_mean, [load_judge(home / kind, kind) for kind in RANKERS]))


def _mean(judges: list[Partial], images: Array) -> Array:
    return jnp.stack([judged(images) for judged in judges]).mean(axis=0)


# One function for each kind, so that `jax.jit` compiles once for all judges of a kind.
_CHANCES = {kind: partial(chances, kind=kind) for kind in KINDS}
