"""The script that makes part A's figures: what it asks for, what it reads, its pages."""

import json
import re
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

import jdiff
from jdiff import images, views
from jdiff.mnist.captions import captions

sys.path.append(str(Path(__file__).resolve().parents[1] / "scripts"))
import part_a_editions as editions  # noqa: E402  # pyright: ignore[reportMissingImports]
import reproduce_part_a as part_a  # noqa: E402  # pyright: ignore[reportMissingImports]

EDITIONS = {"IF": editions.IF, "mini": editions.MINI}
FROM_THE_COURSE = {  # prompts of its file of embeddings
    "an oil painting of a snowy mountain village", "a photo of the amalfi cost", "a photo of a man",
    "a photo of a hipster barista", "a photo of a dog", "an oil painting of people around a campfire",
    "an oil painting of an old man", "a lithograph of waterfalls", "a lithograph of a skull", "a man wearing a hat",
    "a high quality photo", "", "a rocket ship", "a pencil",
}  # fmt: skip


def prompts(edition):
    """Every prompt that an edition asks for."""
    pairs = [prompt for _, *pair in edition.anagrams for prompt in pair] + [p for pair in edition.hybrids for p in pair]
    drawn = [prompt for _, prompt in edition.pictures]
    return {*edition.sampling, edition.neutral, *drawn, *edition.drawings, *edition.edits, *pairs}


@pytest.mark.parametrize("name", EDITIONS)
def test_an_edition_asks_for_what_its_model_knows(name):
    edition = EDITIONS[name]
    known = FROM_THE_COURSE if name == "IF" else {caption.text for caption in captions()}
    assert prompts(edition) <= known
    assert {view for view, *_ in edition.anagrams} <= views.VIEWS.keys()
    three = (edition.sampling, edition.pictures, edition.edits, edition.boxes, edition.anagrams, edition.hybrids)
    assert [len(members) for members in (*three, edition.sigmas)] == [3] * 7


@pytest.mark.parametrize("name", EDITIONS)
@pytest.mark.parametrize("side", [32, 64])
def test_its_masks_keep_some_and_make_some_new(name, side):
    for mask in editions.boxes(EDITIONS[name], side):
        assert mask.shape == (side, side) and 0 < mask.mean() < 1
    top, bottom, left, right = editions.COURSE_BOX
    assert (top, bottom - 1, left, right - 1) == (2, 19, 24, 41)


def test_a_mask_from_a_file_is_black_and_white(tmp_path):
    grey = np.zeros((40, 80), np.uint8)
    grey[:, 40:] = 255
    Image.fromarray(grey).save(tmp_path / "mask.png")
    mask = np.asarray(editions.read_mask(tmp_path / "mask.png", 8))
    np.testing.assert_array_equal(mask, np.repeat([[0, 0, 0, 0, 1, 1, 1, 1]], 8, 0))
    Image.fromarray(grey * 0).save(tmp_path / "mask.png")
    with pytest.raises(ValueError, match="--mask must be partly white and partly black, got .*mask.png, all black"):
        editions.read_mask(tmp_path / "mask.png", 8)


def test_prompts_from_a_file_take_the_place_of_its_own(tmp_path):
    path = tmp_path / "prompts.json"
    pairs = [["a", "b"], ["c", "d"], ["e", "f"]]
    path.write_text(json.dumps({"neutral": "a tower", "hybrids": pairs}))
    told = editions.read_prompts(path, editions.IF)
    assert told == editions.IF._replace(neutral="a tower", hybrids=(("a", "b"), ("c", "d"), ("e", "f")))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "--prompts cannot be read as JSON, got .*prompts.json"),
        ("[]", "prompts.json must hold a JSON object, got a list"),
        ('{"boxes": []}', "keys must be of sampling, neutral, .*, got 'boxes'"),
        ('{"neutral": ["a"]}', r'neutral must have the structure of "a red three", got \["a"\]'),
        ('{"hybrids": [["a", "b"]]}', r'hybrids must have the structure of \[\["a .*, got \[\["a", "b"\]\]'),
        ('{"sampling": ["a", "b", 3]}', r'sampling must have the structure of .*, got \["a", "b", 3\]'),
        (json.dumps({"anagrams": [["mirrored", "a", "b"]] * 3}), "views must be of identity, flip, .*, got mirrored"),
    ],
)
def test_prompts_that_do_not_fit_are_named(text, message, tmp_path):
    (tmp_path / "prompts.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        editions.read_prompts(tmp_path / "prompts.json", editions.MINI)
    with pytest.raises(ValueError, match="--prompts cannot be read as JSON, got .*gone.json"):
        editions.read_prompts(tmp_path / "gone.json", editions.MINI)


@pytest.mark.parametrize("part", [part_a.anagrams, part_a.hybrids, part_a.enlargements])
def test_illusions_and_enlargements_are_drawn(part, monkeypatch):
    """Figures whose settings are not those of plain prompts, with fewer steps."""
    monkeypatch.setattr(part_a, "SHOWN", 1)
    monkeypatch.setattr(part_a, "COURSE", {"sampler": "ddim", "steps": 2})
    monkeypatch.setattr(part_a, "STAGE2_STEPS", 2)
    one = editions.MINI._replace(anagrams=editions.MINI.anagrams[:1], hybrids=editions.MINI.hybrids[:1], sigmas=(2.5,))
    photo = part_a.Picture("a picture", np.zeros((32, 32, 3), np.float32), "a red three")
    models = jdiff.load("mini"), jdiff.load("mini-upscaler")
    (figure,) = part(part_a.Studio(*models, one, jax.random.key(0), [photo], [], []))
    assert np.isfinite(figure.rows).all() and figure.rows.shape[-1] == 3
    assert figure.rows.shape[2] == (64 if part is part_a.enlargements else 32)


def test_its_pages_show_every_figure_and_name_its_settings(tmp_path):
    rows = np.linspace(-1, 1, 2 * 3 * 8 * 8 * 3).reshape(2, 3, 8, 8, 3)
    figures = [
        part_a.Figure(part, f"Figure <{part}>", "What it shows.", rows, [], [], {"steps": 7, "part": part})
        for part in ("1.1", "1.2", "1.2")
    ]
    made = [(figure, images.grid(figure.rows, cell=8)) for figure in figures]
    part_a.write(tmp_path, "Title", "Intro & more.", made, {"seed": 3})
    page, text = (tmp_path / "part_a.html").read_text(), (tmp_path / "part_a.md").read_text()
    assert page.count('src="data:image/png;base64,') == 3 and "http" not in page
    assert "&lt;1.1&gt;" in page and "Intro &amp; more." in page
    links = re.findall(r"\]\((.*?)\)", text)
    assert len(links) == 3 and text.count("steps 7") == 3 and text.count("\n## 1.2\n") == 1
    for link, (figure, picture) in zip(links, made, strict=True):
        assert images.read_settings(tmp_path / link) == {"seed": 3, "steps": "7", "part": figure.part}
        np.testing.assert_array_equal(images.to_uint8(images.load(tmp_path / link)), picture)
