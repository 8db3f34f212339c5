"""Computes the memory of DeepFloyd IF's and T5 XXL's parameters on each of several devices.

    python scripts/measure_memory.py                    # from shapes and `jdiff.mesh.parameter_shardings`: seconds
    python scripts/measure_memory.py --compile M L XL   # also of programs compiled for 8 virtual devices: minutes

Parameters are split over the mesh's axis "model" by `jdiff.mesh.parameter_shardings`. No weights are needed: the table
is computed from shapes, and the programs are compiled ahead of time, on a CPU that stands for all devices.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jdiff import mesh as meshes
from jdiff.networks import t5, unet
from jdiff.types import Conditioning, Params

DEVICES = (1, 4, 8, 64)
COMPILED = 8  # devices of the compiled programs
WIDTHS = {"M": (192, 768), "L": (320, 1280), "XL": (704, 2816)}  # channels of the first level, cross_attention_dim
TOKENS = 77


def stage1(name: str) -> unet.Config:
    """Returns the config of IF-I-`name`."""
    first, cross = WIDTHS[name]
    return unet.Config(block_out_channels=tuple(first * k for k in (1, 2, 3, 4)), cross_attention_dim=cross)


# IF-II-L as published, with 1.2 billion parameters. A conversion uses the model's own config.json instead.
STAGE2 = unet.Config(
    sample_size=256, in_channels=6, block_out_channels=tuple(192 * k for k in (1, 2, 4, 6, 6)),
    layers_per_block=(2, 2, 3, 5, 5), down_block_types=(unet.PLAIN_DOWN,) * 3 + (unet.CROSS_DOWN,) * 2,
    up_block_types=(unet.CROSS_UP,) * 2 + (unet.PLAIN_UP,) * 3, cross_attention_dim=1152, only_cross_attention=True,
    class_embed_type="timestep", time_embedding_dim=1152, time_embedding_act_fn="gelu", resnet_skip_time_act=True,
    resnet_out_scale_factor=2**0.5, mid_block_scale_factor=2**0.5,
)  # fmt: skip

# By name: the shapes of the parameters.
NETWORKS: dict[str, Callable[[], Params]] = {
    "IF-I-M": lambda: unet.unet(stage1("M")).params,
    "IF-I-L": lambda: unet.unet(stage1("L")).params,
    "IF-I-XL": lambda: unet.unet(stage1("XL")).params,
    "IF-II-L": lambda: unet.unet(STAGE2).params,
    "T5 v1.1 XXL, encoder": lambda: t5.t5(t5.Config())[1],
}


def mesh(devices: int) -> Mesh:
    """Returns a mesh of this many devices, all on the axis that parameters are split over."""
    return jax.make_mesh(
        (1, devices), (meshes.DATA, meshes.MODEL), axis_types=(AxisType.Auto,) * 2, devices=jax.devices()[:devices]
    )


def numbers(params: Params, devices: int) -> int:
    """Returns the number of parameters on each device."""
    shardings = meshes.parameter_shardings(mesh(devices), params)
    shard = lambda a, sharding: jax.ShapeDtypeStruct(sharding.shard_shape(a.shape), a.dtype)
    return sum(a.size for a in jax.tree.leaves(jax.tree.map(shard, params, shardings)))


def table() -> None:
    """Prints gigabytes of parameters on each device, in bfloat16; in brackets, divided by those of an even split."""
    print(f"| GB on each of so many devices, bfloat16 | parameters | {' | '.join(map(str, DEVICES))} |")
    print("|---|---|" + "---|" * len(DEVICES))
    for name, shapes in NETWORKS.items():
        params = shapes()
        total = sum(a.size for a in jax.tree.leaves(params))
        each = [numbers(params, n) for n in DEVICES]
        cells = [f"{2e-9 * size:.3g} ({size * n / total:.2f})" for size, n in zip(each, DEVICES, strict=True)]
        print(f"| {name} | {total:,} | {' | '.join(cells)} |", flush=True)


def compile_step(name: str, batch: int) -> None:
    """Prints the memory analysis of one call of IF-I's network, compiled for 8 devices with split parameters."""
    config = stage1(name)
    network, over = unet.unet(config), mesh(COMPILED)
    whole = NamedSharding(over, PartitionSpec())
    placed = lambda a, sharding: jax.ShapeDtypeStruct(a.shape, jnp.bfloat16, sharding=sharding)
    params = jax.tree.map(placed, network.params, meshes.parameter_shardings(over, network.params))
    side = config.sample_size
    shape = lambda *shape, dtype=jnp.bfloat16: jax.ShapeDtypeStruct(shape, dtype, sharding=whole)
    x, t = shape(batch, side, side, 3), shape(batch, dtype=jnp.float32)
    text = shape(batch, TOKENS, config.encoder_hid_dim)

    def call(params: Params, x: Any, t: Any, text: Any) -> Any:
        return network.bind(params)(x, t, Conditioning(text))

    began = time.perf_counter()
    analysis = jax.jit(call).lower(params, x, t, text).compile().memory_analysis()
    assert analysis is not None, "this backend has no memory analysis"
    took = time.perf_counter() - began
    inputs = sum(a.size * a.dtype.itemsize for a in (x, t, text))
    found = analysis.argument_size_in_bytes - inputs
    even = 2 * sum(a.size for a in jax.tree.leaves(params)) / COMPILED
    print(
        f"| IF-I-{name}, batch {batch} | {found / 1e9:.3f} GB | {found / even - 1:+.1%} | "
        f"{analysis.temp_size_in_bytes / 1e9:.2f} GB | {took:.0f} s |", flush=True,
    )  # fmt: skip


def main(names: list[str], batch: int) -> None:
    """Prints the tables."""
    jax.config.update("jax_num_cpu_devices", max(DEVICES))
    table()
    if names:
        print(f"\n| compiled for {COMPILED} devices, bfloat16 | parameters on each | beside an even split | "
              "temporary | compiled in |\n|---|---|---|---|---|")  # fmt: skip
    for name in names:
        compile_step(name, batch)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compile", nargs="*", default=[], choices=list(WIDTHS), help="compile these sizes of IF-I")
    parser.add_argument("--batch", type=int, default=2, help="images in the compiled call: 2 is one guided image")
    args = parser.parse_args()
    main(args.compile, args.batch)
