"""The network of the recipe "best": IF's UNet on patches of 2 x 2 pixels."""

import dataclasses
from collections.abc import Callable

from jax import lax

from jdiff.networks import unet as if_unet
from jdiff.types import Array, Conditioning, Network, Params, Prediction


def config(width: int) -> if_unet.Config:
    """Returns the sizes of the network. Its text is the one-hot class.

    Args:
        width: number of channels at 14 x 14 pixels; there are twice as many at 7 x 7.

    Example:
        >>> config(48).block_out_channels
        (48, 96)
    """
    return if_unet.Config(
        sample_size=28,
        in_channels=1,
        out_channels=1,
        patch=2,
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


def unet(width: int, conv: Callable = lax.conv_general_dilated) -> Network:
    """Returns the network for digits [n 28 28 1]. Its parameters are shapes without values.

    Args:
        width: as in `config`.
        conv: convolution function, as in `jdiff.networks.unet.unet`.
    """
    return if_unet.unet(config(width), conv)


def training(width: int, conv: Callable = lax.conv_general_dilated) -> Callable[..., tuple[Prediction, float]]:
    """Returns the network in training: `(params, x, t, conditioning) -> (Prediction, 0)`.

    Args:
        width: as in `config`.
        conv: as in `unet`.
    """
    return _NoTerm(unet(width, conv).apply)


@dataclasses.dataclass(frozen=True)
class _NoTerm:
    """A network whose training adds no term to the loss."""

    apply: Callable[..., Prediction]

    def __call__(self, params: Params, x: Array, t: Array, conditioning: Conditioning) -> tuple[Prediction, float]:
        return self.apply(params, x, t, conditioning), 0.0


def init(width: int, key: Array) -> dict:
    """Returns new parameters in float32. The last convolution is zero.

    Args:
        width: as in `config`.
        key: random key.
    """
    return if_unet.init(config(width), key)
