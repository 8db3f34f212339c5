"""Conversion: the tables are bijections, weights come through, and every mistake is told with nothing left behind."""

import json
import os
import sys
import tracemalloc
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jdiff.checkpoints import convert, files, names
from jdiff.networks import t5, unet

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")
pytest.importorskip("transformers")
sys.path.append(str(Path(__file__).resolve().parents[1] / "scripts"))
import parity_rungs as parity  # noqa: E402  # pyright: ignore[reportMissingImports]

STAGES = {"stage 1": parity.STAGE1, "stage 2": parity.STAGE2}
WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module", params=STAGES)
def net(request):
    return parity.randomise(parity.UNet2DConditionModel(**STAGES[request.param]))


@pytest.fixture(scope="module")
def one():
    return parity.randomise(parity.UNet2DConditionModel(**parity.STAGE1))


def abstract_of(path):
    return unet.unet(unet.read_config(path / "unet")).params


def numpy_of(module):
    return {name: p.detach().float().numpy() for name, p in module.state_dict().items()}


def assert_same(params, module, dtype=np.float32):
    abstract = unet.unet(unet.read_config(dict(module.config))).params
    want = names.translate(numpy_of(module), abstract)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b.astype(dtype), strict=True), params, want)


def test_a_single_file_comes_through(net, tmp_path):
    net.save_pretrained(tmp_path / "src" / "unet")
    (tmp_path / "src" / "scheduler").mkdir()
    (tmp_path / "src" / "scheduler" / "scheduler_config.json").write_text("{}")
    out = convert.convert(tmp_path / "src", tmp_path / "dst")
    assert sorted(p.relative_to(out).as_posix() for p in out.rglob("*.*")) == [
        "scheduler/scheduler_config.json",
        "unet/config.json",
        "unet/model.safetensors",
    ]
    assert_same(files.load(out / "unet", abstract_of(out)), net)
    metadata = files.read_header(out / "unet" / "model.safetensors")[1]
    assert {k: metadata[k] for k in ("format", "dtype", "kind")} == {
        "format": "jdiff",
        "dtype": "float32",
        "kind": "unet",
    }
    assert len(metadata["sha256"]) == 64
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["dst", "src"]


def test_shards_come_through(net, tmp_path):
    net.save_pretrained(tmp_path / "src" / "unet", max_shard_size="200KB")
    assert len(list((tmp_path / "src" / "unet").glob("*.safetensors"))) > 2
    out = convert.convert(tmp_path / "src" / "unet", tmp_path / "dst")
    assert_same(files.load(out / "unet" / "model.safetensors", abstract_of(out)), net)


@pytest.mark.parametrize("size", ["10GB", "200KB"])
def test_the_fp16_variant_is_taken_where_there_is_no_other(one, tmp_path, size):
    half = parity.quietly(one, torch.float16)
    half.save_pretrained(tmp_path / "src" / "unet", variant="fp16", max_shard_size=size)
    out = convert.convert(tmp_path / "src", tmp_path / "half")
    assert_same(files.load(out / "unet", abstract_of(out)), half)
    one.save_pretrained(tmp_path / "src" / "unet")
    out = convert.convert(tmp_path / "src", tmp_path / "full")
    assert_same(files.load(out / "unet", abstract_of(out)), one)


@pytest.mark.parametrize("dtype", convert.STORED)
def test_dtypes(one, tmp_path, dtype):
    one.save_pretrained(tmp_path / "src" / "unet")
    out = convert.convert(tmp_path / "src", tmp_path / "dst", dtype)
    assert_same(files.load(out / "unet", abstract_of(out)), one, np.dtype(dtype))
    as_asked = files.load(out / "unet", abstract_of(out), ml_dtypes.bfloat16)
    assert {x.dtype for x in jax.tree.leaves(as_asked)} == {np.dtype(ml_dtypes.bfloat16)}


def test_t5_alone_and_beside_a_unet(one, tmp_path):
    encoder = parity.encoder("", parity.T5).module.float()
    encoder.save_pretrained(tmp_path / "src" / "text_encoder")
    one.save_pretrained(tmp_path / "src" / "unet")
    abstract = t5.t5(t5.Config(**parity.T5))[1]
    want = names.translate(numpy_of(encoder), abstract, names.T5_RULES, names.T5_DROPPED)
    for src, dst in ((tmp_path / "src" / "text_encoder", tmp_path / "a"), (tmp_path / "src", tmp_path / "b")):
        got = files.load(convert.convert(src, dst) / "text_encoder", abstract)
        jax.tree.map(np.testing.assert_array_equal, got, want)
    assert not (tmp_path / "a" / "unet").exists() and (tmp_path / "b" / "unet").exists()


@pytest.mark.parametrize("settings", [*STAGES.values(), parity.IF_I_M], ids=[*STAGES, "IF-I-M"])
def test_the_table_is_a_bijection(settings):
    with torch.device("meta"):
        net = parity.UNet2DConditionModel(**settings)
    abstract = unet.unet(unet.read_config(dict(net.config))).params
    shapes = {name: tuple(p.shape) for name, p in net.state_dict().items()}
    found, bad = names.match(shapes, abstract)
    assert not bad
    assert sorted(name for name, _ in found.values()) == sorted(shapes)
    assert sorted(found) == sorted(files.flatten(abstract))


def edit(folder, change):
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})


def test_all_mistakes_are_told_at_once_and_nothing_is_left(one, tmp_path):
    one.save_pretrained(tmp_path / "src" / "unet")

    def spoil(tensors):
        tensors["conv_in.weight"] = tensors["conv_in.weight"][:, :2].copy()
        tensors["conv_out.bias"][1] = np.nan
        tensors["stranger.weight"] = np.zeros(3, np.float32)
        tensors["mid_block.resnets.7.norm1.weight"] = np.zeros(3, np.float32)
        tensors["time_embedding.linear_1.bias"] = np.zeros(128, np.int32)
        del tensors["conv_norm_out.bias"]

    edit(tmp_path / "src" / "unet", spoil)
    with pytest.raises(ValueError) as error:
        convert.convert(tmp_path / "src", tmp_path / "dst")
    for told in (
        "conv_in.weight must have a shape that gives conv_in.kernel (3, 3, 3, 32), got (32, 2, 3, 3)",
        "conv_out.bias is not finite",
        "stranger.weight is unknown",
        "mid_block.resnets.7.norm1.scale, which the network does not have",
        "time_embedding.linear_1.bias must have one of the dtypes F64, F32, F16, BF16, got I32",
        "conv_norm_out.bias (32,) is never set",
    ):
        assert told in str(error.value)
    assert [p.name for p in tmp_path.iterdir()] == ["src"]


def test_values_alone_are_told_and_nothing_is_left(one, tmp_path):
    one.save_pretrained(tmp_path / "src" / "unet")

    def spoil(tensors):
        tensors["conv_out.bias"][1] = np.inf
        tensors["conv_in.bias"][0] = 1e6

    edit(tmp_path / "src" / "unet", spoil)
    with pytest.raises(ValueError, match="conv_out.bias is not finite") as error:
        convert.convert(tmp_path / "src", tmp_path / "dst", "float16")
    assert "conv_in.bias has values beyond float16" in str(error.value)
    assert [p.name for p in tmp_path.iterdir()] == ["src"]


@pytest.mark.parametrize("keep", [0, 5, 1000, -8])
def test_a_truncated_file(one, tmp_path, keep):
    one.save_pretrained(tmp_path / "src" / "unet")
    path = tmp_path / "src" / "unet" / WEIGHTS
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match="missing or is not a complete safetensors file"):
        convert.convert(tmp_path / "src", tmp_path / "dst")
    assert [p.name for p in tmp_path.iterdir()] == ["src"]


def test_shards_that_are_missing_or_say_things_twice(one, tmp_path):
    src = tmp_path / "src" / "unet"
    one.save_pretrained(src, max_shard_size="200KB")
    shards = sorted(src.glob("*.safetensors"))
    shards[0].unlink()
    tensors = load_file(shards[1])
    save_file(tensors | {"conv_out.bias": np.zeros(6, np.float32)}, shards[1])
    tensors = load_file(shards[2])
    save_file(tensors | {"conv_out.bias": np.zeros(6, np.float32)}, shards[2])
    with pytest.raises(ValueError) as error:
        convert.convert(src, tmp_path / "dst")
    assert f"names {shards[0].name}, which is not in its folder" in str(error.value)
    assert f"conv_out.bias is in {shards[1].name} and in {shards[2].name}" in str(error.value)
    assert [p.name for p in tmp_path.iterdir()] == ["src"]


def test_an_index_cannot_leave_its_folder(tmp_path):
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "config.json").write_text("{}")
    (tmp_path / "src" / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": {"a": "../b.safetensors"}}))
    with pytest.raises(ValueError, match=r"names \.\./b.safetensors, which is not in its folder"):
        convert.convert(tmp_path / "src", tmp_path / "dst")


def test_a_config_that_is_not_covered_is_told_with_the_rest(one, tmp_path):
    src = tmp_path / "src" / "unet"
    one.save_pretrained(src)
    (src / "config.json").write_text(json.dumps(dict(one.config) | {"act_fn": "silu"}))
    (src / WEIGHTS).write_bytes(b"no tensors at all")
    with pytest.raises(ValueError, match="act_fn must be ") as error:
        convert.convert(src, tmp_path / "dst")
    assert "missing or is not a complete safetensors file" in str(error.value)


def test_what_is_refused_at_the_door(one, tmp_path):
    with pytest.raises(ValueError, match="src must be a folder with config.json or unet/ in it, got .*nowhere"):
        convert.convert(tmp_path / "nowhere", tmp_path / "dst")
    with pytest.raises(ValueError, match="dst must be a new folder, got .*, which exists"):
        convert.convert(tmp_path, tmp_path)
    with pytest.raises(ValueError, match="dtype must be float32, .* or int8 for a T5 encoder, got 'int4'"):
        convert.convert(tmp_path, tmp_path / "dst", "int4")


def test_a_failure_while_writing_leaves_nothing(one, tmp_path, monkeypatch):
    one.save_pretrained(tmp_path / "src" / "unet")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        convert.convert(tmp_path / "src", tmp_path / "dst")
    assert [p.name for p in tmp_path.iterdir()] == ["src"]
    with pytest.raises(OSError, match="No space"):
        files.save(tmp_path / "a.safetensors", {"a": np.ones(3)})
    assert [p.name for p in tmp_path.iterdir()] == ["src"]


def test_memory_is_of_the_order_of_the_largest_tensor(tmp_path):
    rng = np.random.default_rng(0)
    abstract = {i: {"kernel": jax.ShapeDtypeStruct((500, 300), np.float32)} for i in range(40)}
    rules = ((r"l\.(\d+)\.weight", r"\1.kernel", names.LINEAR),)
    (tmp_path / "src").mkdir()
    tensors = {f"l.{i}.weight": rng.normal(size=(300, 500)).astype(np.float32) for i in range(40)}
    save_file(tensors, tmp_path / "src" / WEIGHTS)
    (tmp_path / "src" / "config.json").write_text("{}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(names.KINDS, "unet", names.KINDS["unet"]._replace(rules=rules, shapes=lambda _: abstract))
        tracemalloc.start()
        convert.convert(tmp_path / "src", tmp_path / "dst")
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    largest = 500 * 300 * 4
    assert peak < 3 * largest + (1 << 20)  # and the 1 MiB blocks of the hash; all tensors would be 40
    got = files.load(tmp_path / "dst" / "unet", abstract)
    np.testing.assert_array_equal(got[7]["kernel"], tensors["l.7.weight"].T)


def test_save_and_load_are_inverse(tmp_path):
    params = {"a": {0: {"b": np.float32([[1, 2]])}, 1: {"b": np.array(3, ml_dtypes.bfloat16)}}, "c": np.float16([1])}
    files.save(tmp_path / "x.safetensors", params, {"kind": "test"})
    got = files.load(tmp_path / "x.safetensors", params)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b, strict=True), got, params)
    metadata = files.read_header(tmp_path / "x.safetensors")[1]
    assert len(metadata.pop(files.DIGEST)) == 64 and metadata == {"format": "jdiff", **files.VERSION, "kind": "test"}
    assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]
    with pytest.raises(ValueError, match="c is int64"):
        files.save(tmp_path / "y.safetensors", {"c": np.arange(3)})


def test_load_names_the_file_and_what_is_wrong(tmp_path):
    path = tmp_path / "x.safetensors"
    files.save(path, {"a": np.ones((2, 3), np.float32), "b": np.ones(2, np.float32)})
    shape = jax.ShapeDtypeStruct((3, 2), np.float32)
    with pytest.raises(ValueError, match="x.safetensors does not fit") as error:
        files.load(path, {"a": shape, "c": shape})
    for told in ("a must have shape (3, 2), got (2, 3)", "b (2,) is not of this network", "c (3, 2) is missing"):
        assert told in str(error.value)
    save_file({"a": np.ones(2, np.float32)}, tmp_path / "y.safetensors")
    with pytest.raises(ValueError, match="y.safetensors must have the format 'jdiff', got None"):
        files.load(tmp_path / "y.safetensors", {"a": shape})
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="x.safetensors is missing or is not a complete safetensors file"):
        files.load(path, {"a": shape})
    with pytest.raises(ValueError, match="z.safetensors is missing or is not a complete safetensors file"):
        files.load(tmp_path / "z.safetensors", {"a": shape})


def test_translate_and_unflatten_tell_everything():
    abstract = {"conv_in": {"bias": jax.ShapeDtypeStruct((2,), np.float32)}}
    rules = names.RULES + ((r"conv_.*", "conv_in.bias", names.SAME),)
    with pytest.raises(ValueError, match="conv_in.bias fits 2 rules"):
        names.translate({"conv_in.bias": np.ones(2)}, abstract, rules)
    with pytest.raises(ValueError, match="conv_in.bias is set twice, by x and by y"):
        names.translate({"x": np.ones(2), "y": np.ones(2)}, abstract, ((r"x|y", "conv_in.bias", names.SAME),))
    with pytest.raises(ValueError, match="conv_in.bias is not finite"):
        names.translate({"conv_in.bias": np.full(2, np.nan)}, abstract)
    with pytest.raises(ValueError, match="a is unknown"):
        files.unflatten({"a": 1}, abstract)
