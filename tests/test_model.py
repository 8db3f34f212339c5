"""Loading: the mini model as it ships, and what is said where something is wrong."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jdiff
from jdiff import model, sample, step
from jdiff.checkpoints import convert
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
    params = jax.tree.map(jnp.asarray, convert.load(folder, abstract))
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


def test_two_trainings_have_two_hashes(folder, mini):
    path = folder / "unet" / "model.safetensors"
    _, metadata = convert.read_header(path)
    params = jax.tree.map(np.asarray, mini.network.params)
    convert.save(path, params, metadata | {"sha256": "another"})
    assert jdiff.load(folder).hash != mini.hash


def test_what_is_no_model_is_said_in_one_message(folder, tmp_path):
    with pytest.raises(ValueError, match="model is 'nothing', accepted are mini, mini-upscaler, folders"):
        jdiff.load("nothing")
    with pytest.raises(ValueError, match="holds no unet/model.safetensors"):
        jdiff.load(tmp_path)
    with pytest.raises(ValueError, match="dtype is 'int8', accepted are float32, bfloat16, float16"):
        jdiff.load("mini", dtype="int8")
    theirs = tmp_path / "theirs" / "unet"
    theirs.mkdir(parents=True)
    (theirs / "diffusion_pytorch_model.safetensors").touch()
    with pytest.raises(ValueError, match="config.json"):
        jdiff.load(theirs.parent)
    (folder / "defaults.json").write_text("[1]")
    with pytest.raises(ValueError, match="defaults.json holds a list, accepted is an object"):
        jdiff.load(folder)


def test_without_an_encoder_prompts_are_refused_and_embeddings_work(folder):
    shutil.rmtree(folder / "text_encoder")
    bare = jdiff.load(folder)
    with pytest.raises(ValueError, match="no text encoder that reads prompts, given"):
        sample.generate(bare, PROMPTS, jax.random.key(0))


@pytest.mark.parametrize(
    ("config", "stage2", "want"),
    [
        ({}, False, (0.95, 1.5)),
        ({}, True, (0.95, 1.0)),
        ({"beta_schedule": "squaredcos_cap_v2", "thresholding": True, "sample_max_value": 1.2}, False, (0.995, 1.2)),
    ],
)
def test_the_scheduler_is_read_or_it_is_ifs(config, stage2, want):
    abar, rule = model.read_scheduler(config, stage2)
    assert rule.func is step.threshold().func and rule.args == want
    np.testing.assert_array_equal(abar, jdiff.schedule.cosine())


def test_a_scheduler_without_thresholding_clips_or_does_not():
    assert model.read_scheduler({"beta_schedule": "linear"})[1](jnp.full(1, 3.0)) == 1.0
    assert model.read_scheduler({"clip_sample": False})[1](jnp.full(1, 3.0)) == 3.0


def test_a_scheduler_that_is_not_covered_is_refused_with_all_its_keys():
    with pytest.raises(ValueError, match="(?s)beta_schedule is 'scaled_linear'.*prediction_type is 'flow'"):
        model.read_scheduler(json.loads('{"beta_schedule": "scaled_linear", "prediction_type": "flow"}'))


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
        ({"negative": 3}, "negative must be a prompt, got 3"),
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
