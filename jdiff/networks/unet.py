"""The UNets of DeepFloyd IF's stages 1 and 2, as pure functions of a nested dict of parameters."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jdiff.networks.pure import pure
from jdiff.networks.unet_config import CROSS_DOWN as CROSS_DOWN
from jdiff.networks.unet_config import CROSS_UP as CROSS_UP
from jdiff.networks.unet_config import FIXED as FIXED
from jdiff.networks.unet_config import PLAIN_DOWN as PLAIN_DOWN
from jdiff.networks.unet_config import PLAIN_UP as PLAIN_UP
from jdiff.networks.unet_config import Config as Config
from jdiff.networks.unet_config import read_config as read_config
from jdiff.types import Array, Conditioning, Network, Prediction


def gelu(x: Array) -> Array:
    """Returns the exact GELU, by erf as PyTorch computes it. Flax's default, by tanh, has errors up to 4.7e-4.

    It is computed in float32 or better. `jax.nn.gelu(approximate=False)` uses erfc, which is slower on CPUs: see
    `python scripts/benchmark.py parts`.
    """
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return (0.5 * wide * (1 + jax.lax.erf(wide * np.sqrt(0.5).astype(wide.dtype)))).astype(x.dtype)


def group_norm(groups: int, channels: int, eps: float, rngs: nnx.Rngs) -> nnx.GroupNorm:
    """Returns GroupNorm with a two-pass variance. Flax's fast variance has errors up to 8.3 for means far from 0."""
    return nnx.GroupNorm(channels, num_groups=groups, epsilon=eps, use_fast_variance=False, rngs=rngs)


def sinusoid(t: Array, width: int) -> Array:
    """Returns cos and sin of t [n] at width / 2 frequencies, from 1 down to 1e-4: [n width], in float32 or better."""
    t = t.astype(jnp.promote_types(t.dtype, jnp.float32))
    half = width // 2
    angle = t[:, None] * jnp.exp(-np.log(10000.0) / half * jnp.arange(half, dtype=t.dtype))[None]
    return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)


def convolve(x: Array, kernel: Array, strides: Sequence[int], padding: str, **options: Any) -> Array:
    """Convolves x [n h w c] with a kernel [k k c o] of an odd k, stride 1 and padding "SAME". It is fast on CPUs.

    A kernel of one pixel is a matrix product. Other kernels go through `with_one_more_row`.
    """
    if kernel.shape[:2] == (1, 1):
        return x @ kernel[0, 0]
    side = kernel.shape[0] // 2
    return with_one_more_row(x, kernel, ((side, side), (side, side)), **options)


def with_one_more_row(x: Array, kernel: Array, pads: Sequence[tuple[int, int]], **options: Any) -> Array:
    """Convolves x [n h w c] with a kernel [k l c o] and stride 1. It is fast on CPUs.

    XLA has two convolutions on CPUs. The one that it prefers is slower if one device has several threads. XLA uses the
    other one if the output is larger than the input. So on a single CPU device, the output gets one more row, which is
    cut off. See `python scripts/benchmark.py parts`.

    Args:
        x: images.
        kernel: filters.
        pads: number of zeros before and after the rows, and before and after the columns.
        options: other arguments of `jax.lax.conv_general_dilated`.
    """
    (before, after), columns = pads
    more = jax.default_backend() == "cpu" and jax.local_device_count() == 1
    y = jax.lax.conv_general_dilated(x, kernel, (1, 1), [(before, after + more), columns], **options)
    return y[:, :-1] if more else y


def convolution(inputs: int, outputs: int, size: int, conv: Callable, rngs: nnx.Rngs) -> nnx.Conv:
    """Returns a convolution layer whose convolution is `conv`."""
    return nnx.Conv(inputs, outputs, (size, size), conv_general_dilated=conv, rngs=rngs)


class TimestepEmbedding(nnx.Module):
    """Two dense layers [n inputs] -> [n width]."""

    def __init__(self, inputs: int, width: int, rngs: nnx.Rngs):
        self.linear_1 = nnx.Linear(inputs, width, rngs=rngs)
        self.linear_2 = nnx.Linear(width, width, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        return self.linear_2(gelu(self.linear_1(x)))


class AttentionPooling(nnx.Module):
    """Pools text states [n l d] to [n d] by attention. Their mean is the query; the mean and the states are keys."""

    def __init__(self, width: int, heads: int, rngs: nnx.Rngs):
        self.heads = heads
        self.positional_embedding = nnx.Param(jax.random.normal(rngs.params(), (1, width)) / width**0.5)
        self.q_proj = nnx.Linear(width, width, rngs=rngs)
        self.k_proj = nnx.Linear(width, width, rngs=rngs)
        self.v_proj = nnx.Linear(width, width, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        token = x.mean(axis=1, keepdims=True) + self.positional_embedding[...].astype(x.dtype)[None]
        x = jnp.concatenate([token, x], axis=1)
        q, k, v = (
            a.reshape(*a.shape[:2], self.heads, -1) for a in (self.q_proj(token), self.k_proj(x), self.v_proj(x))
        )
        scale = q.shape[-1] ** -0.25  # scales both q and k, so that their product does not overflow in half precision
        weights = jnp.einsum("nqhd,nkhd->nhqk", q * scale, k * scale)
        weights = jax.nn.softmax(weights.astype(jnp.promote_types(x.dtype, jnp.float32))).astype(x.dtype)
        return jnp.einsum("nhqk,nkhd->nqhd", weights, v).reshape(x.shape[0], -1)


class TextTimeEmbedding(nnx.Module):
    """Pools text states [n l d] to a vector [n width], which is added to the time embedding."""

    def __init__(self, inputs: int, width: int, heads: int, rngs: nnx.Rngs):
        self.norm1 = nnx.LayerNorm(inputs, epsilon=1e-5, use_fast_variance=False, rngs=rngs)
        self.pool = AttentionPooling(inputs, heads, rngs)
        self.proj = nnx.Linear(inputs, width, rngs=rngs)
        self.norm2 = nnx.LayerNorm(width, epsilon=1e-5, use_fast_variance=False, rngs=rngs)

    def __call__(self, text: Array) -> Array:
        return self.norm2(self.proj(self.pool(self.norm1(text))))


class Resnet(nnx.Module):
    """A residual block of two convolutions. The time embedding scales and shifts the input of the second one."""

    def __init__(
        self, inputs: int, outputs: int, config: Config, conv: Callable, rngs: nnx.Rngs, resample=None, out_scale=None
    ):
        self.resample = resample
        self.skip_time_act = config.resnet_skip_time_act
        self.out_scale = config.resnet_out_scale_factor if out_scale is None else out_scale
        self.norm1 = group_norm(config.norm_num_groups, inputs, config.norm_eps, rngs)
        self.conv1 = convolution(inputs, outputs, 3, conv, rngs)
        self.time_emb_proj = nnx.Linear(config.time_width, 2 * outputs, rngs=rngs)
        self.norm2 = group_norm(config.norm_num_groups, outputs, config.norm_eps, rngs)
        self.conv2 = convolution(outputs, outputs, 3, conv, rngs)
        self.conv_shortcut = convolution(inputs, outputs, 1, conv, rngs) if inputs != outputs else None

    def __call__(self, x: Array, time: Array) -> Array:
        h = gelu(self.norm1(x))
        if self.resample is not None:
            x, h = self.resample(x), self.resample(h)
        h = self.conv1(h)
        time = self.time_emb_proj(time if self.skip_time_act else gelu(time))[:, None, None]
        scale, shift = jnp.split(time, 2, axis=-1)
        h = self.conv2(gelu(self.norm2(h) * (1 + scale) + shift))
        x = x if self.conv_shortcut is None else self.conv_shortcut(x)
        return (x + h) / self.out_scale if self.out_scale != 1 else x + h


def halve(x: Array, reduce: Callable[..., Array] = jnp.max) -> Array:
    """Returns the maximum, or another reduction such as `jnp.mean`, of each 2 x 2 pixels: [n h/2 w/2 c] of [n h w c].

    Example:
        >>> halve(jnp.arange(4.0).reshape(1, 2, 2, 1)).item()
        3.0
    """
    n, h, w, c = x.shape
    return reduce(x.reshape(n, h // 2, 2, w // 2, 2, c), axis=(2, 4))


def fold(x: Array, patch: int) -> Array:
    """Turns each square of patch x patch pixels into one pixel with more channels.

    Independent Gaussian noise stays independent, because numbers are only moved.

    Args:
        x: [n h w c].
        patch: side of a square, which divides h and w.

    Returns:
        [n h/patch w/patch patch^2 c].

    Example:
        >>> fold(jnp.zeros((1, 4, 6, 3)), 2).shape
        (1, 2, 3, 12)
    """
    n, h, w, c = x.shape
    x = x.reshape(n, h // patch, patch, w // patch, patch, c)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(n, h // patch, w // patch, -1)


def unfold(x: Array, patch: int) -> Array:
    """Undoes `fold`.

    Args:
        x: [n h w patch^2 c].
        patch: side of a square.

    Returns:
        [n patch*h patch*w c].

    Example:
        >>> x = jnp.arange(16.0).reshape(1, 4, 4, 1)
        >>> bool((unfold(fold(x, 2), 2) == x).all())
        True
    """
    n, h, w, _ = x.shape
    x = x.reshape(n, h, w, patch, patch, -1)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(n, h * patch, w * patch, -1)


def half(x: Array) -> Array:
    """Returns the mean of each 2 x 2 pixels: [n h/2 w/2 c] of [n h w c]."""
    n, h, w, c = x.shape
    return x.reshape(n, h // 2, 2, w // 2, 2, c).mean(axis=(2, 4))


def double(x: Array) -> Array:
    """Repeats each pixel 2 x 2 times: [n 2h 2w c] of [n h w c]."""
    n, h, w, c = x.shape
    return jnp.broadcast_to(x[:, :, None, :, None], (n, h, 2, w, 2, c)).reshape(n, 2 * h, 2 * w, c)


def attend(q: Array, k: Array, v: Array) -> Array:
    """Returns the attention of one head, [n q d], of queries [n q d] to keys and values [n k d]."""
    wide = jnp.promote_types(q.dtype, jnp.float32)
    logits = jnp.einsum("nqd,nkd->nqk", q, k, preferred_element_type=wide) * q.shape[-1] ** -0.5
    return jnp.einsum("nqk,nkd->nqd", jax.nn.softmax(logits).astype(v.dtype), v)


def over_heads(function: Callable[..., Array], *heads: Array) -> Array:
    """Applies a function to each head of arrays [heads ...].

    On CPUs, one head is computed after another. This is faster, because the attention weights of one head fit into the
    cache: see `python scripts/benchmark.py parts`.
    """
    if jax.default_backend() == "cpu":
        return jax.lax.map(lambda head: function(*head), heads)
    return jax.vmap(function)(*heads)


class Attention(nnx.Module):
    """Attention of the pixels to the text and, unless `only_cross_attention`, to each other. Both share one softmax."""

    def __init__(self, width: int, config: Config, rngs: nnx.Rngs):
        self.head_dim = config.attention_head_dim
        self.group_norm = group_norm(config.norm_num_groups, width, 1e-5, rngs)
        self.norm_cross = group_norm(32, config.cross_attention_dim, 1e-5, rngs)
        self.to_q = nnx.Linear(width, width, rngs=rngs)
        self.to_k = None if config.only_cross_attention else nnx.Linear(width, width, rngs=rngs)
        self.to_v = None if config.only_cross_attention else nnx.Linear(width, width, rngs=rngs)
        self.add_k_proj = nnx.Linear(config.cross_attention_dim, width, rngs=rngs)
        self.add_v_proj = nnx.Linear(config.cross_attention_dim, width, rngs=rngs)
        self.to_out = nnx.Linear(width, width, rngs=rngs)

    def text(self, text: Array) -> tuple[Array, Array]:  # [n l d] -> keys and values [n l width]
        text = self.norm_cross(text)
        return self.add_k_proj(text), self.add_v_proj(text)

    def __call__(self, x: Array, text: tuple[Array, Array]) -> Array:
        n, height, width, c = x.shape
        h = self.group_norm(x).reshape(n, height * width, c)
        k, v = text
        if self.to_k is not None and self.to_v is not None:
            k = jnp.concatenate([k, self.to_k(h)], axis=1)
            v = jnp.concatenate([v, self.to_v(h)], axis=1)
        q, k, v = (a.reshape(n, a.shape[1], -1, self.head_dim).transpose(2, 0, 1, 3) for a in (self.to_q(h), k, v))
        h = over_heads(attend, q, k, v).transpose(1, 2, 0, 3)
        return x + self.to_out(h.reshape(n, height * width, c)).reshape(x.shape)


class Block(nnx.Module):
    """Residual blocks, each followed by attention if `cross`. If `down` or `up`, a last residual block resamples."""

    def __init__(
        self,
        inputs: list[int],
        width: int,
        config: Config,
        conv: Callable,
        rngs: nnx.Rngs,
        cross: bool,
        down=False,
        up=False,
    ):
        self.resnets = nnx.List([Resnet(i, width, config, conv, rngs) for i in inputs])
        self.attentions = nnx.List([Attention(width, config, rngs) for _ in inputs] if cross else [])
        self.downsamplers = nnx.List([Resnet(width, width, config, conv, rngs, half)] if down else [])
        self.upsamplers = nnx.List([Resnet(width, width, config, conv, rngs, double)] if up else [])

    def layer(self, i: int, x: Array, time: Array, text: list) -> Array:
        """Applies residual block i and its attention, if there is one."""
        x = self.resnets[i](x, time)
        return self.attentions[i](x, text[i]) if len(self.attentions) else x


class MidBlock(nnx.Module):
    """A residual block, attention, and another residual block."""

    def __init__(self, width: int, config: Config, conv: Callable, rngs: nnx.Rngs):
        out_scale = config.mid_block_scale_factor
        self.resnets = nnx.List([Resnet(width, width, config, conv, rngs, out_scale=out_scale) for _ in range(2)])
        self.attentions = nnx.List([Attention(width, config, rngs)])

    def __call__(self, x: Array, time: Array, text: list) -> Array:
        return self.resnets[1](self.attentions[0](self.resnets[0](x, time), text[0]), time)


class Prepared(NamedTuple):
    """What depends only on the prompt. It is computed once and used in every step."""

    pooled: Array  # the pooled text, [n time_width]
    layers: dict[str, list[list[tuple[Array, Array]]]]  # keys and values [n l width] of each attention of each block


class UNet(nnx.Module):
    """The network of `unet`."""

    def __init__(self, config: Config, conv: Callable, *, rngs: nnx.Rngs):
        c, n = config.block_out_channels, len(config.block_out_channels)
        self.config = config
        self.conv_in = convolution(config.patch**2 * config.in_channels, c[0], 3, conv, rngs)
        self.time_embedding = TimestepEmbedding(c[0], config.time_width, rngs)
        self.class_embedding = TimestepEmbedding(c[0], config.time_width, rngs) if config.upscales else None
        self.add_embedding = TextTimeEmbedding(
            config.encoder_hid_dim, config.time_width, config.addition_embed_type_num_heads, rngs
        )
        self.encoder_hid_proj = nnx.Linear(config.encoder_hid_dim, config.cross_attention_dim, rngs=rngs)

        skips, down = [c[0]], []
        for i, (width, layers) in enumerate(zip(c, config.layers_per_block, strict=True)):
            cross, last = config.down_block_types[i] == CROSS_DOWN, i == n - 1
            inputs = [skips[-1]] + [width] * (layers - 1)
            down.append(Block(inputs, width, config, conv, rngs, cross, down=not last))
            skips += [width] * (layers + (not last))
        self.down_blocks = nnx.List(down)
        self.mid_block = MidBlock(c[-1], config, conv, rngs)
        up, x = [], c[-1]
        for i, (width, layers) in enumerate(zip(c[::-1], config.layers_per_block[::-1], strict=True)):
            cross, last = config.up_block_types[i] == CROSS_UP, i == n - 1
            inputs = [(x if j == 0 else width) + skips.pop() for j in range(layers + 1)]
            up.append(Block(inputs, width, config, conv, rngs, cross, up=not last))
            x = width
        self.up_blocks = nnx.List(up)
        self.conv_norm_out = group_norm(config.norm_num_groups, c[0], config.norm_eps, rngs)
        self.conv_out = convolution(c[0], config.patch**2 * config.out_channels, 3, conv, rngs)

    def prepare(self, conditioning: Conditioning) -> Conditioning:
        """Returns the conditioning with a `Prepared` as its text."""
        return conditioning._replace(text=self.prepared(conditioning), pooled=None)

    def prepared(self, conditioning: Conditioning) -> Prepared:
        """Computes what depends only on the prompt."""
        text, pooled = conditioning.text, conditioning.pooled
        dtype = self.conv_in.kernel.dtype
        text = text.astype(dtype)
        pooled = text if pooled is None else pooled.astype(dtype)
        states = self.encoder_hid_proj(text)
        blocks = {"down": self.down_blocks, "mid": [self.mid_block], "up": self.up_blocks}
        layers = {name: [[a.text(states) for a in b.attentions] for b in group] for name, group in blocks.items()}
        return Prepared(self.add_embedding(pooled), layers)

    def __call__(self, x: Array, t: Array, conditioning: Conditioning) -> Prediction:
        outer, dtype, channels = x.dtype, self.conv_in.kernel.dtype, x.shape[-1]
        text = conditioning.text if isinstance(conditioning.text, Prepared) else self.prepared(conditioning)
        if conditioning.low_res is not None:
            x = jnp.concatenate([x, conditioning.low_res.astype(x.dtype)], axis=-1)
        x = x.astype(dtype)
        width = self.config.block_out_channels[0]
        time = self.time_embedding(sinusoid(t, width).astype(dtype))
        if self.class_embedding is not None:
            if conditioning.noise_level is None:
                raise ValueError("the conditioning of a stage-2 network must have a noise_level, got None")
            time = time + self.class_embedding(sinusoid(conditioning.noise_level, width).astype(dtype))
        time = time + text.pooled
        if self.config.time_embedding_act_fn is not None:
            time = gelu(time)

        x = self.conv_in(fold(x, self.config.patch))
        skips = [x]
        for i, block in enumerate(self.down_blocks):
            for j in range(len(block.resnets)):
                x = block.layer(j, x, time, text.layers["down"][i])
                skips.append(x)
            for resnet in block.downsamplers:
                x = resnet(x, time)
                skips.append(x)
        x = self.mid_block(x, time, text.layers["mid"][0])
        for i, block in enumerate(self.up_blocks):
            for j in range(len(block.resnets)):
                x = block.layer(j, jnp.concatenate([x, skips.pop()], axis=-1), time, text.layers["up"][i])
            for resnet in block.upsamplers:
                x = resnet(x, time)
        x = unfold(self.conv_out(gelu(self.conv_norm_out(x))), self.config.patch).astype(outer)
        estimate, variance = jnp.split(x, [min(channels, x.shape[-1])], axis=-1)
        return Prediction(estimate, variance if variance.shape[-1] else None)


def unet(config: Config, conv: Callable = convolve) -> Network:
    """Returns the network of a config. Its parameters are shapes without values.

    The network predicts for images x [n h w c], timesteps t [n] in 0 to 999 and a conditioning [n ...]. The result has
    the dtype of x. `prepare` computes what depends only on the prompt.

    Args:
        config: sizes of the network.
        conv: convolution function; `jdiff.training.conv.conv_by_patches` is fast for training on CPUs.

    Example:
        >>> network = unet(Config())
        >>> sum(a.size for a in jax.tree.leaves(network.params))
        371605830
    """
    apply, shapes = pure(lambda rngs: UNet(config, conv, rngs=rngs), (UNet, config, conv))
    return Network(shapes, apply, apply.at("prepare"))


def init(config: Config, key: Array) -> dict:
    """Returns new parameters in float32. The last convolution is zero, as in DDPM (Ho et al. 2020).

    Args:
        config: sizes of the network.
        key: random key.
    """
    params = nnx.to_pure_dict(nnx.state(UNet(config, jax.lax.conv_general_dilated, rngs=nnx.Rngs(key))))
    params["conv_out"] = jax.tree.map(jnp.zeros_like, params["conv_out"])
    return params
