"""The course's UNet for MNIST: convolutions, BatchNorm and GELU, with or without inputs for time and class."""

import dataclasses
from collections.abc import Callable, Iterable
from itertools import pairwise

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.typing import DTypeLike

from jdiff.networks.pure import Apply, pure
from jdiff.networks.unet import gelu
from jdiff.types import Array, Conditioning, Network, Prediction

SIDE, CLASSES = 28, 10
EPS = 1e-5
MOMENTUM = 0.1  # weight of a batch in the running statistics, as in PyTorch; it is used as a learning rate


@dataclasses.dataclass(frozen=True)
class Config:
    """The sizes of one of the course's networks. The defaults are those of the class-conditional DDPM.

    Example:
        >>> Config().width
        64
    """

    width: int = 64  # channels D
    time: bool = True  # whether the time is an input
    classes: bool = True  # whether the class is an input
    multiply: bool = False  # whether features are multiplied by the time's embedding (flow edition) or added (DDPM)


def convolve(x: Array, kernel: Array, *, stride: int = 1, up: int = 1, pad: int, conv: Callable) -> Array:
    """Convolves images with a kernel.

    Args:
        x: [n h w c].
        kernel: [k k c o].
        stride: stride of the convolution.
        up: stride of a transposed convolution; 1 for a plain one.
        pad: number of zeros on each side.
        conv: convolution function, like `lax.conv_general_dilated`.

    Returns:
        [n h w o].
    """
    return conv(
        x, kernel, (stride, stride), ((pad, pad), (pad, pad)), lhs_dilation=(up, up),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )  # fmt: skip


def _channels(a: Array, dtype: DTypeLike) -> Array:
    return a.astype(dtype)[None, None, None]


class Norm(nnx.Module):
    """BatchNorm. With a list `pulls`, it uses the statistics of the batch, otherwise the running statistics."""

    def __init__(self, width: int):
        self.scale, self.bias = nnx.Param(jnp.ones(width)), nnx.Param(jnp.zeros(width))
        self.mean, self.var = nnx.BatchStat(jnp.zeros(width)), nnx.BatchStat(jnp.ones(width))

    def __call__(self, x: Array, pulls: list | None) -> Array:
        mean, var = self.mean[...], self.var[...]
        wide = jnp.promote_types(x.dtype, jnp.float32)
        if pulls is not None:
            seen = x.astype(wide)
            count = x.size // x.shape[-1]
            running, (mean, var) = (mean, var), (seen.mean((0, 1, 2)), seen.var((0, 1, 2)))
            unbiased = var * count / (count - 1)
            for kept, new in zip(running, (mean, unbiased), strict=True):
                pulls.append(
                    jnp.sum((kept - lax.stop_gradient(new)) ** 2) / 2
                )  # its gradient moves the running statistics
        factor = self.scale[...] * lax.rsqrt(var + EPS)
        shift = self.bias[...] - mean * factor
        return (x * _channels(factor, wide) + _channels(shift, wide)).astype(x.dtype)


class Convolution(nnx.Module):
    """Convolution with a bias, then BatchNorm and GELU if `norm`. It is transposed if `up` is more than 1."""

    def __init__(
        self, inputs: int, outputs: int, conv: Callable, rngs: nnx.Rngs, *, size=3, stride=1, up=1, pad=1, norm=True
    ):
        bound = (size * size * (outputs if up > 1 else inputs)) ** -0.5  # as PyTorch initialises it
        uniform = lambda shape: nnx.Param(jax.random.uniform(rngs.params(), shape, minval=-bound, maxval=bound))
        self.kernel, self.bias = uniform((size, size, inputs, outputs)), uniform((outputs,))
        self.norm = Norm(outputs) if norm else None
        self.conv, self.stride, self.up, self.pad = conv, stride, up, pad

    def __call__(self, x: Array, pulls: list | None) -> Array:
        kernel = self.kernel[...].astype(x.dtype)
        x = convolve(x, kernel, stride=self.stride, up=self.up, pad=self.pad, conv=self.conv)
        x = x + _channels(self.bias[...], x.dtype)
        return x if self.norm is None else gelu(self.norm(x, pulls))


class Dense(nnx.Module):
    """The course's FCBlock: linear, GELU, linear."""

    def __init__(self, inputs: int, outputs: int, rngs: nnx.Rngs):
        def linear(inputs: int) -> nnx.Linear:
            bound = inputs**-0.5
            uniform = lambda key, shape, dtype, _=None: jax.random.uniform(key, shape, dtype, -bound, bound)
            return nnx.Linear(inputs, outputs, kernel_init=uniform, bias_init=uniform, rngs=rngs)

        self.linear_1, self.linear_2 = linear(inputs), linear(outputs)

    def __call__(self, x: Array) -> Array:
        return self.linear_2(gelu(self.linear_1(x)))[:, None, None]


class UNet(nnx.Module):
    """The network of `unet`."""

    def __init__(self, config: Config, conv: Callable, *, rngs: nnx.Rngs):
        d = config.width
        self.config = config
        block = lambda *widths: nnx.List([Convolution(i, o, conv, rngs) for i, o in pairwise(widths)])
        down = lambda i, o: nnx.List([Convolution(i, o, conv, rngs, stride=2), *block(o, o, o)])
        up = lambda i, o: nnx.List([Convolution(i, o, conv, rngs, size=4, up=2, pad=2), *block(o, o, o)])
        self.first = block(1, d, d)
        self.down_1, self.down_2 = down(d, d), down(d, 2 * d)
        self.unflatten = Convolution(2 * d, 2 * d, conv, rngs, size=7, up=7, pad=6)
        self.up_1, self.up_2 = up(4 * d, d), up(2 * d, d)
        self.last = block(2 * d, d, d)
        self.out = Convolution(d, 1, conv, rngs, norm=False)
        self.time_1, self.time_2 = (Dense(1, w, rngs) if config.time else None for w in (2 * d, d))
        self.class_1, self.class_2 = (Dense(CLASSES, w, rngs) if config.classes else None for w in (2 * d, d))

    def __call__(self, x: Array, t: Array, conditioning: Conditioning, pulls: list | None = None) -> Prediction:
        """Predicts. With a list `pulls`, it uses the statistics of the batch, and appends BatchNorm's terms to it."""
        x = _checked(x)

        def through(layers: Iterable[Convolution], x: Array) -> Array:
            for layer in layers:
                x = layer(x, pulls)
            return x

        def condition(x: Array, time: Dense | None, classes: Dense | None) -> Array:
            if classes is not None:
                x = x * classes(conditioning.text[:, 0].astype(x.dtype))
            if time is None:
                return x
            by = time(t[:, None].astype(x.dtype))
            return x * by if self.config.multiply else x + by

        at_28 = through(self.first, x)
        at_14 = through(self.down_1, at_28)
        at_7 = through(self.down_2, at_14)
        flat = gelu(at_7.mean((1, 2), keepdims=True))
        u = condition(self.unflatten(flat, pulls), self.time_1, self.class_1)
        u = condition(through(self.up_1, jnp.concatenate([u, at_7], -1)), self.time_2, self.class_2)
        u = through(self.up_2, jnp.concatenate([u, at_14], -1))
        return Prediction(self.out(through(self.last, jnp.concatenate([u, at_28], -1)), pulls))

    def in_training(self, x: Array, t: Array, conditioning: Conditioning) -> tuple[Prediction, Array]:
        """Predicts with the statistics of the batch, and returns a term for the loss.

        The term is half the squared distance between the running statistics and the batch's. Gradient descent on it
        with a learning rate of 0.1 updates the running statistics as PyTorch's BatchNorm does.
        """
        pulls: list = []
        prediction = self(x, t, conditioning, pulls)
        return prediction, jnp.stack(pulls).sum()


def _checked(x: Array) -> Array:
    if x.ndim != 4 or x.shape[1:] != (SIDE, SIDE, 1):
        raise ValueError(f"x must have shape [n {SIDE} {SIDE} 1], got {x.shape}")
    return x


KINDS = (("params", nnx.Param), ("statistics", nnx.BatchStat))


def unet(config: Config, conv: Callable = lax.conv_general_dilated) -> Network:
    """Returns the network of a config. Its `params` and `statistics` are shapes without values.

    It predicts for images x [n 28 28 1] and times t [n] in [0, 1]. The text [n 1 10] is the one-hot class, or zeros for
    no class.

    Args:
        config: sizes and inputs of the network.
        conv: convolution function; `jdiff.training.conv.conv_by_patches` is fast for training on CPUs.

    Example:
        >>> sum(a.size for a in jax.tree.leaves(unet(Config()).params["params"]))
        2019201

    Reference:
        The course's part B, figure 2 (the denoiser) and sections 2.1 and 2.4 (time and class).
    """
    apply, shapes = pure(lambda rngs: UNet(config, conv, rngs=rngs), (UNet, config, conv), KINDS)
    return Network(shapes, apply)


def training(config: Config, conv: Callable = lax.conv_general_dilated) -> Apply:
    """Returns the network in training: `(params, x, t, conditioning) -> (Prediction, term for the loss)`.

    Args:
        config: as in `unet`.
        conv: as in `unet`.
    """
    return pure(lambda rngs: UNet(config, conv, rngs=rngs), (UNet, config, conv), KINDS)[0].at("in_training")


def init(config: Config, key: Array) -> dict:
    """Returns new parameters in float32, with the default distributions of PyTorch's layers.

    Args:
        config: as in `unet`.
        key: random key.
    """
    model = UNet(config, lax.conv_general_dilated, rngs=nnx.Rngs(key))
    states = nnx.split(model, *(kind for _, kind in KINDS))[1:]
    return {name: nnx.to_pure_dict(state) for (name, _), state in zip(KINDS, states, strict=True)}
