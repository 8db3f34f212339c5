"""The encoder of T5 v1.1 (with a gated GELU) as a pure function of a nested dict of parameters.

With float16, the last kernel of each feed-forward layer (`wo`) and the residual stream stay in float32, as in
transformers, because these activations are too large for float16.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from jdiff import checks
from jdiff.networks import config as config_json
from jdiff.networks.pure import Apply, abstract, pure
from jdiff.types import Array, Json, Params

# Keys of config.json that must be given. The others have a default.
SIZES = ("vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_heads")


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes of an encoder, under the names of transformers' config.json. The defaults are those of T5 v1.1 XXL.

    Example:
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


def read_config(source: str | Path | Json) -> Config:
    """Reads the sizes of an encoder from transformers' config.json.

    Args:
        source: path of the file, its folder, or its contents.

    Raises:
        ValueError: the file cannot be read, its feed-forward layer is not T5 v1.1's, or a size is missing or out of
            range.

    Example:
        >>> read_config({"feed_forward_proj": "relu"})
        Traceback (most recent call last):
        ...
        ValueError: T5's config.json must have feed_forward_proj 'gated-gelu' (T5 v1.1), got 'relu'
    """
    source = config_json.read(source)
    kind = source.get("feed_forward_proj")
    if kind != "gated-gelu":
        raise ValueError(f"T5's config.json must have feed_forward_proj 'gated-gelu' (T5 v1.1), got {kind!r}")
    values = {field.name: source.get(field.name, field.default) for field in dataclasses.fields(Config)}
    for name in SIZES:
        checks.whole(f"T5's config.json: {name}", source.get(name), 1)
    count, distance = (f"relative_attention_{name}" for name in ("num_buckets", "max_distance"))
    checks.whole(f"T5's config.json: {count}", values[count], 4)
    checks.whole(f"T5's config.json: {distance}", values[distance], values[count] // 4 + 1)
    checks.number("T5's config.json: layer_norm_epsilon", values["layer_norm_epsilon"], 0)
    return Config(**values)


class RMSNorm(nnx.Module):
    """Normalisation by the root mean square, without mean and bias. The variance is computed in float32 or better."""

    def __init__(self, width: int, eps: float):
        self.eps = eps
        self.scale = nnx.Param(jnp.ones(width))

    def __call__(self, x: Array) -> Array:
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        wide = wide * jax.lax.rsqrt(jnp.square(wide).mean(axis=-1, keepdims=True) + self.eps)
        scale = self.scale[...].reshape((1,) * (x.ndim - 1) + (-1,))
        return scale * wide.astype(scale.dtype)  # the dtype of the kernels, not of the residual stream


def linear(inputs: int, outputs: int, std: float, rngs: nnx.Rngs) -> nnx.Linear:
    """Returns a dense layer without bias, with normally distributed weights."""
    return nnx.Linear(inputs, outputs, use_bias=False, kernel_init=nnx.initializers.normal(std), rngs=rngs)


class Block(nnx.Module):
    """Self-attention and a gated feed-forward layer, each with a norm before it and a residual."""

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
        x = x.astype(self.wo.kernel.dtype)  # dtype of the residual stream
        h = self.attention_norm(x)
        q, k, v = (a.reshape(*a.shape[:2], self.heads, -1) for a in (self.q(h), self.k(h), self.v(h)))
        logits = jnp.einsum("nqhd,nkhd->nhqk", q, k) + bias.astype(
            q.dtype
        )  # T5 has no scale here: its weights contain it
        weights = jax.nn.softmax(logits.astype(bias.dtype)).astype(q.dtype)
        x = x + self.o(jnp.einsum("nhqk,nkhd->nqhd", weights, v).reshape(*x.shape[:2], -1))
        h = self.ff_norm(x)
        return x + self.wo(jax.nn.gelu(self.wi_0(h), approximate=True) * self.wi_1(h))


def buckets(length: int, config: Config) -> np.ndarray:
    """Returns the bucket [l l] of the distance from query i (row) to key j (column).

    Each small distance has its own bucket. Larger distances share buckets of logarithmically growing width.

    Args:
        length: number of tokens l.
        config: sizes of the encoder.
    """
    relative = np.arange(length)[None] - np.arange(length)[:, None]
    n = config.relative_attention_num_buckets // 2
    exact, distance = n // 2, np.abs(relative)
    ratio = np.log(np.maximum(distance, 1) / exact, dtype=np.float32)
    ratio = ratio / np.float32(np.log(config.relative_attention_max_distance / exact))
    far = np.minimum(exact + (ratio * (n - exact)).astype(np.int32), n - 1)
    return n * (relative > 0) + np.where(distance < exact, distance, far)


def position_bias(table: Array, mask: Array, config: Config) -> Array:
    """Returns the bias [n h l l] of the attention logits, in float32 or better.

    Args:
        table: bias of each bucket and each head [b h].
        mask: [n l]; keys with a mask of 0 get no attention.
        config: sizes of the encoder.
    """
    dtype = jnp.promote_types(table.dtype, jnp.float32)
    bias = table[buckets(mask.shape[1], config)].transpose(2, 0, 1).astype(dtype)
    return bias[None] + jnp.where(mask[:, None, None, :] != 0, 0, jnp.finfo(dtype).min)


class Encoder(nnx.Module):
    """The encoder of `t5`."""

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
        x = self.shared.embedding[...][tokens]  # calling nnx.Embed would return float32 for any dtype
        bias = position_bias(self.relative_attention_bias.embedding[...], mask, self.config)
        for block in self.block:
            x = block(x, bias)
        return self.final_layer_norm(x)


def t5(config: Config) -> tuple[Apply, Params]:
    """Returns the encoder as a pure function, and the shapes of its parameters.

    Args:
        config: sizes of the encoder.

    Returns:
        `(params, tokens [n l], mask [n l]) -> states [n l d_model]`, and the shapes. Tokens with a mask of 0 get no
        attention.

    Example:
        >>> apply, shapes = t5(Config())
        >>> sum(a.size for a in jax.tree.leaves(shapes))
        4762310656
    """
    return pure(lambda rngs: Encoder(config, rngs=rngs), (Encoder, config))


def in_dtype(shapes: Params, dtype: DTypeLike) -> Params:
    """Returns parameter shapes with the dtypes that the encoder computes in.

    Args:
        shapes: nested dict of parameter shapes, of the whole encoder or of one block.
        dtype: dtype of all parameters, except that `wo` is float32 for float16.

    Example:
        >>> _, shapes = t5(Config(num_layers=1))
        >>> block = in_dtype(shapes, "float16")["block"][0]
        >>> block["wi_0"]["kernel"].dtype, block["wo"]["kernel"].dtype
        (dtype('float16'), dtype('float32'))
    """
    cast = lambda path, leaf: jax.ShapeDtypeStruct(
        leaf.shape, residual_dtype(dtype) if jax.tree_util.DictKey("wo") in path else jnp.dtype(dtype)
    )
    return jax.tree_util.tree_map_with_path(cast, shapes)


def residual_dtype(dtype: DTypeLike) -> np.dtype:
    """Returns the dtype of the residual stream and of `wo`: float32 for an encoder in float16, otherwise `dtype`."""
    return jnp.dtype(jnp.float32 if jnp.dtype(dtype) == jnp.float16 else dtype)


def layers(config: Config) -> tuple[Callable, Callable]:
    """Returns the parts of the encoder as functions, for parameters that are read one layer at a time.

    Args:
        config: sizes of the encoder.

    Returns:
        (layer, norm). `layer(params, table, x [n l d], mask [n l]) -> x` is one block, with the parameters
        `params["block"][i]` and the table [b h] of relative positions, which all blocks share.
        `norm(params, x) -> states` comes after the last block, with the parameters `params["final_layer_norm"]`.

    Example:
        >>> config = Config(vocab_size=50, d_model=24, d_kv=8, d_ff=40, num_layers=1, num_heads=4)
        >>> params, tokens, mask = init(config, jax.random.key(0)), jnp.ones((1, 5), jnp.int32), jnp.ones((1, 5))
        >>> layer, norm = layers(config)
        >>> x, table = params["shared"]["embedding"][tokens], params["relative_attention_bias"]["embedding"]
        >>> x = norm(params["final_layer_norm"], layer(params["block"][0], table, x, mask))
        >>> bool(jnp.allclose(x, t5(config)[0](params, tokens, mask), atol=1e-5))
        True
    """
    block, _ = nnx.split(abstract(lambda rngs: Block(config, rngs)))
    scale, _ = nnx.split(abstract(lambda _: RMSNorm(config.d_model, config.layer_norm_epsilon)))
    layer = lambda params, table, x, mask: nnx.merge(block, params)(x, position_bias(table, mask, config))
    return layer, lambda params, x: nnx.merge(scale, params)(x)


def init(config: Config, key: Array) -> Params:
    """Returns new parameters in float32, initialised as in T5: the weights of q contain the attention's scale.

    Args:
        config: sizes of the encoder.
        key: random key.
    """
    return nnx.to_pure_dict(nnx.state(Encoder(config, rngs=nnx.Rngs(key))))
