"""Measures speed and memory. Times are medians, and each is compared with another one of the same run.

python scripts/benchmark.py conv anagram generate tasks   # the default
python scripts/benchmark.py parts     # parts of IF-I-M that have a form of their own on CPUs
python scripts/benchmark.py step      # a step of IF-I-M, compared with diffusers: 8 GB of memory, the extra `torch`
python scripts/benchmark.py interval  # guidance in an interval, compared with guidance at every step
python scripts/benchmark.py mnist     # training on MNIST, compared with PyTorch: the extra `torch`
python scripts/benchmark.py t5        # memory of a T5 of XXL's width, read layer by layer: 8 GB of disk
python scripts/benchmark.py memory    # memory of text encoder and network, alone and together: 5 GB of disk
python scripts/benchmark.py sizes     # sizes of IF's weights, computed from their shapes
"""

import dataclasses
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from flax import nnx
from jax.tree_util import Partial
from safetensors.numpy import save_file

import jdiff
from jdiff import combine, model, sample, schedule, step, views
from jdiff.checkpoints import convert, files
from jdiff.networks import pure, t5, unet
from jdiff.training.conv import NHWC, conv_by_patches, fitting_conv
from jdiff.types import Conditioning

BATCH = 128  # images an update of part B's class-conditional network


class Row(NamedTuple):
    """One measurement."""

    what: str
    seconds: float
    peer: str = ""  # what it is compared with
    peer_seconds: float | None = None

    def __str__(self) -> str:
        ratio = "" if self.peer_seconds is None else f"{self.peer_seconds / self.seconds:.2f}"
        beside = "" if self.peer_seconds is None else f"{self.peer_seconds:.3g} s"
        return f"| {self.what} | {self.seconds:.3g} s | {self.peer} | {beside} | {ratio} |"


def median(*functions: Callable[[], Any], times: int = 7) -> list[float]:
    """Returns the median seconds of each function. The functions run in turn, after one call of each to compile it."""
    for function in functions:
        jax.block_until_ready(function())
    taken: list[list[float]] = [[] for _ in functions]
    for _ in range(times):
        for function, seconds in zip(functions, taken, strict=True):
            began = time.perf_counter()
            jax.block_until_ready(function())
            seconds.append(time.perf_counter() - began)
    return [statistics.median(seconds) for seconds in taken]


def conv() -> Iterator[Row]:
    """Measures the gradient of a 3x3 kernel at the mini model's sizes, alone and in a scan, compared with XLA's."""
    for side, width in ((32, 32), (16, 64), (8, 96)):
        x = jax.random.normal(jax.random.key(0), (24, side, side, width))
        kernel = jax.random.normal(jax.random.key(1), (3, 3, width, width))
        own = partial(jax.lax.conv_general_dilated, window_strides=(1, 1), padding="SAME", dimension_numbers=NHWC)
        gradients = [jax.grad(lambda k, x, f=f: (f(x, k) ** 2).sum()) for f in (conv_by_patches, own)]
        what = f"conv_by_patches, kernel's gradient, 24 x {side} x {side} x {width}"
        alone = [jax.jit(gradient) for gradient in gradients]
        yield Row(what, *_beside(median(*[partial(g, kernel, x) for g in alone]), "XLA's own"))
        scanned = [jax.jit(partial(_thrice, gradient)) for gradient in gradients]
        yield Row(f"{what}, 3 in a scan", *_beside(median(*[partial(g, kernel, x) for g in scanned]), "XLA's own"))


def _thrice(gradient: Callable, kernel: Any, x: Any) -> Any:
    return jax.lax.scan(lambda k, _: (k - 1e-6 * gradient(k, x), None), kernel, length=3)[0]


def _beside(seconds: list[float], peer: str) -> tuple[float, str, float]:
    return seconds[0], peer, seconds[1]


def anagram() -> Iterator[Row]:
    """Measures a guided anagram step of the mini model: four evaluations in one call, compared with four calls."""
    model = jdiff.load("mini")
    nothing, six, nine = model.embed(["", "a red six", "a red nine"])
    guided = [combine.cfg(text, 3.0, nothing) for text in (six, nine)]
    both = combine.mean([guided[0], combine.view(views.rotate_180(), guided[1])])
    level = sample.one(schedule.levels(model.schedule, [500]), 0)
    x = jax.random.normal(jax.random.key(0), (8, 32, 32, 3))
    batched = jax.jit(lambda network, x: jax.vmap(lambda x: combine.denoiser(network, both)(x, level))(x))
    alone = jax.jit(lambda network, x, text: network(x, jnp.full(8, 500.0), Conditioning(jnp.stack([text] * 8))))

    def sequential() -> list[Any]:
        return [alone(model.network, x if i < 2 else x[:, ::-1, ::-1], text)
                for i, text in enumerate((nothing, six, nothing, nine))]  # fmt: skip

    ours, theirs = median(lambda: batched(model.network, x), sequential)
    yield Row("one guided anagram step of 8 pictures, 4 evaluations each", ours, "4 calls one after another", theirs)


def generate() -> Iterator[Row]:
    """Measures `jdiff generate "a red three"` and `jdiff ambigram swims`, with and without the compilation cache."""
    commands = {"generate": ("a red three", "the default grid"), "ambigram": ("swims", "12 candidates")}
    for command, (words, what) in commands.items():
        with tempfile.TemporaryDirectory() as folder:
            line = [sys.executable, "-m", "jdiff.cli.main", command, words, "-o", f"{folder}/made.png", "--quiet"]
            environment = os.environ | {"JDIFF_CACHE": f"{folder}/cache"}
            seconds = []
            for _ in range(4):
                began = time.perf_counter()
                subprocess.run(line, check=True, env=environment, stdout=subprocess.DEVNULL)
                seconds.append(time.perf_counter() - began)
        yield Row(f"`jdiff {command}`, {what}, compilation cached", statistics.median(seconds[1:]), "cold", seconds[0])


def parts() -> Iterator[Row]:
    """Measures the parts of IF-I-M that have a form of their own on CPUs, compared with JAX's or Flax's own."""
    plain = partial(jax.lax.conv_general_dilated, window_strides=(1, 1), padding="SAME", dimension_numbers=NHWC)
    own = partial(unet.convolve, strides=(1, 1), padding="SAME", dimension_numbers=NHWC)
    normal = lambda *shape: jax.random.normal(jax.random.key(0), shape)
    x = normal(2, 64, 64, 192)
    heads = normal(6, 2, 1024, 64), normal(6, 2, 1101, 64), normal(6, 2, 1101, 64)
    forms: dict[str, tuple[Callable, Callable, tuple, str]] = {
        "GELU, 2 x 64 x 64 x 192": (unet.gelu, partial(jax.nn.gelu, approximate=False), (x,), "`jax.nn.gelu`"),
        "3x3 convolution, the same": (own, plain, (x, normal(3, 3, 192, 192)), "XLA's preferred one"),
        "1x1 convolution, the same": (own, plain, (x, normal(1, 1, 192, 192)), "XLA's preferred one"),
        "attention of 6 heads, one after another, 2 x 1024 pixels, 77 tokens": (
            partial(unet.over_heads, unet.attend), jax.vmap(unet.attend), heads, "all heads at once"
        ),
    }  # fmt: skip
    for what, (ours, theirs, inputs, peer) in forms.items():
        compiled = [jax.jit(form) for form in (ours, theirs)]
        yield Row(what, *_beside(median(*[partial(form, *inputs) for form in compiled]), peer))
    make = lambda rngs: unet.UNet(unet.Config(), unet.convolve, rngs=rngs)
    shapes = lambda: nnx.eval_shape(lambda: make(nnx.Rngs(0)))
    seconds = median(lambda: pure.abstract(make) and None, lambda: shapes() and None, times=3)
    yield Row("the shapes of IF-I-M's parameters, from one key", *_beside(seconds, "from `nnx.Rngs`"))


def tasks() -> Iterator[Row]:
    """Measures each task of the mini model with 4 pictures and 20 steps, compared with plain generation."""
    model, key = jdiff.load("mini"), jax.random.key(0)
    image = jnp.asarray(sample.generate(model, ["a red three"], key).images[0, 0])
    mask = jnp.zeros((32, 32)).at[:, 16:].set(1)
    texts = model.embed(["", "a red six", "a red nine"])
    guided = [combine.cfg(text, jnp.float32(3.0), texts[0]) for text in texts[1:]]
    both = combine.mean([guided[0], combine.view(views.rotate_180(), guided[1])])
    hybrid = combine.components({views.low_pass(): guided[0], views.high_pass(): guided[1]})
    prompt = ["a red three"]
    made: dict[str, Callable] = {
        "edit, strength 0.7": lambda: sample.edit(model, image, prompt, key, n=4),
        "inpaint": lambda: sample.inpaint(model, image, mask, prompt, key, n=4),
        "inpaint, jumps of 5, 5 times": lambda: sample.inpaint(
            model, image, mask, prompt, key, n=4, jump_length=5, resamplings=5
        ),
        "anagram": lambda: sample.generate(model, both, key, n=4),
        "hybrid": lambda: sample.generate(model, hybrid, key, n=4),
    }
    plain = lambda: sample.generate(model, prompt, key, n=4)
    for name, run in made.items():
        ours, theirs = median(lambda run=run: run().images, lambda: plain().images, times=3)
        yield Row(name, ours, "generate", theirs)


def guided_step() -> Iterator[Row]:
    """Measures a guided step of IF-I-M (batch 2, 77 tokens, float32, constant weights), and diffusers' network.

    diffusers' network is measured unchanged, with channels last in memory, and compiled with channels last.
    """
    import parity_rungs
    import torch
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    module: Any = UNet2DConditionModel(**parity_rungs.IF_I_M).eval()
    config = unet.read_config(dict(module.config))
    network = unet.unet(config)  # the time does not depend on the values of the parameters
    network = network.bind(jax.tree.map(lambda a: jnp.full(a.shape, 0.01, jnp.float32), network.params))
    x, text = parity_rungs.normal(2, 64, 64, 3), parity_rungs.normal(2, 77, 4096, seed=2)
    inputs = [torch.as_tensor(a).float() for a in (x, np.full(2, 500.0), text)]
    levels = schedule.levels(schedule.cosine(), schedule.leading(100))
    solver = step.ddpm(x0_rule=step.threshold())
    row = jax.tree.map(lambda a: jnp.asarray(a[50], jnp.float32), solver.table(levels))
    combiner = sample.prepare(network, combine.cfg(jnp.asarray(text[0], jnp.float32), 7.0, jnp.zeros((77, 4096))))

    @jax.jit
    def ours(network, combiner, x):
        return solver.step(jax.random.key(0), solver.init(x), row, combine.denoiser(network, combiner))[0].x

    def theirs(network: Any) -> Any:
        with torch.no_grad():
            return parity_rungs.call_theirs(network, *inputs).numpy()

    image = jnp.asarray(x[0], jnp.float32)
    mine, eager = median(lambda: ours(network, combiner, image), lambda: theirs(module), times=3)
    what = "IF-I-M, one guided step, float32"
    yield Row(what, mine, "diffusers' network alone", eager)
    module = module.to(memory_format=torch.channels_last)
    compiled = torch.compile(module)
    mine, last, fast = median(
        lambda: ours(network, combiner, image), lambda: theirs(module), lambda: theirs(compiled), times=3
    )
    yield Row(what, mine, "the same, channels last", last)
    yield Row(what, mine, "the same, channels last, compiled", fast)


def interval() -> Iterator[Row]:
    """Measures guidance in an interval that leaves out 40 % of the steps, compared with guidance at every step."""
    network = jdiff.load("mini")
    nothing, three = network.embed(["", "a red three"])
    levels = schedule.levels(network.schedule, schedule.leading(20))
    keys = sample.image_keys(jax.random.key(0), 8)
    x = sample.start(keys, (32, 32, 3))
    inside = sorted(levels.t)[4:16]

    def draw(scale: combine.Scale) -> Any:
        combiner = combine.cfg(three, scale, nothing)
        return sample.sample(network.network, keys, x, levels, combiner=combiner, solver=step.ddim()).images

    some, every = median(lambda: draw(combine.between(4.0, inside[0], inside[-1])), lambda: draw(4.0), times=5)
    yield Row("mini model, 8 pictures, 20 steps, 8 of them outside the guidance interval", some, "guided always", every)


ENCODE = """
import sys, time
import numpy as np
from jdiff.text import encoder
began = time.perf_counter()
np.save(sys.argv[2], encoder.find(sys.argv[1], stream=True).encode(["a red three"]))
peak = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(time.perf_counter() - began, int(peak) / 1e6 * 1.024)
"""


def mnist_training(width: int = 64, batch: int = BATCH, updates: int = 3) -> Iterator[Row]:
    """Measures updates of the course's class-conditional DDPM on random pictures, compared with PyTorch."""
    import torch
    from parity_mnist import Course

    from jdiff.mesh import over_devices
    from jdiff.mnist import data, objectives
    from jdiff.mnist import unet as course
    from jdiff.mnist.recipes import recipes
    from jdiff.training import loop as train

    recipe, pixels = recipes()["class", "spec"], np.random.default_rng(0).integers(0, 256, (updates * batch, 28, 28))
    labels = np.arange(len(pixels), dtype=np.int32) % 10
    optimizer = recipe.optimizer(1e-3, updates, 1)
    levels, target, forward = map(Partial, (recipe.levels, recipe.target, recipe.training(width, fitting_conv())))
    objective = Partial(objectives.regression, levels, target, jnp.float32(recipe.dropout), forward)
    batches = data.on_device(pixels.astype(np.uint8), labels, batch, jax.random.key(0))
    state = train.start(recipe.init(width, jax.random.key(1)), optimizer, jax.random.key(2))

    mesh = over_devices() if jax.default_backend() == "cpu" else None  # PyTorch's loop uses one accelerator
    many = partial(train.train, objective=objective, data=batches, optimizer=optimizer, mesh=mesh)

    def ours() -> Any:
        return many(jax.tree.map(jnp.array, state), steps=updates, every=updates)

    on = "cuda" if torch.cuda.is_available() else "cpu"
    plain: Any = Course(course.Config(width)).to(on)
    fast: Any = Course(course.Config(width)).to(on)
    fast = fast.to(memory_format=torch.channels_last)
    plain, fast = (torch.compile(a) if on == "cuda" else a for a in (plain, fast))
    abar = torch.tensor(schedule.linear(300), dtype=torch.float32, device=on)
    x0 = torch.tensor(pixels[:, None] / 255.0, dtype=torch.float32, device=on)
    classes = torch.nn.functional.one_hot(torch.tensor(labels, device=on).long(), 10).float()

    def theirs(network: Any, adam: Any, half: bool) -> None:
        for first in range(0, len(x0), batch):
            x, c = x0[first : first + batch], classes[first : first + batch]
            i = torch.randint(0, 300, (batch,), device=on)
            eps, c = torch.randn_like(x), c * (torch.rand(batch, 1, device=on) >= 0.1)
            a = abar[i][:, None, None, None]
            with torch.autocast(on, torch.bfloat16, enabled=half):
                prediction = network(a.sqrt() * x + (1 - a).sqrt() * eps, (i + 1) / 300, c)
            loss = ((prediction.float() - eps) ** 2).mean()
            adam.zero_grad()
            loss.backward()
            adam.step()
        if on == "cuda":
            torch.cuda.synchronize()

    adams = [torch.optim.Adam(network.parameters(), lr=1e-3) for network in (plain, fast)]
    mine, beside, strongest = median(
        ours, lambda: theirs(plain, adams[0], False), lambda: theirs(fast, adams[1], True), times=3
    )
    n = updates * batch
    compiled = "compiled PyTorch" if on == "cuda" else f"PyTorch, {torch.get_num_threads()} threads"
    what = f"class DDPM, D = {width}, {updates} updates of {batch} ({n / mine:.0f} images/s)"
    yield Row(what, mine, compiled, beside)
    yield Row(what, mine, f"{compiled}, channels last, bfloat16", strongest)


def random_t5(folder: Path, layers: int) -> Path:
    """Writes a freshly initialised T5 encoder of XXL's width as transformers does, with one shard for each layer."""
    config = t5.Config(num_layers=layers)
    d, inner, ff = config.d_model, config.num_heads * config.d_kv, config.d_ff
    chance = np.random.default_rng(0)
    normal = lambda *shape, std=1.0: chance.standard_normal(shape, np.float32) * np.float32(std)
    shards: dict[str, Callable] = {
        "ends": lambda: {
            "shared.weight": normal(config.vocab_size, d),
            "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight": normal(32, 64, std=d**-0.5),
            "encoder.final_layer_norm.weight": 1 + normal(d, std=0.1),
        }
    }
    for i in range(layers):
        at = f"encoder.block.{i}.layer"
        shards[f"layer-{i}"] = lambda at=at: {
            f"{at}.0.SelfAttention.q.weight": normal(inner, d, std=(d * config.d_kv) ** -0.5),
            **{f"{at}.0.SelfAttention.{name}.weight": normal(inner, d, std=d**-0.5) for name in "kvo"},
            f"{at}.0.layer_norm.weight": 1 + normal(d, std=0.1),
            **{f"{at}.1.DenseReluDense.{name}.weight": normal(ff, d, std=d**-0.5) for name in ("wi_0", "wi_1")},
            f"{at}.1.DenseReluDense.wo.weight": normal(d, ff, std=ff**-0.5),
            f"{at}.1.layer_norm.weight": 1 + normal(d, std=0.1),
        }
    folder.mkdir()
    index = {}
    for shard, make in shards.items():
        tensors = make()
        save_file(tensors, folder / f"{shard}.safetensors", {"format": "pt"})
        index |= dict.fromkeys(tensors, f"{shard}.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    bytes_ = {"tokenizer_class": "ByT5Tokenizer", "max_length": 77}
    kind = {"model_type": "t5", "feed_forward_proj": "gated-gelu"}
    (folder / "config.json").write_text(json.dumps(dataclasses.asdict(config) | kind | bytes_))
    return folder


def streamed_t5(few: int = 1, more: int = 3) -> Iterator[Row]:
    """Measures the peak memory of an encoder of XXL's width that is read layer by layer, and the error of int8."""
    states = {}
    with tempfile.TemporaryDirectory() as name:
        folder, peaks = Path(name), {}
        for layers in (few, more):
            source = random_t5(folder / f"{layers}", layers)
            for dtype in ("float32", "bfloat16", "int8"):
                ours = convert.convert(source, folder / "ours", dtype)
                command = [sys.executable, "-c", ENCODE, str(ours), f"{folder}/states.npy"]
                said = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
                seconds, peaks[dtype, layers] = map(float, said)
                shutil.rmtree(ours)
                states[dtype] = np.load(folder / "states.npy")
                if layers == more:
                    peak, a_layer = peaks[dtype, more], (peaks[dtype, more] - peaks[dtype, few]) / (more - few)
                    what = f"T5 of XXL's width, {more} layers in {dtype}, one prompt, streamed: peak {peak:.2f} GB"
                    all_24 = peak + max(0.0, a_layer) * (24 - more)
                    yield Row(what, seconds, f"with {few}: {peaks[dtype, few]:.2f} GB; so with 24: {all_24:.2f} GB")
            shutil.rmtree(source)
    truth = states.pop("float32")
    for dtype, x in states.items():
        largest, rms = (
            np.abs(x - truth).max() / np.abs(truth).max(),
            np.sqrt(np.mean((x - truth) ** 2) / np.mean(truth**2)),
        )
        yield Row(f"its final states in {dtype}, from those in float32: {rms:.1e} (rms), {largest:.1e} (largest)", 0.0)


LOAD = """
import sys
import numpy as np
import jdiff
from jdiff.text import embeddings, encoder
which, model, text = sys.argv[1:]
prompt = ["a red three"]
if which == "encoder":
    embeddings.embedder(encoder=encoder.find(text))(prompt)
elif which == "network":
    jdiff.load(model, known={prompt[0]: np.zeros((77, 4096), np.float32)}).embed(prompt)
elif which == "both, texts first":
    jdiff.load(model, encoder=text, texts=prompt).embed(prompt)
else:
    jdiff.load(model, encoder=text).embed(prompt)
peak = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(int(peak) / 1e6 * 1.024)
"""
STAGE1 = {"M": (192, 768), "L": (320, 1280), "XL": (704, 2816)}  # channels of the first level, cross_attention_dim


def if_config(name: str) -> dict[str, Any]:
    """Returns the config.json of IF-I-`name`."""
    first, cross = STAGE1[name]
    plain = json.loads((model.shipped("mini") / "unet" / "config.json").read_text())
    down = ["ResnetDownsampleBlock2D"] + ["SimpleCrossAttnDownBlock2D"] * 3
    up = ["SimpleCrossAttnUpBlock2D"] * 3 + ["ResnetUpsampleBlock2D"]
    sizes = {"block_out_channels": [first * k for k in (1, 2, 3, 4)], "cross_attention_dim": cross}
    sizes |= {"layers_per_block": 3, "encoder_hid_dim": 4096, "addition_embed_type_num_heads": 64, "sample_size": 64}
    return plain | sizes | {
        "attention_head_dim": 64, "norm_num_groups": 32, "down_block_types": down, "up_block_types": up,
    }  # fmt: skip


def memory(layers: int = 2) -> Iterator[Row]:
    """Measures the peak memory of an encoder of XXL's width and of IF-I-M in float32, each alone and both."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = random_t5(folder / "source", layers)
        text = convert.convert(source, folder / "text", "float32")
        shutil.rmtree(source)
        (folder / "model" / "unet").mkdir(parents=True)
        (folder / "model" / "unet" / "config.json").write_text(json.dumps(if_config("M")))
        abstract = unet.unet(unet.read_config(folder / "model" / "unet")).params
        weights = jax.tree.map(lambda a: np.full(a.shape, 0.01, np.float32), abstract)
        files.save(folder / "model" / "unet" / "model.safetensors", weights)
        for which in ("encoder", "network", "both, texts first", "both, network first"):
            command = [sys.executable, "-c", LOAD, which, str(folder / "model"), str(text)]
            began = time.perf_counter()
            peak = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            what = f"encoder of {layers} layers of XXL's width, IF-I-M, float32: {which}: peak {peak:.2f} GB"
            yield Row(what, time.perf_counter() - began)


def sizes() -> Iterator[Row]:
    """Computes the sizes of IF's weights in each dtype from their shapes."""
    xxl = files.flatten(t5.t5(t5.Config())[1])
    found: dict[str, tuple[dict, tuple[str, ...]]]
    found = {"T5 v1.1 XXL, encoder": ({path: leaf.shape for path, leaf in xxl.items()}, (*convert.STORED, "int8"))}
    for name in STAGE1:
        flat = files.flatten(unet.unet(unet.read_config(if_config(name))).params)
        found[f"IF-I-{name}"] = ({path: leaf.shape for path, leaf in flat.items()}, convert.STORED)
    for name, (shapes, dtypes) in found.items():
        written = lambda dtype, shapes=shapes: sum(
            d.itemsize * int(np.prod(s, dtype=int))
            for p, a in shapes.items()
            for d, s in convert.forms(p, a, dtype).values()
        )
        total = sum(int(np.prod(shape, dtype=int)) for shape in shapes.values())
        listed = ", ".join(f"{written(dtype) / 1e9:.2f} GB in {dtype}" for dtype in dtypes)
        yield Row(f"{name}, {total:,} parameters: {listed}", 0.0)


BENCHMARKS: dict[str, Callable[[], Iterator[Row]]] = {
    "conv": conv,
    "anagram": anagram,
    "generate": generate,
    "parts": parts,
    "tasks": tasks,
    "step": guided_step,
    "interval": interval,
    "mnist": mnist_training,
    "t5": streamed_t5,
    "memory": memory,
    "sizes": sizes,
}


def main(which: tyro.conf.Positional[tuple[str, ...]] = ("conv", "anagram", "generate", "tasks")) -> None:
    """Prints a Markdown table.

    Args:
        which: names of benchmarks: conv, anagram, generate, parts, tasks, step, interval, mnist, t5, memory, sizes.
    """
    if unknown := [name for name in which if name not in BENCHMARKS]:
        sys.exit(f"WHICH must be names of {', '.join(BENCHMARKS)}, got {unknown[0]!r}")
    sys.path.append(str(Path(__file__).resolve().parent))
    if "mnist" in which:
        from jdiff.mesh import use_cores

        use_cores(BATCH)  # as `jdiff mnist train` does
    device = jax.devices()[0].device_kind
    print(f"jax {jax.__version__} on {device}, {os.cpu_count()} CPU cores, {platform.machine()}\n")
    print("| measured | time | compared with | time | ratio |\n|---|---|---|---|---|")
    for name in which:
        for row in BENCHMARKS[name]():
            print(row, flush=True)


if __name__ == "__main__":
    tyro.cli(main)
