"""Parts of diffusers and transformers with random weights, each beside the same part of jdiff.

`parity.py` measures their differences. Needs the extra `torch`.
"""

import contextlib
import copy
import logging
import math
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

from jdiff.checkpoints import files, names
from jdiff.networks import t5, unet
from jdiff.networks.unet import CROSS_DOWN, CROSS_UP, PLAIN_DOWN, PLAIN_UP
from jdiff.types import Conditioning

with warnings.catch_warnings():  # these libraries warn when they are imported
    warnings.simplefilter("ignore")
    from diffusers.models import embeddings
    from diffusers.models.attention_processor import Attention, AttnAddedKVProcessor2_0
    from diffusers.models.resnet import ResnetBlock2D
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from transformers import T5Config, T5EncoderModel
    from transformers.models.t5 import modeling_t5

COMMON: dict[str, Any] = dict(
    out_channels=6,
    act_fn="gelu",
    addition_embed_type="text",
    cross_attention_norm="group_norm",
    encoder_hid_dim_type="text_proj",
    mid_block_type="UNetMidBlock2DSimpleCrossAttn",
    resnet_time_scale_shift="scale_shift",
    addition_embed_type_num_heads=4,
    encoder_hid_dim=48,
    cross_attention_dim=64,
    attention_head_dim=8,
    norm_num_groups=8,
    sample_size=32,
    block_out_channels=(32, 40, 64),
)
STAGE1: dict[str, Any] = dict(
    COMMON,
    in_channels=3,
    layers_per_block=1,
    down_block_types=(PLAIN_DOWN, CROSS_DOWN, CROSS_DOWN),
    up_block_types=(CROSS_UP, CROSS_UP, PLAIN_UP),
)
STAGE2: dict[str, Any] = dict(
    COMMON,
    in_channels=6,
    layers_per_block=(1, 2, 2),
    down_block_types=(PLAIN_DOWN, PLAIN_DOWN, CROSS_DOWN),
    up_block_types=(CROSS_UP, PLAIN_UP, PLAIN_UP),
    class_embed_type="timestep",
    time_embedding_act_fn="gelu",
    resnet_skip_time_act=True,
    resnet_out_scale_factor=1 / 0.7071,
    mid_block_scale_factor=1 / 0.7071,
    only_cross_attention=True,
    time_embedding_dim=96,
)
IF_I_M: dict[str, Any] = dict(
    COMMON,
    in_channels=3,
    layers_per_block=3,
    down_block_types=(PLAIN_DOWN, CROSS_DOWN, CROSS_DOWN, CROSS_DOWN),
    up_block_types=(CROSS_UP, CROSS_UP, CROSS_UP, PLAIN_UP),
    addition_embed_type_num_heads=64,
    encoder_hid_dim=4096,
    cross_attention_dim=768,
    attention_head_dim=64,
    norm_num_groups=32,
    sample_size=64,
    block_out_channels=(192, 384, 576, 768),
)
T5: dict[str, Any] = dict(vocab_size=50, d_model=24, d_kv=8, d_ff=40, num_layers=3, num_heads=4)
T5_ONE_HEAD = dict(T5, d_kv=32, d_ff=24, num_layers=2, num_heads=1)
T5_FEW_BUCKETS = dict(T5, d_kv=4, num_layers=2, relative_attention_num_buckets=8, relative_attention_max_distance=20)
T5_XXL_LAYER: dict[str, Any] = dict(vocab_size=100, d_model=4096, d_kv=64, d_ff=10240, num_layers=1, num_heads=64)


class Rung(NamedTuple):
    """One part of a network on both sides: a torch module with random weights, our function, and their inputs."""

    name: str
    module: torch.nn.Module
    theirs: Callable  # (module, *inputs) -> array, channels last
    ours: Callable  # (params, *inputs) -> array
    params: dict  # the module's weights as our parameters, in float64
    inputs: tuple  # NumPy arrays; floats are cast to the dtype that is measured


class Errors(NamedTuple):
    """Errors of both sides against torch in float64; see `relative`."""

    ours: float
    theirs: float


def relative(y: Any, truth: np.ndarray) -> float:
    """Returns the largest difference from the truth, divided by the truth's largest value."""
    return float(np.abs(np.asarray(y, np.float64) - truth).max() / np.abs(truth).max())


@contextlib.contextmanager
def lifted() -> Iterator[None]:
    """Removes torch's casts to float32: in the sinusoid, the softmax of the text pooling, and T5's variance."""
    cast = torch.Tensor.float

    def sinusoid(timesteps: torch.Tensor, width: int, **_: Any) -> torch.Tensor:
        half = width // 2
        angle = timesteps.double()[:, None] * torch.exp(-math.log(10000) / half * torch.arange(half).double())
        return torch.cat([angle.cos(), angle.sin()], dim=-1)

    def rms(self: Any, x: torch.Tensor) -> torch.Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon))

    with (
        mock.patch.object(embeddings, "get_timestep_embedding", sinusoid),
        mock.patch.object(torch.Tensor, "float", lambda self: self if self.dtype == torch.float64 else cast(self)),
        mock.patch.object(modeling_t5.T5LayerNorm, "forward", rms),
    ):
        yield


def randomise(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Draws the weights of a module, so that none is zero or one and its outputs are of order 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in module.named_parameters():
            if p.ndim > 1:
                p.normal_(0, math.prod(p.shape[1:]) ** -0.5, generator=generator)
            else:
                p.normal_(float(name.endswith("weight")), 0.1, generator=generator)
    return module.eval()


def normal(*shape: int, seed: int = 1) -> np.ndarray:
    """Draws standard normal numbers."""
    return np.random.default_rng(seed).normal(size=shape)


def nchw(x: torch.Tensor) -> torch.Tensor:
    """Moves channels from the last axis to torch's place."""
    return x.movedim(-1, 1)


def nhwc(x: torch.Tensor) -> torch.Tensor:
    """Moves channels from torch's place to the last axis."""
    return x.movedim(1, -1)


def part(name: str, module: torch.nn.Module, prefix: str, make: Callable, theirs: Callable, call: Callable, *inputs):
    """Returns the rung of a part of the UNet.

    Args:
        name: what the page calls it.
        module: torch's part.
        prefix: the part's place in a UNet, by which the converter's table of names finds its weights.
        make: (rngs) -> our part.
        theirs: (module, *inputs) -> array.
        call: (our part, *inputs) -> array.
        inputs: of both.
    """
    module = randomise(module.double())
    graphdef, state = nnx.split(nnx.eval_shape(lambda: make(nnx.Rngs(0))))
    abstract = nnx.to_pure_dict(state)
    flat = {prefix + k: v for k, v in files.flatten(abstract).items()}
    weights = names.translate({prefix + k: v.numpy() for k, v in module.state_dict().items()}, flat)
    params = files.unflatten({k.removeprefix(prefix): v for k, v in files.flatten(weights).items()}, abstract)
    return Rung(name, module, theirs, lambda p, *a: call(nnx.merge(graphdef, p), *a), params, inputs)


def free(name: str, theirs: Callable, ours: Callable, *inputs: np.ndarray) -> Rung:
    """Returns the rung of a function without weights."""
    return Rung(name, torch.nn.Identity(), lambda _, *a: theirs(*a), lambda _, *a: ours(*a), {}, inputs)


def primitives() -> list[Rung]:
    """Returns the rungs of single layers."""

    def norm(mean: float) -> Rung:
        return part(
            f"GroupNorm, mean {mean:g}",
            torch.nn.GroupNorm(8, 40, eps=1e-5),
            "conv_norm_out.",
            lambda rngs: unet.group_norm(8, 40, 1e-5, rngs),
            lambda m, x: nhwc(m(nchw(x))),
            lambda m, x: m(x),
            normal(2, 6, 10, 40) + mean,
        )

    timesteps = embeddings.Timesteps(40, flip_sin_to_cos=True, downscale_freq_shift=0)
    return [
        norm(0),
        norm(30),
        free("GELU", torch.nn.functional.gelu, unet.gelu, 3 * normal(2, 6, 10, 40)),
        free("sinusoid", timesteps, lambda t: unet.sinusoid(t, 40), np.array([990.0, 30.0, 0.0])),
        part(
            "time embedding",
            embeddings.TimestepEmbedding(40, 96, act_fn="gelu"),
            "time_embedding.",
            lambda rngs: unet.TimestepEmbedding(40, 96, rngs),
            lambda m, x: m(x),
            lambda m, x: m(x),
            normal(3, 40),
        ),
        part(
            "text pooling",
            embeddings.AttentionPooling(4, 48),
            "add_embedding.pool.",
            lambda rngs: unet.AttentionPooling(48, 4, rngs),
            lambda m, x: m(x),
            lambda m, x: m(x),
            3 * normal(2, 7, 48),
        ),
        part(
            "text embedding",
            embeddings.TextTimeEmbedding(48, 96, 4),
            "add_embedding.",
            lambda rngs: unet.TextTimeEmbedding(48, 96, 4, rngs),
            lambda m, x: m(x),
            lambda m, x: m(x),
            3 * normal(2, 7, 48),
        ),
        rms(),
    ]


def rms() -> Rung:
    """Returns the rung of T5's norm."""
    module = randomise(modeling_t5.T5LayerNorm(24, 1e-6).double())
    graphdef, state = nnx.split(nnx.eval_shape(lambda: t5.RMSNorm(24, 1e-6)))
    params = files.unflatten({"scale": module.state_dict()["weight"].numpy()}, nnx.to_pure_dict(state))
    return Rung(
        "RMSNorm", module, lambda m, x: m(x), lambda p, x: nnx.merge(graphdef, p)(x), params, (normal(2, 7, 24),)
    )


def blocks() -> list[Rung]:
    """Returns the rungs of resnets, attention and a T5 block."""
    conv = jax.lax.conv_general_dilated
    stages = {1: unet.read_config(STAGE1), 2: unet.read_config(STAGE2)}

    def resnet(name: str, outputs: int, stage: int, resample: Callable | None = None) -> Rung:
        config = stages[stage]
        module = ResnetBlock2D(
            in_channels=32,
            out_channels=outputs,
            temb_channels=config.time_width,
            eps=config.norm_eps,
            groups=config.norm_num_groups,
            time_embedding_norm="scale_shift",
            non_linearity="gelu",
            output_scale_factor=config.resnet_out_scale_factor,
            skip_time_act=config.resnet_skip_time_act,
            down=resample is unet.half,
            up=resample is unet.double,
        )
        return part(
            f"resnet, stage {stage}, {name}",
            module,
            "down_blocks.0.resnets.0.",
            lambda rngs: unet.Resnet(32, outputs, config, conv, rngs, resample),
            lambda m, x, time: nhwc(m(nchw(x), time)),
            lambda m, x, time: m(x, time),
            normal(2, 6, 10, 32),
            normal(2, config.time_width, seed=2),
        )

    def attention(stage: int) -> Rung:
        config = stages[stage]
        module = Attention(
            query_dim=40,
            cross_attention_dim=40,
            heads=5,
            dim_head=8,
            added_kv_proj_dim=64,
            norm_num_groups=8,
            bias=True,
            upcast_softmax=True,
            only_cross_attention=config.only_cross_attention,
            cross_attention_norm="group_norm",
            processor=AttnAddedKVProcessor2_0(),  # pyright: ignore[reportArgumentType]
        )
        return part(
            f"attention, stage {stage}, {'text only' if config.only_cross_attention else 'text and self'}",
            module,
            "down_blocks.0.attentions.0.",
            lambda rngs: unet.Attention(40, config, rngs),
            lambda m, x, text: nhwc(m(nchw(x), encoder_hidden_states=text)),
            lambda m, x, text: m(x, m.text(text)),
            normal(2, 6, 10, 40),
            normal(2, 7, 64, seed=2),
        )

    kinds = [("plain", 32, None), ("wider", 40, None), ("down", 32, unet.half), ("up", 32, unet.double)]
    rungs = [resnet(name, width, stage, resample) for stage in stages for name, width, resample in kinds]
    return rungs + [attention(stage) for stage in stages] + [encoder("T5, one block", dict(T5, num_layers=1))]


def call_theirs(module: Any, x: torch.Tensor, t: torch.Tensor, text: torch.Tensor, *low: torch.Tensor) -> torch.Tensor:
    """Calls diffusers' UNet on x [n h w c]. For stage 2, `low` is the low-res image and its noise level."""
    labels = {"class_labels": low[1]} if low else {}
    x = torch.cat([x, *low[:1]], dim=-1)
    return nhwc(module(nchw(x), t, text, **labels).sample)


def call_ours(apply: Callable, params: dict, x: jax.Array, t: jax.Array, text: jax.Array, *low: jax.Array):
    """Calls our UNet on the same inputs, with the variance behind the estimate."""
    return jnp.concatenate(apply(params, x, t, Conditioning(text, *low)), axis=-1)


def quietly(module: Any, dtype: torch.dtype) -> Any:
    """Copies a module into a dtype. diffusers' warning of modules that stay in float32 is silenced: there are none."""
    logging.getLogger("diffusers.models.modeling_utils").setLevel(logging.ERROR)
    return copy.deepcopy(module).to(dtype)


def inputs_of(config: unet.Config, n: int, height: int, width: int, length: int) -> tuple[np.ndarray, ...]:
    """Returns images, timesteps and text for a UNet; for stage 2 also low-res images and their noise levels."""
    x, low = normal(n, height, width, 3), normal(n, height, width, 3, seed=2)
    t, level = np.linspace(990, 30, n), np.linspace(250, 100, n)
    stage2 = (low, level) if config.class_embed_type else ()
    return x, t, normal(n, length, config.encoder_hid_dim, seed=3), *stage2


def network(name: str, settings: dict) -> Rung:
    """Returns the rung of a UNet with these settings of config.json."""
    module: Any = randomise(UNet2DConditionModel(**settings).double())
    config = unet.read_config(dict(module.config))
    made = unet.unet(config)
    apply, abstract = made.apply, made.params
    params = names.translate({k: v.numpy() for k, v in module.state_dict().items()}, abstract)
    return Rung(name, module, call_theirs, lambda *a: call_ours(apply, *a), params, inputs_of(config, 2, 16, 24, 7))


def encoder(name: str, settings: dict, length: int = 77, *ends: int) -> Rung:
    """Returns the rung of a T5 encoder.

    Args:
        name: what the page calls it.
        settings: sizes, as in config.json.
        length: tokens of each prompt.
        ends: number of unmasked tokens of each prompt. By default there are two prompts: one with a third of the
            tokens, one with all.
    """
    module = randomise(T5EncoderModel(T5Config(feed_forward_proj="gated-gelu", **settings)).double())
    apply, abstract = t5.t5(t5.Config(**settings))
    weights = {k: v.numpy() for k, v in module.state_dict().items()}
    params = names.translate(weights, abstract, names.T5_RULES, names.T5_DROPPED)
    ends = ends or (length // 3, length)
    tokens = np.random.default_rng(4).integers(0, settings["vocab_size"], (len(ends), length))
    mask = (np.arange(length) < np.array(ends)[:, None]).astype(np.int64)
    theirs = lambda m, tokens, mask: m(tokens, attention_mask=mask).last_hidden_state
    return Rung(name, module, theirs, apply, params, (tokens, mask))


def networks() -> list[Rung]:
    """Returns the rungs of whole networks, with few channels."""
    return [
        network("UNet, stage 1", STAGE1),
        network("UNet, stage 2", STAGE2),
        encoder("T5, three blocks, padded", T5),
        encoder("T5, one head wider than the model, a prompt of one token", T5_ONE_HEAD, 40, 1, 39),
        encoder("T5, few buckets, 140 tokens: more than the largest distance", T5_FEW_BUCKETS, 140, 21, 140),
    ]


def xxl_layer() -> Rung:
    """Returns the rung of one T5 layer with the sizes of T5 XXL."""
    return encoder("T5, one layer of XXL's width, padded", T5_XXL_LAYER)


GROUPS = {"primitives": primitives, "blocks": blocks, "networks": networks}
