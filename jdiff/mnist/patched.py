"""The best recipe's network: IF's UNet, which sees a digit as 14 x 14 squares of 2 x 2 pixels."""

import dataclasses
from collections.abc import Callable

import jax
from jax import lax

from jdiff.networks import unet as if_unet
from jdiff.types import Array, Conditioning, Network, Params, Prediction

SQUARE = 2


def config(width: int) -> if_unet.Config:
    """IF's UNet with `width` channels at 14 x 14 and twice as many at 7 x 7, told a class in place of a prompt.

    >>> config(48).block_out_channels
    (48, 96)
    """
    return if_unet.Config(
        sample_size=14,
        in_channels=SQUARE**2,
        out_channels=SQUARE**2,
        down_block_types=(if_unet.PLAIN_DOWN, if_unet.CROSS_DOWN),
        up_block_types=(if_unet.CROSS_UP, if_unet.PLAIN_UP),
        block_out_channels=(width, 2 * width),
        layers_per_block=(1, 1),
        attention_head_dim=32,
        cross_attention_dim=64,
        encoder_hid_dim=10,
        addition_embed_type_num_heads=2,
        norm_num_groups=8,
    )


def fold(x: Array) -> Array:
    """[n h w c] -> [n h/2 w/2 4c]: each square of 2 x 2 pixels becomes one; a permutation, so noise stays noise."""
    n, h, w, c = x.shape
    return x.reshape(n, h // SQUARE, SQUARE, w // SQUARE, SQUARE, c).transpose(0, 1, 3, 2, 4, 5).reshape(
        n, h // SQUARE, w // SQUARE, -1
    )  # fmt: skip


def unfold(x: Array) -> Array:
    """[n h w 4c] -> [n 2h 2w c], the way back from `fold`.

    >>> import jax.numpy as jnp
    >>> x = jnp.arange(16.0).reshape(1, 4, 4, 1)
    >>> bool((unfold(fold(x)) == x).all())
    True
    """
    n, h, w, c = x.shape
    return x.reshape(n, h, w, SQUARE, SQUARE, c // SQUARE**2).transpose(0, 1, 3, 2, 4, 5).reshape(
        n, h * SQUARE, w * SQUARE, -1
    )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class _Folded:
    """A network's `apply` on folded images."""

    inner: Callable[..., Prediction]

    def __call__(self, params: Params, x: Array, t: Array, conditioning: Conditioning) -> Prediction:
        return jax.tree.map(unfold, self.inner(params, fold(x), t, conditioning))


def unet(width: int, conv: Callable = lax.conv_general_dilated) -> Network:
    """Returns the network for digits [n 28 28 1], with the shapes of its parameters in the place of weights."""
    inner = if_unet.unet(config(width), conv)
    return Network(inner.params, _Folded(inner.apply), inner.prepare)


def training(width: int, conv: Callable = lax.conv_general_dilated) -> Callable[..., tuple[Prediction, float]]:
    """Returns the network as it is trained: `(params, x, t, conditioning) -> (Prediction, 0)`."""
    return _NoTerm(unet(width, conv).apply)


@dataclasses.dataclass(frozen=True)
class _NoTerm:
    apply: Callable[..., Prediction]

    def __call__(self, params: Params, x: Array, t: Array, conditioning: Conditioning) -> tuple[Prediction, float]:
        return self.apply(params, x, t, conditioning), 0.0


def init(width: int, key: Array) -> dict:
    """Fresh parameters, float32; the last convolution starts at zero."""
    return if_unet.init(config(width), key)
