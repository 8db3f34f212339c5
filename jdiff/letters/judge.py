"""The judge of letters: which character a glyph shows, case folded, and how well it reads as a given one."""

import dataclasses
from collections.abc import Callable
from functools import cache
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
from jdiff.networks.unet import fold
from jdiff.parts import beside
from jdiff.types import Array, Params

SIZE = 32
# What the judge tells apart. O and 0 are one class, and I, i, l and 1.
CLASSES = "abcdefghijklmnopqrstuvwxyz23456789"
# Glyphs that look like another character; of the letters only small l, since a capital L is a shape of its own.
ALIKE = {"0": "o", "1": "i", "l": "i"}
# Classes by which a character of a word may be read.
READ_AS = {"0": "o", "1": "i", "l": "il"}


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Sizes of a judge: convolutions of 3 x 3 on patches of the glyph, then two dense layers."""

    patch: int
    channels: tuple[int, ...]
    halve: tuple[int, ...]  # convolutions after which height and width are halved
    features: int


# The judge that ranks, and one of other sizes and another seed that only measures.
KINDS = {
    "judge": Sizes(1, (16, 32, 64, 96), (0, 1, 3), 128),
    "second-judge": Sizes(2, (32, 48, 64, 64), (1, 3), 128),
}


def class_of(character: str) -> int:
    """Returns the place in `CLASSES` of the class that a glyph belongs to.

    Example:
        >>> [CLASSES[class_of(character)] for character in "OoL0lI1"]
        ['o', 'o', 'l', 'o', 'i', 'i', 'i']
    """
    return CLASSES.index(ALIKE.get(character, character.lower()))


def accepted(character: str) -> np.ndarray:
    """Returns which classes read as a character of a word, whatever its case: ones and zeros [classes].

    Example:
        >>> [CLASSES[i] for i in np.flatnonzero(accepted("L"))]
        ['i', 'l']
    """
    classes = READ_AS.get(character.lower(), character.lower())
    return np.array([float(name in classes) for name in CLASSES])


LABELS = np.array([class_of(character) for character in CHARACTERS])


def halve(x: Array) -> Array:
    """[n h w c] -> [n h/2 w/2 c], the largest of each four."""
    n, h, w, c = x.shape
    return x.reshape(n, h // 2, 2, w // 2, 2, c).max(axis=(2, 4))


class Judge(nnx.Module):
    """Convolutions without normalisation, so that contrast is learnt, and two dense layers."""

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
        x = fold(ink - 0.2, self.sizes.patch)
        for i, conv in enumerate(self.convs):
            x = nnx.relu(conv(x))
            x = halve(x) if i in self.sizes.halve else x
        return nnx.relu(self.dense(x.reshape(x.shape[0], -1)))

    def __call__(self, ink: Array) -> Array:
        return self.head(self.features(ink))


@cache
def network(kind: str = "judge", conv: Callable = jax.lax.conv_general_dilated) -> tuple[Apply, Params]:
    """Returns a judge as a pure function `(params, ink [n 32 32 1] in [0, 1]) -> logits [n classes]`, and its shapes.

    Args:
        kind: a name in `KINDS`.
        conv: the convolution, such as `jdiff.training.conv.conv_by_patches` for training on CPUs.

    Example:
        >>> apply, shapes = network()
        >>> sum(a.size for a in jax.tree.leaves(shapes))
        279810
    """
    return pure(lambda: Judge(KINDS[kind], conv, nnx.Rngs(0)), (Judge, kind, conv))


def init(kind: str, key: Array) -> dict:
    """Fresh parameters of a judge, float32."""
    return nnx.to_pure_dict(nnx.state(Judge(KINDS[kind], jax.lax.conv_general_dilated, nnx.Rngs(key))))


def chances(params: Params, images: Array, kind: str = "judge") -> Array:
    """Returns how likely each class is [n classes], for glyphs [n 32 32 1] in [-1, 1] with ink at 1.

    Raises:
        ValueError: the images have another shape.
    """
    if images.ndim != 4 or images.shape[1:] != (SIZE, SIZE, 1):
        raise ValueError(f"images must have shape [n {SIZE} {SIZE} 1], got {list(images.shape)}")
    ink = jnp.clip((images.astype(jnp.float32) + 1) / 2, 0, 1)
    return jax.nn.softmax(network(kind)[0](params, ink))


def load_params(folder: str | Path | None = None, kind: str = "judge") -> dict:
    """Returns the weights of a trained judge, float32, by default what ships with the library.

    Raises:
        ValueError: the file does not hold exactly this judge's weights.
    """
    path = (Path(folder) if folder is not None else shipped("letters") / kind) / "model.safetensors"
    if not path.is_file():
        raise ValueError(f"{path.parent} has no model.safetensors; train a judge by scripts/train_letters_judge.py")
    found = load_file(path)
    wanted = named(network(kind)[1])
    if found.keys() != wanted.keys() or any(a.shape != wanted[name].shape for name, a in found.items()):
        raise ValueError(f"{path} does not hold the weights of the {kind}; train it by scripts/train_letters_judge.py")
    return unnamed({name: jnp.asarray(a, jnp.float32) for name, a in found.items()}, network(kind)[1])


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
    """Returns the leaves of a tree of parameters under names such as "convs/0/kernel"."""
    return {_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def unnamed(flat: dict[str, Any], shapes: Params) -> dict:
    """Returns the tree of parameters whose leaves have these names."""
    return jax.tree_util.tree_map_with_path(lambda path, _: flat[_name(path)], shapes)


def _name(path: tuple[Any, ...]) -> str:  # keys of several types
    return "/".join(str(getattr(key, "key", key)) for key in path)


def load_judge(folder: str | Path | None = None, kind: str = "judge") -> Partial:
    """Returns `images [n 32 32 1] in [-1, 1] -> chances [n classes]`.

    It is a Partial, so its weights are an argument of `jax.jit` and no constant.
    """
    return Partial(_JUDGES[kind], load_params(folder, kind))


def _first(params: Params, images: Array) -> Array:
    return chances(params, images)


def _second(params: Params, images: Array) -> Array:
    return chances(params, images, "second-judge")


_JUDGES = {"judge": _first, "second-judge": _second}
