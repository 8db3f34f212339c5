"""The encoder of T5 v1.1 (gated GELU) as a pure function of a plain dict of parameters."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jdiff.networks import config as config_json
from jdiff.networks.pure import Apply, pure
from jdiff.types import Array, Params


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes of one encoder, under the names of transformers' `config.json`; the defaults are T5 v1.1 XXL's.

    >>> Config().num_heads * Config().d_kv
    4096
    """

    vocab_size: int = 32128
    d_model: int = 4096
    d_kv: int = 64
    d_ff: int = 10240
    num_layers: int = 24
    num_heads: int = 64
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    layer_norm_epsilon: float = 1e-6


def read_config(source: str | Path | Mapping[str, Any]) -> Config:
    """Config of a transformers `config.json` (its path, its folder or its contents).

    Raises ValueError where the feed-forward is not T5 v1.1's or a size is missing.

    >>> read_config({"feed_forward_proj": "relu"})
    Traceback (most recent call last):
    ...
    ValueError: feed_forward_proj is 'relu', accepted is 'gated-gelu' (T5 v1.1)
    """
    source = config_json.read(source)
    kind = source.get("feed_forward_proj")
    if kind != "gated-gelu":
        raise ValueError(f"feed_forward_proj is {kind!r}, accepted is 'gated-gelu' (T5 v1.1)")
    fields = dataclasses.fields(Config)
    sizes = ("vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_heads")
    if missing := [name for name in sizes if not isinstance(source.get(name), int)]:
        raise ValueError(f"T5's config.json gives no whole number for {', '.join(missing)}")
    return Config(**{field.name: source.get(field.name, field.default) for field in fields})


class RMSNorm(nnx.Module):
    def __init__(self, width: int, eps: float):
        self.eps = eps
        self.scale = nnx.Param(jnp.ones(width))

    def __call__(self, x: Array) -> Array:  # no mean, no bias; the variance in float32 at least
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        x = (wide * jax.lax.rsqrt(jnp.square(wide).mean(axis=-1, keepdims=True) + self.eps)).astype(x.dtype)
        return self.scale[...].reshape((1,) * (x.ndim - 1) + (-1,)) * x


def linear(inputs: int, outputs: int, std: float, rngs: nnx.Rngs) -> nnx.Linear:
    return nnx.Linear(inputs, outputs, use_bias=False, kernel_init=nnx.initializers.normal(std), rngs=rngs)


class Block(nnx.Module):
    def __init__(self, config: Config, rngs: nnx.Rngs):
        d, inner, ff = config.d_model, config.num_heads * config.d_kv, config.d_ff
        self.heads = config.num_heads
        self.attention_norm = RMSNorm(d, config.layer_norm_epsilon)
        self.q = linear(d, inner, (d * config.d_kv) ** -0.5, rngs)
        self.k = linear(d, inner, d**-0.5, rngs)
        self.v = linear(d, inner, d**-0.5, rngs)
        self.o = linear(inner, d, inner**-0.5, rngs)
        self.ff_norm = RMSNorm(d, config.layer_norm_epsilon)
        self.wi_0 = linear(d, ff, d**-0.5, rngs)
        self.wi_1 = linear(d, ff, d**-0.5, rngs)
        self.wo = linear(ff, d, ff**-0.5, rngs)

    def __call__(self, x: Array, bias: Array) -> Array:
        h = self.attention_norm(x)
        q, k, v = (a.reshape(*a.shape[:2], self.heads, -1) for a in (self.q(h), self.k(h), self.v(h)))
        logits = jnp.einsum("nqhd,nkhd->nhqk", q, k) + bias.astype(x.dtype)  # no scale: it is in the weights
        weights = jax.nn.softmax(logits.astype(bias.dtype)).astype(x.dtype)
        x = x + self.o(jnp.einsum("nhqk,nkhd->nqhd", weights, v).reshape(*x.shape[:2], -1))
        h = self.ff_norm(x)
        return x + self.wo(jax.nn.gelu(self.wi_0(h), approximate=True) * self.wi_1(h))


def buckets(length: int, config: Config) -> np.ndarray:
    """[l l] which relative position bias query i (row) has for key j: near ones exactly, far ones by logarithm."""
    relative = np.arange(length)[None] - np.arange(length)[:, None]
    n = config.relative_attention_num_buckets // 2
    exact, distance = n // 2, np.abs(relative)
    ratio = np.log(np.maximum(distance, 1) / exact, dtype=np.float32)
    ratio = ratio / np.float32(np.log(config.relative_attention_max_distance / exact))
    far = np.minimum(exact + (ratio * (n - exact)).astype(np.int32), n - 1)
    return n * (relative > 0) + np.where(distance < exact, distance, far)


def position_bias(table: Array, mask: Array, config: Config) -> Array:
    """[n h l l] what is added to the attention's logits, float32 at least: `table` [b h] by distance, no masked key."""
    dtype = jnp.promote_types(table.dtype, jnp.float32)
    bias = table[buckets(mask.shape[1], config)].transpose(2, 0, 1).astype(dtype)
    return bias[None] + jnp.where(mask[:, None, None, :] != 0, 0, jnp.finfo(dtype).min)


class Encoder(nnx.Module):
    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        self.config = config
        init = nnx.initializers.normal(1.0)
        self.shared = nnx.Embed(config.vocab_size, config.d_model, embedding_init=init, rngs=rngs)
        self.relative_attention_bias = nnx.Embed(
            config.relative_attention_num_buckets,
            config.num_heads,
            embedding_init=nnx.initializers.normal(config.d_model**-0.5),
            rngs=rngs,
        )
        self.block = nnx.List([Block(config, rngs) for _ in range(config.num_layers)])
        self.final_layer_norm = RMSNorm(config.d_model, config.layer_norm_epsilon)

    def __call__(self, tokens: Array, mask: Array) -> Array:
        x = self.shared.embedding[...][tokens]  # nnx.Embed would answer in float32 whatever the parameters are
        bias = position_bias(self.relative_attention_bias.embedding[...], mask, self.config)
        for block in self.block:
            x = block(x, bias)
        return self.final_layer_norm(x)


def t5(config: Config) -> tuple[Apply, Params]:
    """Returns the encoder as a pure function, and the shapes of its parameters.

    The function is `(params, tokens [n l], mask [n l]) -> states [n l d_model]`. Tokens whose mask is 0 are not
    attended to.

    Example:
        >>> apply, shapes = t5(Config())
        >>> sum(a.size for a in jax.tree.leaves(shapes))
        4762310656
    """
    return pure(lambda: Encoder(config, rngs=nnx.Rngs(0)), (Encoder, config))


def layers(config: Config) -> tuple[Callable, Callable]:
    """(layer, norm): the encoder in pure parts, for parameters that come one layer at a time.

    `layer(params, table, x, mask) -> x` is one block [n l d] of `params["block"][i]`, with the encoder's only `table`
    [b h] of relative positions; `norm(params, x) -> states` is what follows the last, of `params["final_layer_norm"]`.

    >>> config = Config(vocab_size=50, d_model=24, d_kv=8, d_ff=40, num_layers=1, num_heads=4)
    >>> params, tokens, mask = init(config, jax.random.key(0)), jnp.ones((1, 5), jnp.int32), jnp.ones((1, 5))
    >>> layer, norm = layers(config)
    >>> x, table = params["shared"]["embedding"][tokens], params["relative_attention_bias"]["embedding"]
    >>> x = norm(params["final_layer_norm"], layer(params["block"][0], table, x, mask))
    >>> bool(jnp.allclose(x, t5(config)[0](params, tokens, mask), atol=1e-5))
    True
    """
    block, _ = nnx.split(nnx.eval_shape(lambda: Block(config, nnx.Rngs(0))))
    scale, _ = nnx.split(nnx.eval_shape(lambda: RMSNorm(config.d_model, config.layer_norm_epsilon)))
    layer = lambda params, table, x, mask: nnx.merge(block, params)(x, position_bias(table, mask, config))
    return layer, lambda params, x: nnx.merge(scale, params)(x)


def init(config: Config, key: Array) -> dict:
    """Fresh parameters of the encoder, float32, by T5's rule (no attention scale: it is in the first q)."""
    return nnx.to_pure_dict(nnx.state(Encoder(config, rngs=nnx.Rngs(key))))
