"""What the model of icons is trained on, and its objectives."""

import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "scripts"))

import train_icons  # noqa: E402

from jdiff.letters.captions import CHARACTERS  # noqa: E402
from jdiff.networks import unet  # noqa: E402
from jdiff.text.tokens import byte_tokens  # noqa: E402

NAMES = ["arrow up", "arrow down", "house", "tree", "caf\u00e9"]
STYLES = ["bold", "", "outline", "thin", ""]


@pytest.fixture
def folder(tmp_path):
    """Icons whose pixels all have their number."""
    images = np.arange(len(NAMES), dtype=np.uint8)[:, None, None] * np.ones((1, 8, 8), np.uint8)
    np.savez(tmp_path / "icons.npz", icons=images)
    rows = [{"set": "s", "name": name, "style": style} for name, style in zip(NAMES, STYLES, strict=True)]
    (tmp_path / "icons.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def test_icons_of_the_most_frequent_words_are_kept(folder):
    assert train_icons.read(folder, None).names == NAMES
    kept = train_icons.read(folder, 1)
    assert (kept.names, kept.styles) == (["arrow up", "arrow down"], ["bold", ""])
    np.testing.assert_array_equal(kept.images[:, 0, 0], [0, 1])
    with pytest.raises(SystemExit, match="--data-folder must have icons.npz"):
        train_icons.read(folder / "none", None)


def test_a_drawn_icon_has_its_own_caption_and_words(folder):
    world, vocabulary = train_icons.world(train_icons.read(folder, None))
    batch = train_icons.draw(world, jax.random.key(0), 64, null=0.2, styled=0.5)
    assert batch.images.shape == (64, 8, 8, 1)
    seen = set()
    for image, tokens, words in zip(batch.images, batch.tokens, batch.words, strict=True):
        icon = round((float(image[0, 0, 0]) + 1) * 127.5)
        name = NAMES[icon] if NAMES[icon].isascii() else ""
        texts = ["", name, f"{STYLES[icon]} {name}".strip()]
        rows = byte_tokens(texts, train_icons.LENGTH)[0]
        said = [i for i, row in enumerate(rows) if (row == np.asarray(tokens)).all()]
        assert said, texts
        seen.add(said[0])
        told = {vocabulary[i] for i in words if i < len(vocabulary)}
        assert not texts[said[0]] or told <= set(texts[-1].split()) and set(texts[said[0]].split()) == told
    assert seen == {0, 1, 2}


def test_glyphs_are_mixed_in_with_captions_of_their_own(folder):
    glyphs = np.zeros((1, len(CHARACTERS), 16, 16), np.uint8)
    glyphs[0, CHARACTERS.index("g")] = 200
    np.savez(folder / "glyphs.npz", glyphs=glyphs)
    font = {"family": "f", "stem": 0.2, "italic": False, "mono": False, "serif": True}
    (folder / "fonts.jsonl").write_text(json.dumps(font) + "\n")
    both = train_icons.with_glyphs(train_icons.read(folder, None), folder)
    assert len(both.images) == len(both.names) == len(both.styles) == len(NAMES) + len(CHARACTERS)
    at = len(NAMES) + CHARACTERS.index("g")
    assert (both.names[at], both.styles[at], both.images[at].min()) == ("small g", "bold serif", 200)


def test_the_text_encoder_is_asked_for_the_words_of_captions_that_are_not_empty(folder):
    world, vocabulary = train_icons.world(train_icons.read(folder, None))
    batch = train_icons.draw(world, jax.random.key(1), 32)
    has = jax.nn.one_hot(batch.words, len(vocabulary)).max(1)
    states = lambda params, tokens, mask: params[:, None]
    name = lambda logits: train_icons.name_it(
        states, {"text": logits, "heads": jnp.eye(len(vocabulary)), "bias": 0.0}, jax.random.key(0), batch
    )
    loss, metrics = name(40 * has - 20)
    assert float(loss) < 1e-3 and float(metrics["named"]) == 1
    told = batch.mask.sum(1) > 1
    wrong = name(jnp.where(told[:, None], 20 - 40 * has, 0))[0]
    np.testing.assert_allclose(wrong, 20 * len(vocabulary) * told.mean(), rtol=1e-4)


@pytest.mark.parametrize(("size", "width"), [(32, 48), (64, 96)])
def test_the_network_takes_icons_and_the_encoders_states(size, width):
    config = train_icons.network(size, width)
    network = unet.unet(config)
    x = jax.ShapeDtypeStruct((2, size, size, 1), jnp.float32)
    t = jax.ShapeDtypeStruct((2,), jnp.float32)
    states = jax.ShapeDtypeStruct((2, train_icons.LENGTH, train_icons.TEXT.d_model), jnp.float32)
    made = jax.eval_shape(network.apply, network.params, x, t, train_icons.Conditioning(states))
    assert made.estimate.shape == x.shape
