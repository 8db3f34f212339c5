"""DeepFloyd IF's UNets, both stages, as a pure function of a plain dict of parameters."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jdiff.networks import config as config_json
from jdiff.networks.pure import pure
from jdiff.types import Array, Conditioning, Network, Prediction

PLAIN_DOWN, CROSS_DOWN = "ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"
PLAIN_UP, CROSS_UP = "ResnetUpsampleBlock2D", "SimpleCrossAttnUpBlock2D"


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes of one IF UNet, under the names of diffusers' `config.json`; the defaults are IF-I-M's.

    `patch` is this library's own: the network sees squares of so many pixels as one pixel (see `fold`).

    >>> Config().block_out_channels
    (192, 384, 576, 768)
    """

    sample_size: int = 64
    in_channels: int = 3
    out_channels: int = 6
    down_block_types: tuple[str, ...] = (PLAIN_DOWN, CROSS_DOWN, CROSS_DOWN, CROSS_DOWN)
    up_block_types: tuple[str, ...] = (CROSS_UP, CROSS_UP, CROSS_UP, PLAIN_UP)
    block_out_channels: tuple[int, ...] = (192, 384, 576, 768)
    layers_per_block: tuple[int, ...] = (3, 3, 3, 3)
    attention_head_dim: int = 64
    cross_attention_dim: int = 768
    encoder_hid_dim: int = 4096
    addition_embed_type_num_heads: int = 64
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    only_cross_attention: bool = False
    class_embed_type: str | None = None
    time_embedding_dim: int | None = None
    time_embedding_act_fn: str | None = None
    resnet_skip_time_act: bool = False
    resnet_out_scale_factor: float = 1.0
    mid_block_scale_factor: float = 1.0
    patch: int = 1

    @property
    def channels(self) -> int:
        """Channels of an image: what the network predicts, without a learned variance."""
        return self.in_channels // 2 if self.upscales else self.in_channels

    @property
    def upscales(self) -> bool:
        """Whether this is a network of stage 2, which enlarges a low-res image."""
        return self.class_embed_type == "timestep"

    @property
    def divisor(self) -> int:
        """What the height and width of an image must be multiples of."""
        return self.patch * 2 ** (len(self.block_out_channels) - 1)

    @property
    def time_width(self) -> int:
        return self.time_embedding_dim or 4 * self.block_out_channels[0]


# Keys of config.json with one value that this network covers, and diffusers' default where it is another.
FIXED: dict[str, tuple[Any, Any]] = {
    "act_fn": ("gelu", "silu"),
    "addition_embed_type": ("text", None),
    "cross_attention_norm": ("group_norm", None),
    "encoder_hid_dim_type": ("text_proj", "text_proj"),  # what None means where encoder_hid_dim is given
    "mid_block_type": ("UNetMidBlock2DSimpleCrossAttn", "UNetMidBlock2DCrossAttn"),
    "resnet_time_scale_shift": ("scale_shift", "default"),
}
# Keys that must be as diffusers has them by default; the second kind of value is as good (never read by these blocks).
DEFAULT: dict[str, tuple[Any, ...]] = {
    "addition_time_embed_dim": (None,),
    "attention_type": ("default",),
    "center_input_sample": (False,),
    "class_embeddings_concat": (False,),
    "conv_in_kernel": (3,),
    "conv_out_kernel": (3,),
    "downsample_padding": (1,),
    "dropout": (0.0,),
    "dual_cross_attention": (False,),
    "flip_sin_to_cos": (True,),
    "freq_shift": (0,),
    "num_attention_heads": (None,),
    "num_class_embeds": (None,),
    "projection_class_embeddings_input_dim": (None,),
    "reverse_transformer_layers_per_block": (None,),
    "time_cond_proj_dim": (None,),
    "time_embedding_type": ("positional",),
    "timestep_post_act": (None,),
    "transformer_layers_per_block": (1,),
    "upcast_attention": (False, None),
    "use_linear_projection": (False,),
}
# What diffusers fills in where config.json is silent and our default is another value.
SILENT: dict[str, Any] = {
    "sample_size": None,
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "attention_head_dim": 8,
    "cross_attention_dim": 1280,
    "encoder_hid_dim": None,
}


def read_config(source: str | Path | Mapping[str, Any]) -> Config:
    """Config of a `config.json` (its path, its folder or its contents).

    Raises ValueError with every key that asks for something this network does not have.

    >>> read_config({"block_out_channels": [8]})  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ...
    ValueError: the UNet's config.json asks for what this network does not have:...
    """
    source = config_json.read(source)
    given = {k: v for k, v in source.items() if not k.startswith("_")}
    bad = []
    name = given.pop("_class_name", source.get("_class_name", "UNet2DConditionModel"))
    if name != "UNet2DConditionModel":
        bad.append(f"_class_name is {name!r}, accepted is 'UNet2DConditionModel'")
    for key, (wanted, default) in FIXED.items():
        if (value := given.pop(key, None) or default) != wanted:
            bad.append(f"{key} is {value!r}, accepted is {wanted!r}")
    for key, accepted in DEFAULT.items():
        if (value := given.pop(key, accepted[0])) not in accepted:
            bad.append(f"{key} is {value!r}, accepted is {accepted[0]!r}")
    fields = {field.name: field.default for field in dataclasses.fields(Config)}
    values = {key: given.pop(key, SILENT.get(key, default)) for key, default in fields.items()}
    mid = given.pop("mid_block_only_cross_attention", None)
    bad += [f"{key} is unknown (value {value!r})" for key, value in given.items() if value is not None]
    bad += _fit(values, mid)
    if bad:
        raise ValueError("the UNet's config.json asks for what this network does not have:\n  " + "\n  ".join(bad))
    return Config(**values)


def _fit(values: dict[str, Any], mid: bool | None) -> list[str]:
    """Brings lists to tuples in place and returns what is wrong with the sizes."""
    bad = []
    channels = values["block_out_channels"] = tuple(values["block_out_channels"])
    n = len(channels)
    for key in ("down_block_types", "up_block_types", "layers_per_block", "only_cross_attention"):
        value = values[key]
        value = tuple(value) if isinstance(value, list | tuple) else (value,) * n
        if len(value) != n:
            bad.append(f"{key} has {len(value)} entries for {n} block_out_channels")
        values[key] = value
    only = set(values["only_cross_attention"]) | ({mid} if mid is not None else set())
    if len(only) > 1:
        bad.append(f"only_cross_attention is {sorted(only)} in different blocks, accepted is one value for all")
    values["only_cross_attention"] = bool(values["only_cross_attention"][0])
    for key, accepted in (("down_block_types", (PLAIN_DOWN, CROSS_DOWN)), ("up_block_types", (PLAIN_UP, CROSS_UP))):
        bad += [f"{key} has {v!r}, accepted are {accepted}" for v in values[key] if v not in accepted]
    sizes = ("attention_head_dim", "cross_attention_dim", "encoder_hid_dim", "norm_num_groups", "sample_size")
    for key in sizes + ("in_channels", "out_channels", "addition_embed_type_num_heads", "patch"):
        value = values[key]
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            bad.append(f"{key} is {value!r}, accepted is one whole number")
    if bad:
        return bad
    if values["class_embed_type"] not in (None, "timestep"):
        bad.append(f"class_embed_type is {values['class_embed_type']!r}, accepted are None and 'timestep'")
    if values["time_embedding_act_fn"] not in (None, "gelu"):
        bad.append(f"time_embedding_act_fn is {values['time_embedding_act_fn']!r}, accepted are None and 'gelu'")
    blocks = values["down_block_types"] + values["up_block_types"]
    heads = [c for c, kind in zip(channels + channels[::-1], blocks, strict=True) if kind in (CROSS_DOWN, CROSS_UP)]
    for c in {*heads, channels[-1]}:
        if c % values["attention_head_dim"]:
            bad.append(
                f"block_out_channels has {c}, not a multiple of attention_head_dim {values['attention_head_dim']}"
            )
    bad += [
        f"block_out_channels has {c}, not a multiple of norm_num_groups {values['norm_num_groups']}"
        for c in channels
        if c % values["norm_num_groups"]
    ]
    for key, divisor in (("cross_attention_dim", 32), ("encoder_hid_dim", values["addition_embed_type_num_heads"])):
        if values[key] % divisor:
            bad.append(f"{key} is {values[key]}, not a multiple of {divisor}")
    return bad


def gelu(x: Array) -> Array:
    return jax.nn.gelu(x, approximate=False)  # the tanh form is 4.7e-4 off a call


def group_norm(groups: int, channels: int, eps: float, rngs: nnx.Rngs) -> nnx.GroupNorm:
    # two-pass variance: flax's fast one was 8.3 off where the mean is far from 0
    return nnx.GroupNorm(channels, num_groups=groups, epsilon=eps, use_fast_variance=False, rngs=rngs)


def sinusoid(t: Array, width: int) -> Array:
    """[n] -> [n width]: cos and sin of t at `width`/2 frequencies from 1 down to 1e-4, in float32 at least."""
    t = t.astype(jnp.promote_types(t.dtype, jnp.float32))
    half = width // 2
    angle = t[:, None] * jnp.exp(-np.log(10000.0) / half * jnp.arange(half, dtype=t.dtype))[None]
    return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)


def convolution(inputs: int, outputs: int, size: int, conv: Callable, rngs: nnx.Rngs) -> nnx.Conv:
    return nnx.Conv(inputs, outputs, (size, size), conv_general_dilated=conv, rngs=rngs)


class TimestepEmbedding(nnx.Module):
    def __init__(self, inputs: int, width: int, rngs: nnx.Rngs):
        self.linear_1 = nnx.Linear(inputs, width, rngs=rngs)
        self.linear_2 = nnx.Linear(width, width, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        return self.linear_2(gelu(self.linear_1(x)))


class AttentionPooling(nnx.Module):
    def __init__(self, width: int, heads: int, rngs: nnx.Rngs):
        self.heads = heads
        self.positional_embedding = nnx.Param(jax.random.normal(rngs.params(), (1, width)) / width**0.5)
        self.q_proj = nnx.Linear(width, width, rngs=rngs)
        self.k_proj = nnx.Linear(width, width, rngs=rngs)
        self.v_proj = nnx.Linear(width, width, rngs=rngs)

    def __call__(self, x: Array) -> Array:  # [n l d] -> [n d]
        token = x.mean(axis=1, keepdims=True) + self.positional_embedding[...].astype(x.dtype)[None]
        x = jnp.concatenate([token, x], axis=1)
        q, k, v = (
            a.reshape(*a.shape[:2], self.heads, -1) for a in (self.q_proj(token), self.k_proj(x), self.v_proj(x))
        )
        scale = q.shape[-1] ** -0.25  # on q and on k: safe in half precision
        weights = jnp.einsum("nqhd,nkhd->nhqk", q * scale, k * scale)
        weights = jax.nn.softmax(weights.astype(jnp.promote_types(x.dtype, jnp.float32))).astype(x.dtype)
        return jnp.einsum("nhqk,nkhd->nqhd", weights, v).reshape(x.shape[0], -1)


class TextTimeEmbedding(nnx.Module):
    def __init__(self, inputs: int, width: int, heads: int, rngs: nnx.Rngs):
        self.norm1 = nnx.LayerNorm(inputs, epsilon=1e-5, use_fast_variance=False, rngs=rngs)
        self.pool = AttentionPooling(inputs, heads, rngs)
        self.proj = nnx.Linear(inputs, width, rngs=rngs)
        self.norm2 = nnx.LayerNorm(width, epsilon=1e-5, use_fast_variance=False, rngs=rngs)

    def __call__(self, text: Array) -> Array:  # [n l d] -> [n width]
        return self.norm2(self.proj(self.pool(self.norm1(text))))


class Resnet(nnx.Module):
    """GroupNorm, GELU, [resample], conv; scale and shift by time, GELU, conv; + shortcut."""

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


def fold(x: Array, patch: int) -> Array:
    """[n h w c] -> [n h/patch w/patch patch^2 c]: each square of pixels becomes one pixel with more channels.

    It only moves numbers, so white noise stays white noise.
    """
    n, h, w, c = x.shape
    x = x.reshape(n, h // patch, patch, w // patch, patch, c)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(n, h // patch, w // patch, -1)


def unfold(x: Array, patch: int) -> Array:
    """[n h w patch^2 c] -> [n patch h, patch w, c]: undoes `fold`.

    >>> x = jnp.arange(16.0).reshape(1, 4, 4, 1)
    >>> bool((unfold(fold(x, 2), 2) == x).all())
    True
    """
    n, h, w, _ = x.shape
    x = x.reshape(n, h, w, patch, patch, -1)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(n, h * patch, w * patch, -1)


def half(x: Array) -> Array:
    """[n h w c] -> [n h/2 w/2 c], the mean of each 2x2 square."""
    n, h, w, c = x.shape
    return x.reshape(n, h // 2, 2, w // 2, 2, c).mean(axis=(2, 4))


def double(x: Array) -> Array:
    """[n h w c] -> [n 2h 2w c], each pixel four times."""
    n, h, w, c = x.shape
    return jnp.broadcast_to(x[:, :, None, :, None], (n, h, 2, w, 2, c)).reshape(n, 2 * h, 2 * w, c)


class Attention(nnx.Module):
    """Pixels look at the text and, unless `only_cross_attention`, at each other, in one softmax."""

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
        q, k, v = (a.reshape(n, a.shape[1], -1, self.head_dim) for a in (self.to_q(h), k, v))
        wide = jnp.promote_types(q.dtype, jnp.float32)
        logits = jnp.einsum("nqhd,nkhd->nhqk", q, k, preferred_element_type=wide) * self.head_dim**-0.5
        h = jnp.einsum("nhqk,nkhd->nqhd", jax.nn.softmax(logits).astype(v.dtype), v)
        return x + self.to_out(h.reshape(n, height * width, c)).reshape(x.shape)


class Block(nnx.Module):
    """Resnets, each with its attention, then a resnet that resamples."""

    def __init__(
        self, inputs: list[int], width: int, config: Config, conv, rngs: nnx.Rngs, cross: bool, down=False, up=False
    ):
        self.resnets = nnx.List([Resnet(i, width, config, conv, rngs) for i in inputs])
        self.attentions = nnx.List([Attention(width, config, rngs) for _ in inputs] if cross else [])
        self.downsamplers = nnx.List([Resnet(width, width, config, conv, rngs, half)] if down else [])
        self.upsamplers = nnx.List([Resnet(width, width, config, conv, rngs, double)] if up else [])

    def layer(self, i: int, x: Array, time: Array, text: list) -> Array:
        x = self.resnets[i](x, time)
        return self.attentions[i](x, text[i]) if len(self.attentions) else x


class MidBlock(nnx.Module):
    def __init__(self, width: int, config: Config, conv: Callable, rngs: nnx.Rngs):
        out_scale = config.mid_block_scale_factor
        self.resnets = nnx.List([Resnet(width, width, config, conv, rngs, out_scale=out_scale) for _ in range(2)])
        self.attentions = nnx.List([Attention(width, config, rngs)])

    def __call__(self, x: Array, time: Array, text: list) -> Array:
        return self.resnets[1](self.attentions[0](self.resnets[0](x, time), text[0]), time)


class Prepared(NamedTuple):
    """All that the UNet makes of a prompt alone: computed once, used at every step."""

    pooled: Array  # [n time_width]
    layers: Any  # keys and values [n l width] of every attention layer


class UNet(nnx.Module):
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
        return conditioning._replace(text=self.prepared(conditioning), pooled=None)

    def prepared(self, conditioning: Conditioning) -> Prepared:
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
                raise ValueError("a network of stage 2 needs a noise_level in its conditioning, got None")
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


def unet(config: Config, conv: Callable = jax.lax.conv_general_dilated) -> Network:
    """Returns the network of a config, with the shapes of its parameters in the place of weights.

    The network predicts for x [n h w c], t [n] in 0..999 and a conditioning [n ...], in the dtype of x. Its `prepare`
    computes what depends on the prompt alone.

    Args:
        config: sizes of the network.
        conv: the convolution, such as `jdiff.training.conv.conv_by_patches` for training on CPUs.

    Example:
        >>> network = unet(Config())
        >>> sum(a.size for a in jax.tree.leaves(network.params))
        371605830
    """
    apply, shapes = pure(lambda: UNet(config, conv, rngs=nnx.Rngs(0)), (UNet, config, conv))
    return Network(shapes, apply, apply.at("prepare"))


def init(config: Config, key: Array) -> dict:
    """Fresh parameters of the network, float32; the last convolution starts at zero, as in the DDPM paper."""
    params = nnx.to_pure_dict(nnx.state(UNet(config, jax.lax.conv_general_dilated, rngs=nnx.Rngs(key))))
    params["conv_out"] = jax.tree.map(jnp.zeros_like, params["conv_out"])
    return params
