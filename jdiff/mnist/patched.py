"""The best recipe's network: IF's UNet, which sees a digit as 14 x 14 squares of 2 x 2 pixels."""

from collections.abc import Callable
from typing import Any

import jax
from jax import lax

from jdiff.networks import unet as if_unet
from jdiff.types import Array, Conditioning, Prediction

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


class Apply:
    """`apply(params, x, t, conditioning) -> Prediction`, pure; equal networks inside are one function to `jit`."""

    def __init__(self, inner: if_unet.Apply):
        self.inner = inner

    def __call__(self, params: Any, x: Array, t: Array, conditioning: Conditioning) -> Prediction:
        """Prediction [n 28 28 1] of x [n 28 28 1], t [n] in 0..1000, and text [n 1 10]: the class, or zeros."""
        return jax.tree.map(unfold, self.inner(params, fold(x), t, conditioning))

    def train(self, params: Any, x: Array, t: Array, conditioning: Conditioning) -> tuple[Prediction, float]:
        """(prediction, nothing to add to the loss)."""
        return self(params, x, t, conditioning), 0.0

    def prepare(self, params: Any, conditioning: Conditioning) -> Conditioning:
        """`conditioning` with its text replaced by what the network makes of it at every step alike."""
        return self.inner.prepare(params, conditioning)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Apply) and self.inner == other.inner

    def __hash__(self) -> int:
        return hash(self.inner)


def unet(width: int, conv: Callable = lax.conv_general_dilated) -> tuple[Apply, dict]:
    """(apply, abstract): the pure network, and the shapes of its parameters as a nested dict."""
    inner, abstract = if_unet.unet(config(width), conv)
    return Apply(inner), abstract


def init(width: int, key: Array) -> dict:
    """Fresh parameters, float32; the last convolution starts at zero."""
    return if_unet.init(config(width), key)
