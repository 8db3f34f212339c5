"""Loading: the mini model as it ships, and what is said where something is wrong."""

import json
import os
import re
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from einops import rearrange
from safetensors.numpy import save_file

import jdiff
from jdiff import model, sample
from jdiff.checkpoints import digests, files, hub
from jdiff.networks import t5
from jdiff.text import tokens as text

PROMPTS = ["a red three", "A Green Seven on white "]


@pytest.fixture(scope="module")
def mini():
    return jdiff.load("mini")


@pytest.fixture
def folder(tmp_path):
    return shutil.copytree(model.shipped("mini"), tmp_path / "copy")


def test_embeddings_are_the_encoders_states_of_the_cleaned_bytes(mini):
    states = mini.embed(PROMPTS)
    assert states.shape == (2, 40, 128) and states.dtype == jnp.float32
    tokens, mask = text.byte_tokens([p.lower().strip() for p in PROMPTS], 40)
    folder = model.shipped("mini") / "text_encoder"
    apply, abstract = t5.t5(t5.read_config(folder))
    params = jax.tree.map(jnp.asarray, files.load(folder, abstract))
    for i in range(2):
        alone = jax.jit(apply)(params, tokens[i : i + 1], mask[i : i + 1])[0]
        np.testing.assert_allclose(alone, states[i], atol=1e-6)
    assert np.abs(states[0] - states[1]).max() > 0.1


def test_the_parts_of_a_model(mini):
    assert mini.name == "mini" and len(mini.hash) == 64
    assert mini.schedule.dtype == np.float64 and mini.schedule.shape == (1000,)
    assert mini.config.sample_size == 32 and mini.defaults.steps == 20
    x = jnp.zeros((2, 32, 32, 3))
    prediction = mini.network(x, jnp.full(2, 500.0), jdiff.Conditioning(mini.embed(PROMPTS)))
    assert prediction.estimate.shape == prediction.variance.shape == x.shape


def test_shipped_weights_are_small():
    files = [p for p in model.shipped("mini").rglob("*") if p.is_file()]
    assert sum(p.stat().st_size for p in files) < 15e6


@pytest.mark.parametrize(("dtype", "most"), [("bfloat16", 0.1), ("float16", 0.02)])
def test_half_precision_is_close(mini, dtype, most):
    half = jdiff.load("mini", dtype=dtype)
    assert {a.dtype for a in jax.tree.leaves(half.network)} == {jnp.dtype(dtype)}
    x = jax.random.normal(jax.random.key(0), (2, 32, 32, 3))
    a, b = (m.network(x, jnp.full(2, 500.0), jdiff.Conditioning(mini.embed(PROMPTS))).estimate for m in (mini, half))
    assert b.dtype == jnp.float32
    assert np.linalg.norm(a - b) < most * np.linalg.norm(a)


def test_two_trainings_have_two_hashes_whoever_writes_them(folder, mini):
    path = folder / "unet" / "model.safetensors"
    _, metadata = files.read_header(path)
    assert jdiff.load(folder).hash == mini.hash
    doubled = jax.tree.map(lambda a: 2 * np.asarray(a), mini.network.params)
    by_us = lambda params: files.save(path, params, metadata)
    by_others = lambda params: save_file({k: np.array(x) for k, x in files.flatten(params).items()}, path, metadata)
    for write in (by_us, by_others):  # both with the metadata of the first
        write(doubled)
        found = jdiff.load(folder).hash
        assert found != mini.hash
        assert found == mini._replace(network=mini.network.bind(doubled)).hash
    by_others(mini.network.params)
    assert jdiff.load(folder).hash == mini.hash


CHANGES = {
    "unet/config.json": ('"norm_eps": 1e-05', '"norm_eps": 1e-06'),
    "scheduler/scheduler_config.json": ('"sample_max_value": 1.0', '"sample_max_value": 1.5'),
    "text_encoder/config.json": ('"max_length": 40', '"max_length": 39'),
}


@pytest.mark.parametrize("name", CHANGES)
def test_the_hash_names_the_settings_that_decide_pictures(folder, mini, name):
    path = folder / name
    before, after = CHANGES[name]
    assert before in path.read_text()
    path.write_text(path.read_text().replace("{", "{ "))
    assert jdiff.load(folder).hash == mini.hash
    path.write_text(path.read_text().replace(before, after))
    assert jdiff.load(folder).hash != mini.hash


def test_the_hash_does_not_depend_on_the_layout_of_files(tmp_path, mini):
    own = mini.network.params
    transposed = {}
    for path, x in files.flatten(own).items():
        (name, layout), *_ = [
            (path.removesuffix(end) + their, layout)
            for end, their, layout in (
                (".conv1.kernel", ".conv1.weight", "h w i o -> o i h w"),
                (".kernel", ".weight", "h w i o -> o i h w" if x.ndim == 4 else "i o -> o i"),
                (".scale", ".weight", "... -> ..."),
                ("", "", "... -> ..."),
            )
            if path.endswith(end)
        ]
        name = re.sub(r"(to_out)\.", r"\1.0.", name)
        transposed[name] = np.ascontiguousarray(rearrange(np.asarray(x), layout))
    theirs = shutil.copytree(model.shipped("mini"), tmp_path / "theirs")
    (theirs / "unet" / "model.safetensors").unlink()
    save_file(transposed, theirs / "unet" / "diffusion_pytorch_model.safetensors")
    assert jdiff.load(theirs).hash == mini.hash


def test_large_files_are_hashed_once(folder, tmp_path, monkeypatch):
    hashed = []
    digest = digests.of_arrays
    monkeypatch.setattr(digests, "of_arrays", lambda arrays: hashed.append(len(arrays)) or digest(arrays))
    jdiff.load(folder).save(folder)
    monkeypatch.setattr(digests, "SMALL", 10)
    monkeypatch.setattr(files, "CHECKED", 10)  # larger files are not checked when they are read
    loaded = jdiff.load(folder, cache=tmp_path / "cache")
    assert hashed == []  # nobody asked
    first = loaded.hash
    assert len(hashed) == 2  # the UNet and the text encoder
    assert jdiff.load(folder).hash == first and len(hashed) == 2  # remembered in this process
    monkeypatch.setattr(digests, "_remembered", {})  # as in another one
    assert jdiff.load(folder, cache=tmp_path / "cache").hash == first and len(hashed) == 2
    for kept in (tmp_path / "cache" / "digests").iterdir():
        kept.write_text("damaged")
    monkeypatch.setattr(digests, "_remembered", {})
    assert jdiff.load(folder, cache=tmp_path / "cache").hash == first and len(hashed) == 4
    path = folder / "unet" / "model.safetensors"
    data, before = path.read_bytes(), path.stat()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # the same size and time
    assert jdiff.load(folder, cache=tmp_path / "cache").hash != first
    with pytest.raises(ValueError, match="unet/model.safetensors is damaged"):
        files.check(folder)
    monkeypatch.undo()
    with pytest.raises(ValueError, match="unet/model.safetensors is damaged"):
        jdiff.load(folder)


def test_what_is_saved_is_loaded_the_same(mini, tmp_path):
    mini.save(tmp_path / "again")
    again = jdiff.load(tmp_path / "again")
    jax.tree.map(np.testing.assert_array_equal, mini.network.params, again.network.params)
    assert again.hash == mini.hash and (again.config, again.defaults) == (mini.config, mini.defaults)
    np.testing.assert_array_equal(again.embed(PROMPTS), mini.embed(PROMPTS))
    assert [path.name for path in files.check(tmp_path / "again")[0]] == ["model.safetensors"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again"]


def test_a_model_is_saved_over_itself_and_what_else_is_there_stays(folder):
    loaded = jdiff.load(folder)
    doubled = loaded._replace(network=loaded.network.bind(jax.tree.map(lambda a: 2 * a, loaded.network.params)))
    before = {path.name for path in folder.iterdir()}
    doubled.save(folder)
    assert jdiff.load(folder).hash == doubled.hash != loaded.hash
    assert {path.name for path in folder.iterdir()} == before
    np.testing.assert_array_equal(jdiff.load(folder).embed(PROMPTS), loaded.embed(PROMPTS))
    doubled._replace(encoder=None).save(folder)
    assert not (folder / "text_encoder").exists()  # the old encoder does not stay beside a new network


def test_a_save_that_fails_leaves_what_was_there(folder, tmp_path, monkeypatch):
    loaded = jdiff.load(folder)
    tree = lambda: {path.relative_to(tmp_path): path.stat().st_ino for path in tmp_path.rglob("*")}
    before, left, rename = tree(), [0], os.rename

    def fails(src, dst):
        left[0] -= 1
        if left[0] == 0:
            raise OSError(28, "No space left on device")
        rename(src, dst)

    monkeypatch.setattr(os, "rename", fails)
    for steps in range(1, 9):  # four parts, each moved out and in
        left[0] = steps
        with pytest.raises(OSError, match="No space"):
            loaded.save(folder)
        assert tree() == before
    with pytest.raises(ValueError, match="x0_rule must be step.untouched"):
        loaded._replace(x0_rule=jnp.tanh).save(folder)
    with pytest.raises(ValueError, match="the parameters do not belong to this network"):
        loaded._replace(network=loaded.network.bind({"a": jnp.ones(2)})).save(folder)
    (tmp_path / "other" / "unet").mkdir(parents=True)
    for other in (tmp_path / "other", folder / "defaults.json"):
        with pytest.raises(ValueError, match="folder must be "):
            loaded.save(other)
    assert tree().keys() == {*before, Path("other"), Path("other/unet")}


def test_prompts_are_encoded_once(folder, monkeypatch):
    loaded = jdiff.load(folder)
    first = loaded.embed(PROMPTS)
    shutil.rmtree(folder / "text_encoder")  # the encoder is not read again
    np.testing.assert_array_equal(loaded.embed(PROMPTS[::-1]), first[::-1])


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("mimi", "mini"),
        ("weights/mimi", "weights/mini"),
        ("./weigths/mimi", "weights/mini"),
        ("min-upscaler", "mini-upscaler"),
        ("weights/minis/", "weights/mini"),
        ("~/nowhere/mimi", "mini"),
    ],
)
def test_a_typo_is_no_name_on_the_hub(name, near, tmp_path, monkeypatch):
    (tmp_path / "weights" / "mini").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hub, "find", lambda *args: pytest.fail("the hub was asked"))
    with pytest.raises(ValueError, match=f"got '{name}', which does not exist; did you mean '{near}'"):
        jdiff.load(name)


def test_a_name_on_the_hub_is_asked_for_and_its_error_names_what_is_near(tmp_path, monkeypatch):
    def refuses(name, half):
        raise ValueError(f"{name} cannot be downloaded")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hub, "find", refuses)
    with pytest.raises(ValueError, match="weights/mimi cannot be downloaded; there is no folder .* you mean 'mini'?"):
        jdiff.load("weights/mimi")
    with pytest.raises(ValueError, match="DeepFloyd/IF-I-L cannot be downloaded$"):
        jdiff.load("DeepFloyd/IF-I-L")


def test_what_is_no_model_is_said_in_one_message(folder, tmp_path):
    with pytest.raises(
        ValueError, match="model must be letters, mini, mini-upscaler, .* got 'nothing', which does not exist"
    ):
        jdiff.load("nothing")
    with pytest.raises(ValueError, match="got .*, which holds no unet/model.safetensors"):
        jdiff.load(tmp_path)
    with pytest.raises(ValueError, match="dtype must be float32, bfloat16, float16, got 'int8'"):
        jdiff.load("mini", dtype="int8")
    with pytest.raises(ValueError, match="dtype float64 needs 64 bits in JAX"):
        jdiff.load("mini", dtype="float64")
    theirs = tmp_path / "theirs" / "unet"
    theirs.mkdir(parents=True)
    (theirs / "diffusion_pytorch_model.safetensors").touch()
    with pytest.raises(ValueError, match="config.json"):
        jdiff.load(theirs.parent)
    (folder / "defaults.json").write_text("[1]")
    with pytest.raises(ValueError, match="defaults.json must hold a JSON object, got a list"):
        jdiff.load(folder)
    for defaults, message in (
        ({"scale": 7}, "defaults.json must hold only sampler, steps, guidance, .* got 'scale'"),
        ({"steps": 2.5}, "defaults.json: steps must be a whole number of at least 1, got 2.5"),
        ({"guidance": "7"}, "defaults.json: guidance must be a finite number, got '7'"),
        ({"sampler": 3}, "defaults.json: sampler must be a name, got 3"),
    ):
        (folder / "defaults.json").write_text(json.dumps(defaults))
        with pytest.raises(ValueError, match=message):
            jdiff.load(folder)


def test_without_an_encoder_prompts_are_refused_and_embeddings_work(folder):
    shutil.rmtree(folder / "text_encoder")
    bare = jdiff.load(folder)
    with pytest.raises(ValueError, match="no text encoder that reads prompts, got"):
        sample.generate(bare, PROMPTS, jax.random.key(0))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prompts": []}, r"prompts must be a list of one prompt or more, .* got \[\]"),
        ({"prompts": "a red three"}, "prompts must be a list of one prompt or more, .* got 'a red three'"),
        ({"prompts": [1, 2]}, r"prompts must be a list .* got \[1, 2\]"),
        ({"n": 0}, "n must be a whole number of at least 1, got 0"),
        ({"n": 2.5}, "n must be .* got 2.5"),
        ({"steps": 0}, "steps must be a whole number of at least 1, got 0"),
        ({"steps": 2000}, "steps must be a whole number between 1 and 1000, got 2000"),
        ({"guidance": float("nan")}, "guidance must be a finite number, got nan"),
        ({"guidance": "7"}, "guidance must be a finite number, got '7'"),
        ({"negative": 3}, "negative must be a string, got 3"),
        ({"sampler": "euler"}, "sampler must be one of diffusers, .* got 'euler'"),
        ({"size": 32}, r"size must be \(height, width\), multiples of 4, got 32"),
        ({"size": (30, 32)}, r"size must be .* got \(30, 32\)"),
        ({"keep": -1}, "keep must be a whole number of at least 0, got -1"),
        ({"branch_batch": 0}, "branch_batch must be .* got 0"),
        ({"images_at_once": 0}, "images_at_once must be .* got 0"),
        ({"key": 0}, "key must be a random key such as"),
    ],
)
def test_generate_refuses_bad_input(mini, settings, message):
    with pytest.raises(ValueError, match=message):
        sample.generate(mini, **({"prompts": PROMPTS, "key": jax.random.key(0)} | settings))


def test_pictures_show_their_captions_and_are_the_same_in_any_batch(mini):
    """Fewer than the card's 700: a check that the shipped weights and the default sampler belong together."""
    from jdiff.mnist.judge import load_judge

    prompts = ["a red three", "a green seven on white", "the digit 5 in blue", "a yellow zero"]
    both = sample.generate(mini, prompts, jax.random.key(1), n=4, keep=5)
    assert both.images.shape == (4, 4, 32, 32, 3) and both.way.shape == (4, 4, 5, 32, 32, 3)
    verdict = load_judge()(both.images.reshape(-1, 32, 32, 3))
    want = np.repeat([[3, 0, 0], [7, 1, 1], [5, 2, 0], [0, 3, 0]], 4, axis=0)
    right = np.stack([verdict.digit, verdict.colour, verdict.background], -1) == want
    assert right.mean() > 0.8
    alone = sample.generate(mini, prompts[:1], jax.random.key(1), n=1)
    np.testing.assert_allclose(alone.images[0, 0], both.images[0, 0], atol=1e-3)
