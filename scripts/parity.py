"""Measures how far jdiff is from diffusers and transformers, rung by rung, and writes docs/parity.md.

    python scripts/parity.py          # primitives, blocks, small networks, the six pipelines
    python scripts/parity.py --full   # and IF-I-M at its published size, through the converter, and a layer of T5 XXL

The tests hold the same rungs to their bounds. Needs the extra `torch`.
"""

import contextlib
import copy
import logging
import math
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import torch
import tyro
from flax import nnx

from jdiff.checkpoints import convert, files, int8, names
from jdiff.networks import t5, unet
from jdiff.networks.unet import CROSS_DOWN, CROSS_UP, PLAIN_DOWN, PLAIN_UP
from jdiff.types import Conditioning

with warnings.catch_warnings():  # theirs, on import
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
    """One thing that both sides have: a torch module with random weights, our function, the inputs of both."""

    name: str
    module: torch.nn.Module
    theirs: Callable  # (module, *inputs), channels last
    ours: Callable  # (params, *inputs)
    params: dict  # float64
    inputs: tuple  # numpy; floats are cast to the dtype measured


class Errors(NamedTuple):
    """Largest difference from torch in float64, as a part of its largest value."""

    ours: float
    theirs: float


@contextlib.contextmanager
def lifted() -> Iterator[None]:
    """torch without its own casts to float32: the sinusoid, the pooling's softmax, T5's variance."""
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
    """`module` with no weight at zero or one and outputs of the order of 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in module.named_parameters():
            if p.ndim > 1:
                p.normal_(0, math.prod(p.shape[1:]) ** -0.5, generator=generator)
            else:
                p.normal_(float(name.endswith("weight")), 0.1, generator=generator)
    return module.eval()


def normal(*shape: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def nchw(x: torch.Tensor) -> torch.Tensor:
    return x.movedim(-1, 1)


def nhwc(x: torch.Tensor) -> torch.Tensor:
    return x.movedim(1, -1)


def part(name: str, module: torch.nn.Module, prefix: str, make: Callable, theirs: Callable, call: Callable, *inputs):
    """Rung of a part of the UNet; `prefix` is where it stands in one, so that the table of names carries it over."""
    module = randomise(module.double())
    graphdef, state = nnx.split(nnx.eval_shape(lambda: make(nnx.Rngs(0))))
    abstract = nnx.to_pure_dict(state)
    flat = {prefix + k: v for k, v in files.flatten(abstract).items()}
    weights = names.translate({prefix + k: v.numpy() for k, v in module.state_dict().items()}, flat)
    params = files.unflatten({k.removeprefix(prefix): v for k, v in files.flatten(weights).items()}, abstract)
    return Rung(name, module, theirs, lambda p, *a: call(nnx.merge(graphdef, p), *a), params, inputs)


def free(name: str, theirs: Callable, ours: Callable, *inputs: np.ndarray) -> Rung:
    """Rung of a function without weights."""
    return Rung(name, torch.nn.Identity(), lambda _, *a: theirs(*a), lambda _, *a: ours(*a), {}, inputs)


def primitives() -> list[Rung]:
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
    module = randomise(modeling_t5.T5LayerNorm(24, 1e-6).double())
    graphdef, state = nnx.split(nnx.eval_shape(lambda: t5.RMSNorm(24, 1e-6)))
    params = files.unflatten({"scale": module.state_dict()["weight"].numpy()}, nnx.to_pure_dict(state))
    return Rung(
        "RMSNorm", module, lambda m, x: m(x), lambda p, x: nnx.merge(graphdef, p)(x), params, (normal(2, 7, 24),)
    )


def blocks() -> list[Rung]:
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
    """The oracle's UNet on [n h w c]; `low` is the low-res image and its noise level, at stage 2."""
    labels = {"class_labels": low[1]} if low else {}
    x = torch.cat([x, *low[:1]], dim=-1)
    return nhwc(module(nchw(x), t, text, **labels).sample)


def call_ours(apply: Callable, params: dict, x: jax.Array, t: jax.Array, text: jax.Array, *low: jax.Array):
    return jnp.concatenate(apply(params, x, t, Conditioning(text, *low)), axis=-1)


def quietly(module: Any, dtype: torch.dtype) -> Any:
    """A copy in `dtype`, without diffusers' remark on modules to be kept in float32, of which there are none."""
    logging.getLogger("diffusers.models.modeling_utils").setLevel(logging.ERROR)
    return copy.deepcopy(module).to(dtype)


def inputs_of(config: unet.Config, n: int, height: int, width: int, length: int) -> tuple[np.ndarray, ...]:
    x, low = normal(n, height, width, 3), normal(n, height, width, 3, seed=2)
    t, level = np.linspace(990, 30, n), np.linspace(250, 100, n)
    stage2 = (low, level) if config.class_embed_type else ()
    return x, t, normal(n, length, config.encoder_hid_dim, seed=3), *stage2


def network(name: str, settings: dict) -> Rung:
    module: Any = randomise(UNet2DConditionModel(**settings).double())
    config = unet.read_config(dict(module.config))
    made = unet.unet(config)
    apply, abstract = made.apply, made.params
    params = names.translate({k: v.numpy() for k, v in module.state_dict().items()}, abstract)
    return Rung(name, module, call_theirs, lambda *a: call_ours(apply, *a), params, inputs_of(config, 2, 16, 24, 7))


def encoder(name: str, settings: dict, length: int = 77, *ends: int) -> Rung:
    """Rung of prompts of `length` tokens, the mask 1 up to `ends`: by default of one a third, of the other all."""
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
    return [
        network("UNet, stage 1", STAGE1),
        network("UNet, stage 2", STAGE2),
        encoder("T5, three blocks, padded", T5),
        encoder("T5, one head wider than the model, a prompt of one token", T5_ONE_HEAD, 40, 1, 39),
        encoder("T5, few buckets, 140 tokens: beyond their distance", T5_FEW_BUCKETS, 140, 21, 140),
    ]


def xxl_layer() -> Rung:
    return encoder("T5, one layer of XXL's width, padded", T5_XXL_LAYER)


def exact(rung: Rung) -> np.ndarray:
    """What torch says in float64 throughout."""
    with lifted(), torch.no_grad():
        return rung.theirs(rung.module, *map(torch.as_tensor, rung.inputs)).double().numpy()


def relative(y: Any, truth: np.ndarray) -> float:
    return float(np.abs(np.asarray(y, np.float64) - truth).max() / np.abs(truth).max())


def _narrow(x: np.ndarray, dtype: str) -> str:
    """Times (one dimension) stay in float32 at least: 990 would be 992 in bfloat16."""
    return "float32" if x.ndim == 1 and dtype != "float64" else dtype


def ours(rung: Rung, dtype: str) -> np.ndarray:
    inputs = [x.astype(_narrow(x, dtype)) if x.dtype == np.float64 else x for x in rung.inputs]
    params = jax.tree.map(lambda x: jnp.asarray(x, dtype), rung.params)
    y = jax.jit(rung.ours)(params, *map(jnp.asarray, inputs))
    return np.asarray(y.astype(jnp.promote_types(y.dtype, jnp.float32)))


def theirs(rung: Rung, dtype: str) -> np.ndarray:
    module = quietly(rung.module, getattr(torch, dtype))
    inputs = [
        torch.as_tensor(x).to(getattr(torch, _narrow(x, dtype)) if x.dtype == np.float64 else torch.int64)
        for x in rung.inputs
    ]
    with torch.no_grad():
        return rung.theirs(module, *inputs).double().numpy()


def measure(rung: Rung, dtype: str) -> Errors:
    """Errors of both sides in `dtype`; in float64 torch's is that of its casts to float32."""
    truth = exact(rung)
    double = dtype == "float64"
    with jax.enable_x64(double):
        error = relative(ours(rung, dtype), truth)
    return Errors(error, relative(theirs(rung, dtype), truth))


def in_int8(rung: Rung) -> float:
    """Error of our float32 with the kernels in int8: what is lost by storing them so."""

    def stored(tree: dict) -> dict:
        if list(tree) == ["kernel"]:
            tree = dict(zip(("kernel", "scale"), int8.quantise(tree["kernel"]), strict=True))
        return {k: stored(v) if isinstance(v, dict) else v for k, v in tree.items()}

    like = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, jnp.float32), rung.params)
    params = jax.tree.map(np.asarray, int8.restore(stored(rung.params), like))
    return relative(ours(rung._replace(params=params), "float32"), exact(rung))


def measure_full(folder: Path) -> Errors:
    """IF-I-M at its published size in float32: random weights, written in shards, converted, loaded, run."""
    torch.manual_seed(0)
    module: Any = randomise(UNet2DConditionModel(**IF_I_M))
    module.save_pretrained(folder / "theirs" / "unet", max_shard_size="400MB")
    config = unet.read_config(dict(module.config))
    inputs = inputs_of(config, 1, 64, 64, 77)
    with torch.no_grad():
        own = call_theirs(module, *(torch.as_tensor(x).float() for x in inputs)).double().numpy()
        with lifted():
            truth = call_theirs(module.double(), *map(torch.as_tensor, inputs)).numpy()
    del module
    path = convert.convert(folder / "theirs", folder / "ours") / "unet"
    made = unet.unet(unet.read_config(path))
    apply, abstract = made.apply, made.params
    params = jax.tree.map(jnp.asarray, files.load(path, abstract))
    got = jax.jit(call_ours, static_argnums=0)(apply, params, *(jnp.asarray(x, jnp.float32) for x in inputs))
    return Errors(relative(got, truth), relative(own, truth))


GROUPS = {"primitives": primitives, "blocks": blocks, "networks": networks}
DTYPES = ("float64", "float32", "bfloat16")
PAGE = Path(__file__).resolve().parents[1] / "docs" / "parity.md"
TOP = """# How far jdiff is from the originals

Each rung gives both sides the same random weights and inputs, of non-square sizes, and takes torch in float64
throughout as the truth. The error is the largest difference, as a part of the largest value. "torch" is the error
of diffusers or transformers itself in that dtype: what is left when only the framework's rounding differs.

In float64 torch casts parts to float32 (the sinusoid, the text pooling's softmax, T5's variance): those casts are
lifted for the truth, and the column "torch" says what they amount to. The tests demand 1e-12 in float64, and in
float32 and bfloat16 at most 4 times torch's own error (times stay in float32: 990 would be 992 in bfloat16).

Measured by `{command}` on {machine}: jax {jax}, torch {torch}, diffusers {diffusers}, transformers {transformers}.

| rung | float64, jdiff | torch | float32, jdiff | torch | bfloat16, jdiff | torch |
|---|---|---|---|---|---|---|
"""


HELD = """
IF-I-M at its full size (371,605,830 parameters, float32, converted from shards) and one layer of T5 at XXL's width are
held to the same rule by the slow tests in `tests/test_parity.py`; `python scripts/parity.py --full` adds their figures
here.
"""
INT8 = """
The last row is one layer of T5 XXL with its final norm: 4096 wide, 64 heads of 64, feed-forward 10240, two prompts of
77 tokens, one of them padded. With its kernels in int8 (per output channel, symmetric) jdiff's float32 states are
{:.1e} off: random weights; trained ones have larger outliers.
"""
LOOPS = """
## Whole loops

diffusers' six IF pipelines and jdiff's tasks, with the same small random networks, embeddings, pictures and injected
noise: several guided steps with learned variance and dynamic thresholding, two images of 16 x 24. In float64 both
sides have the scheduler's float32 table of abar, and torch's own casts are lifted; the tests demand 1e-8 there, and in
float32 at most 4 times torch's own error.

| jdiff | diffusers | calls | float64, jdiff | float32, jdiff | torch |
|---|---|---|---|---|---|
"""


def row(name: str, errors: Sequence[Errors | None]) -> str:
    cells = [f"{x:.1e}" if x else "0" for e in errors if e for x in e]
    return f"| {name} | {' | '.join(cells)} |"


def main(full: bool = False, machine: str = "a two-core AMD EPYC virtual machine", page: Path = PAGE) -> None:
    """Measures every rung and writes the page.

    Args:
        full: also IF-I-M at its published size and a layer of T5 at XXL's: 10 GB of memory, 4 GB of disk, some minutes.
        machine: what the page says it was measured on.
        page: where it is written.
    """
    rows, note = [], HELD
    for group, rungs in GROUPS.items():
        for rung in rungs():
            rows.append(row(f"{rung.name}", [measure(rung, dtype) for dtype in DTYPES]))
            print(group, rows[-1], flush=True)
    if full:
        with tempfile.TemporaryDirectory() as folder:
            e = measure_full(Path(folder))
        rows.append(
            f"| IF-I-M, 371,605,830 parameters, 64x64, converted from shards | | | {e.ours:.1e} | {e.theirs:.1e} | | |"
        )
        print(rows[-1], flush=True)
        layer = xxl_layer()
        rows.append(row(layer.name, [measure(layer, dtype) for dtype in DTYPES]))
        note = INT8.format(in_int8(layer))
        print(rows[-1], note, flush=True)
    import parity_pipelines as loops  # which needs this module

    walks = []
    for name, task in loops.TASKS.items():
        double, single = loops.measure(name)
        cells = (name, task.pipeline, int(task.steps * task.strength), f"{double:.1e}", *(f"{x:.1e}" for x in single))
        walks.append(f"| {' | '.join(map(str, cells))} |")
        print(walks[-1], flush=True)
    versions = {name: metadata.version(name) for name in ("jax", "torch", "diffusers", "transformers")}
    command = f"python scripts/parity.py{' --full' if full else ''}"
    page.parent.mkdir(exist_ok=True)
    page.write_text(
        TOP.format(command=command, machine=machine, **versions)
        + "\n".join(rows)
        + "\n"
        + note
        + LOOPS
        + "\n".join(walks)
        + "\n"
    )


if __name__ == "__main__":
    tyro.cli(main)
