"""Encoders in folders: streamed as whole, whatever they are stored in; what they are called, and what they refuse."""

import json
import shutil
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_cli import main
from test_text import pieces  # noqa: F401, a fixture

from jdiff import images, model
from jdiff.checkpoints import convert, files, int8
from jdiff.checkpoints import folder as folder_writer
from jdiff.networks import t5
from jdiff.text import embeddings, encoder
from jdiff.text import tokens as text

pytest.importorskip("torch")
pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")
sys.path.append(str(Path(__file__).resolve().parents[1] / "scripts"))
import parity_rungs as parity  # noqa: E402  # pyright: ignore[reportMissingImports]

SIZES = dict(parity.T5, vocab_size=256)
PROMPTS = ["a red three", "A green seven on white ", ""]
STORED = ("float32", "float16", "bfloat16", "int8")


@pytest.fixture(scope="module")
def source(tmp_path_factory, pieces):  # noqa: F811
    """A pipeline's folder with a small T5 in shards and its tokenizer."""
    folder = tmp_path_factory.mktemp("source")
    module = parity.encoder("", SIZES).module.float()
    module.save_pretrained(folder / "text_encoder", max_shard_size="20KB")
    shutil.copytree(pieces, folder / "tokenizer")
    (folder / "tokenizer" / "tokenizer_config.json").write_text(json.dumps({"extra_ids": 100}))
    return folder


@pytest.fixture(scope="module")
def made(source, tmp_path_factory):
    """{dtype: folder} as converted."""
    folder = tmp_path_factory.mktemp("made")
    return {dtype: convert.convert(source / "text_encoder", folder / dtype, dtype) for dtype in STORED}


def test_commands_take_an_encoder_that_transformers_wrote(pieces, tmp_path, monkeypatch):  # noqa: F811
    """Without a conversion: embed writes transformers' own states, and generate draws from them, again with --like."""
    monkeypatch.setenv("JDIFF_CACHE", "")
    monkeypatch.chdir(tmp_path)
    module = parity.encoder("", SIZES | {"d_model": 128}).module.float().eval()
    module.save_pretrained("t5")
    tokenizer = transformers.T5Tokenizer.from_pretrained(pieces)
    shutil.copytree(pieces, "t5", dirs_exist_ok=True)  # spiece.model, as the repositories of T5 have it
    assert main("embed", "a red three", "--encoder", "t5", "-o", "p.safetensors") == 0
    ids = tokenizer("a red three", padding="max_length", max_length=77, return_tensors="pt")
    with parity.torch.no_grad():
        expected = module(ids.input_ids, attention_mask=ids.attention_mask).last_hidden_state[0].numpy()
    found = embeddings.read("p.safetensors")["a red three"]
    tokens = int(ids.attention_mask.sum())
    np.testing.assert_allclose(found[:tokens], expected[:tokens], atol=1e-4)

    flags = ["-n", 1, "--steps", 2, "--quiet"]
    assert main("generate", "a red three", "--encoder", "t5", *flags) == 0
    assert main("generate", "a red three", *flags, "-o", "own.png") == 0
    told, own = (images.read_settings(name) for name in ("out.png", "own.png"))
    assert told["encoder"] == "t5" and told["hash"] != own["hash"]
    assert (images.load("out.png") != images.load("own.png")).any()
    monkeypatch.chdir(tmp_path.parent)
    assert main("generate", "--like", tmp_path / "out.png", "--quiet") == 0
    np.testing.assert_array_equal(images.load(tmp_path / "out-again.png"), images.load(tmp_path / "out.png"))


def stored(name, weight, dtype):
    """What is left of a float64 `weight` [o i] of transformers once it was stored in `dtype`."""
    if dtype != "int8":
        return weight.float().to(getattr(parity.torch, dtype)).double()
    if name == "shared.weight":
        return weight.half().double()
    if weight.ndim == 1 or "relative" in name:
        return weight.float().double()
    weight = weight.float()  # as it lies in the source, or ties would fall otherwise
    scale = weight.abs().amax(dim=1, keepdim=True) / 127
    return ((weight / scale).round() * scale).double()


def states(module, source):
    tokens, mask = text.piece_tokens(source / "tokenizer")([p.lower().strip() for p in PROMPTS])
    ids, keep = (parity.torch.as_tensor(a, dtype=parity.torch.int64) for a in (tokens, mask))
    with parity.torch.no_grad():
        return module(ids, attention_mask=keep).last_hidden_state.double().numpy()


def test_the_tokenizer_comes_along(made):
    names = sorted(p.name for p in (made["int8"] / "text_encoder").iterdir())
    assert names == ["config.json", "model.safetensors", "spiece.model", "tokenizer_config.json"]


@pytest.mark.parametrize("dtype", STORED)
def test_states_are_those_of_transformers_with_the_weights_that_are_stored(made, source, dtype):
    module = parity.encoder("", SIZES).module
    with parity.torch.no_grad():
        for name, weight in module.named_parameters():
            weight.copy_(stored(name, weight, dtype))
    own = states(parity.quietly(module, parity.torch.float32), source)
    with parity.lifted():
        truth = states(module, source)
    found = encoder.find(made[dtype], stream=False)
    got = found.encode(PROMPTS)
    assert got.dtype == np.float32 and got.shape == (3, found.length, found.width) == (3, 77, 24)
    assert parity.relative(got, truth) <= 4 * parity.relative(own, truth) < 1e-4


def halved(module, folder, **settings):
    """transformers' own copy of a module in float16, `wo` aside, and its states for the prompts."""
    module.float().save_pretrained(folder)
    half = parity.T5EncoderModel.from_pretrained(folder, dtype=parity.torch.float16)
    kept = {name for name, p in half.named_parameters() if p.dtype == parity.torch.float32}
    assert kept and all(name.endswith("DenseReluDense.wo.weight") for name in kept)
    return half


@pytest.mark.parametrize("stream", [False, True])
def test_in_float16_wo_stays_in_float32_as_transformers_has_it(source, tmp_path, stream):
    module = parity.encoder("", SIZES).module.float()
    half = halved(module, tmp_path / "text_encoder")
    shutil.copytree(source / "tokenizer", tmp_path / "tokenizer")
    with parity.lifted():
        truth = states(parity.quietly(module, parity.torch.float64), source)
    theirs = parity.relative(states(half, source), truth)
    got = encoder.find(tmp_path, dtype="float16", stream=stream).encode(PROMPTS)
    assert parity.relative(got, truth) <= 4 * theirs < 0.05


@pytest.mark.parametrize("stream", [False, True])
def test_in_float16_what_wo_makes_may_leave_its_range(source, tmp_path, stream):
    """Feed-forwards whose results no float16 holds: with `wo` in float16 the states would be infinite or NaN."""
    module = parity.encoder("", SIZES).module.float()
    with parity.torch.no_grad():
        for name, weight in module.named_parameters():
            weight.mul_(3000 if ".wo." in name else 6 if ".wi_" in name else 1)
    half = halved(module, tmp_path / "text_encoder")
    shutil.copytree(source / "tokenizer", tmp_path / "tokenizer")
    inside = []
    half.encoder.block[0].register_forward_hook(lambda *args: inside.append(args[2][0].abs().max().item()))
    theirs = states(half, source)
    assert max(inside) > 65504 and np.isfinite(theirs).all()
    with parity.lifted():
        truth = states(parity.quietly(module, parity.torch.float64), source)
    found = encoder.find(tmp_path, dtype="float16", stream=stream)
    got = found.encode(PROMPTS)
    assert parity.relative(got, truth) <= 4 * parity.relative(theirs, truth) < 0.05
    if stream:  # the residual stream is in one dtype, so one program runs all layers
        assert encoder._programs(t5.Config(**SIZES), "float16")[1]._cache_size() == 1


LAYOUTS = {
    "one file": lambda module, folder: module.save_pretrained(folder / "text_encoder"),
    "shards": lambda module, folder: module.save_pretrained(folder / "text_encoder", max_shard_size="20KB"),
    "fp16": lambda module, folder: module.half().save_pretrained(folder / "text_encoder", variant="fp16"),
    "fp16 shards": lambda module, folder: module.half().save_pretrained(
        folder / "text_encoder", variant="fp16", max_shard_size="20KB"
    ),
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_folder_of_transformers_is_read_as_the_converted_one(source, tmp_path, layout, stream):
    LAYOUTS[layout](parity.encoder("", SIZES).module.float(), tmp_path)
    shutil.copytree(source / "tokenizer", tmp_path / "tokenizer")
    dtype = "float16" if "fp16" in layout else "float32"
    converted = encoder.find(convert.convert(tmp_path / "text_encoder", tmp_path / "ours", dtype), stream=stream)
    for folder in (tmp_path, tmp_path / "text_encoder"):
        found = encoder.find(folder, stream=stream)
        np.testing.assert_array_equal(found.encode(PROMPTS), converted.encode(PROMPTS))
        assert found.hash == converted.hash
    folder_writer.copy_encoder(tmp_path / "text_encoder", tmp_path / "copy" / "text_encoder")
    copied = encoder.find(tmp_path / "copy", stream=stream)
    np.testing.assert_array_equal(copied.encode(PROMPTS), converted.encode(PROMPTS))
    assert copied.hash == converted.hash


def test_a_models_folder_of_diffusers_reads_prompts_by_its_own_encoder(source, tmp_path):
    folder = tmp_path / "theirs"
    wide = dict(parity.STAGE1, encoder_hid_dim=24)
    parity.randomise(parity.UNet2DConditionModel(**wide)).save_pretrained(folder / "unet")
    for part in ("text_encoder", "tokenizer"):
        shutil.copytree(source / part, folder / part)
    loaded = model.load(folder)
    np.testing.assert_array_equal(loaded.embed(PROMPTS), encoder.find(source).encode(PROMPTS))
    loaded.save(tmp_path / "ours")
    again = model.load(tmp_path / "ours")
    np.testing.assert_array_equal(again.embed(PROMPTS), loaded.embed(PROMPTS))
    assert again.hash == loaded.hash
    assert len(files.check(tmp_path / "ours")[0]) == 2


@pytest.mark.parametrize(("dtype", "computed"), [("float32", "float32"), ("bfloat16", "float16"), ("int8", "bfloat16")])
def test_streamed_is_whole(made, dtype, computed):
    whole, streamed = (encoder.find(made[dtype], stream=s, dtype=computed) for s in (False, True))
    unit = float(jnp.finfo(computed).eps)
    assert parity.relative(streamed.encode(PROMPTS), whole.encode(PROMPTS)) < 20 * unit  # fused otherwise
    assert streamed.hash == whole.hash


@pytest.mark.parametrize("stream", [False, True])
def test_many_prompts_are_encoded_as_one_is(made, stream):
    found = encoder.find(made["float32"], stream=stream)
    prompts = [f"{'red ' * k}three" for k in range(encoder.ROWS + 3)]
    states = found.encode(prompts)
    for k in (0, encoder.ROWS - 1, encoder.ROWS, len(prompts) - 1):
        assert parity.relative(states[k], found.encode(prompts[k : k + 1])[0].astype(np.float64)) < 1e-5
    assert found.encode([]).shape == (0, 77, 24)


def test_one_program_for_all_layers_and_prompts(made):
    encoder._programs.cache_clear()
    found = encoder.find(made["int8"], stream=True)
    found.encode(PROMPTS)
    found.encode(["a cat", "</s>", "two"])
    _, layer, norm = encoder._programs(t5.Config(**SIZES), "float32")
    assert layer._cache_size() == norm._cache_size() == 1


@pytest.mark.parametrize("stream", [False, True])
def test_weights_are_freed_and_streamed_ones_layer_by_layer(made, monkeypatch, stream):
    held = lambda: sum(array.nbytes for array in jax.live_arrays())
    found, most, read = encoder.find(made["float32"], stream=stream), [], encoder._on_device
    before = held()
    monkeypatch.setattr(encoder, "_on_device", lambda entry: most.append(held() - before) or read(entry))
    found.encode(PROMPTS)
    assert held() == before
    block = t5.t5(t5.Config(**SIZES))[1]["block"][0]
    layer, x, table = 4 * sum(a.size for a in jax.tree.leaves(block)), 4 * len(PROMPTS) * 77 * 24, 4 * 32 * 4
    assert most and (max(most) < layer + x + table) == stream  # one still to be read is not there


def test_the_mini_models_bytes(monkeypatch):
    found = encoder.find(model.shipped("mini"))
    want = found.encode(["A red three"])
    assert (found.length, found.width, found.clean) == (40, 128, "lower") and want.shape == (1, 40, 128)
    np.testing.assert_array_equal(encoder.find(model.shipped("mini") / "text_encoder").encode(["a red three "]), want)
    np.testing.assert_allclose(
        encoder.find(model.shipped("mini"), stream=True).encode(["a red three"]), want, atol=1e-5
    )
    assert not np.allclose(encoder.find(model.shipped("mini"), clean="none").encode(["A red three"]), want, atol=0.1)


def test_the_hash_tells_apart_what_encodes_otherwise(made, tmp_path):
    hashes = {encoder.find(folder).hash for folder in made.values()}
    assert len(hashes) == len(made) and all(len(h) == 64 for h in hashes)
    hashes.add(encoder.find(made["float32"], dtype="bfloat16").hash)
    copy = shutil.copytree(made["float32"], tmp_path / "copy") / "text_encoder"
    assert encoder.find(copy).hash == encoder.find(made["float32"]).hash  # wherever it lies
    params = files.load(copy, t5.t5(t5.Config(**SIZES))[1])
    params["final_layer_norm"]["scale"] *= 2
    for change in (
        lambda: files.save(copy / "model.safetensors", params),
        lambda: (copy / "tokenizer_config.json").write_text('{"extra_ids": 99}'),
        lambda: (copy / text.PIECES).write_bytes((copy / text.PIECES).read_bytes() + b"\x1a\x00"),
    ):
        change()
        hashes.add(encoder.find(copy).hash)
    assert len(hashes) == len(made) + 4


def test_large_encoders_are_streamed(made, monkeypatch):
    used = []
    for name in ("_whole", "_streamed"):
        monkeypatch.setattr(encoder, name, lambda *_, name=name: used.append(name))
    parameters = sum(a.size for a in jax.tree.leaves(t5.t5(t5.Config(**SIZES))[1]))
    for size in (4 * parameters, 4 * parameters - 1):
        monkeypatch.setattr(encoder, "STREAMED", size)
        encoder.find(made["int8"]).encode(PROMPTS)
    assert used == ["_whole", "_streamed"]


@pytest.mark.parametrize(
    ("lost", "message"),
    [
        ("config.json", "must be a folder that `jdiff convert` or transformers wrote .* has no config.json$"),
        ("model.safetensors", "must be a folder that `jdiff convert` or .* has no model.safetensors$"),
        ("spiece.model", "has no spiece.model; copy the tokenizer's spiece.model beside the weights"),
    ],
)
def test_what_is_missing_is_named(made, tmp_path, lost, message):
    copy = shutil.copytree(made["float32"], tmp_path / "copy")
    (copy / "text_encoder" / lost).unlink()
    with pytest.raises(ValueError, match=message):
        encoder.find(copy)


def test_what_is_refused(made, source, tmp_path):
    with pytest.raises(ValueError, match="dtype must be float32, bfloat16, float16, got 'int8'"):
        encoder.find(made["int8"], dtype="int8")
    with pytest.raises(ValueError, match="clean must be none, lower, caption, got 'much'"):
        encoder.find(made["int8"], clean="much")
    with pytest.raises(ValueError, match="the encoder must be .*, got 'nowhere', which does not exist"):
        encoder.find("nowhere")
    with pytest.raises(ValueError, match="got 'Deep/Small'; add /text_encoder"):
        encoder.find("Deep/Small")
    for prompt in ("\ud800", 3):
        with pytest.raises(ValueError, match="a prompt must be text in UTF-8, got "):
            encoder.find(made["int8"]).encode([prompt])
    copy = shutil.copytree(made["float32"], tmp_path / "copy") / "text_encoder"
    (copy / "tokenizer_config.json").write_text('{"extra_ids": 1000}')
    with pytest.raises(ValueError, match="tokenizer goes up to token [0-9]+, but its weights end at 255"):
        encoder.find(copy).encode(["<extra_id_0>"])
    for words, message in (("[1]", "must hold a JSON object"), ('{"extra_ids": "a"}', "extra_ids must be .* got 'a'")):
        (copy / "tokenizer_config.json").write_text(words)
        with pytest.raises(ValueError, match=f"tokenizer_config.json.*{message}"):
            encoder.find(copy).encode(["a"])
    (copy / "tokenizer_config.json").unlink()
    (copy / "config.json").write_text(json.dumps(dict(SIZES, feed_forward_proj="gated-gelu", num_layers=2)))
    with pytest.raises(ValueError, match="does not fit the network: block.2.*is not of this network"):
        encoder.find(copy)


def test_int8_is_within_half_a_step(tmp_path):
    kernel = np.random.default_rng(0).normal(size=(50, 7)).astype(np.float32) * np.float32(10.0) ** np.arange(-3, 4)
    kernel[:, 3], kernel[:, 4] = 0, 1e-44  # nothing, and what has no reciprocal
    whole, scale = int8.quantise(kernel)
    assert whole.dtype == np.int8 and scale.dtype == np.float32 and scale.shape == (7,) and (scale > 0).all()
    assert np.abs(whole).max() == 127 and whole.min() > -128  # symmetric
    assert (np.abs(whole * scale - kernel) <= scale / 2 * (1 + 1e-6)).all()
    tree = {"q": {"kernel": whole, "scale": scale}, "norm": {"scale": np.ones(3, np.float32)}}
    like = {"q": {"kernel": jax.ShapeDtypeStruct(kernel.shape, jnp.float32)}, "norm": {"scale": np.float32([1])}}
    restored = int8.restore(tree, like)
    np.testing.assert_array_equal(restored["q"]["kernel"], whole * scale)
    assert list(restored["q"]) == ["kernel"] and list(restored["norm"]) == ["scale"]


def test_xxl_has_the_published_number_of_parameters_and_is_under_5_gb_in_int8():
    flat = files.flatten(t5.t5(t5.Config())[1])
    assert sum(leaf.size for leaf in flat.values()) == 4_762_310_656
    sizes = {dtype: sum(d.itemsize * np.prod(s, dtype=int) for path, leaf in flat.items()
                        for d, s in convert.forms(path, leaf.shape, dtype).values()) for dtype in STORED}  # fmt: skip
    assert sizes["float32"] == 4 * 4_762_310_656 and sizes["bfloat16"] == 2 * 4_762_310_656
    kernels, outputs, small = (
        24 * (4 * 4096 * 4096 + 3 * 4096 * 10240),
        24 * (5 * 4096 + 2 * 10240),
        49 * 4096 + 32 * 64,
    )
    assert sizes["int8"] == kernels + 2 * 32128 * 4096 + 4 * (outputs + small) == 4_898_447_360


def test_int8_is_for_t5(tmp_path, source):
    unet = parity.UNet2DConditionModel(**parity.STAGE1)
    unet.save_pretrained(tmp_path / "src" / "unet")
    with pytest.raises(ValueError, match="dtype must be float32, bfloat16, float16 for the UNet in .*, got 'int8'$"):
        convert.convert(tmp_path / "src", tmp_path / "dst", "int8")
    shutil.copytree(source / "text_encoder", tmp_path / "src" / "text_encoder")
    with pytest.raises(ValueError, match="got 'int8'; convert .*text_encoder alone, and the rest in another dtype"):
        convert.convert(tmp_path / "src", tmp_path / "dst", "int8")
    assert [p.name for p in tmp_path.iterdir()] == ["src"]
