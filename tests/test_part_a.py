"""The script that makes part A's figures: what it asks for, what it reads, its pages."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jdiff import images, views
from jdiff.mnist.captions import captions

sys.path.append(str(Path(__file__).resolve().parents[1] / "scripts"))
import reproduce_part_a as part_a  # noqa: E402  # pyright: ignore[reportMissingImports]

EDITIONS = {"IF": part_a.IF, "mini": part_a.MINI}
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
    for mask in part_a.boxes(EDITIONS[name], side):
        assert mask.shape == (side, side) and 0 < mask.mean() < 1
    top, bottom, left, right = part_a.COURSE_BOX
    assert (top, bottom - 1, left, right - 1) == (2, 19, 24, 41)


def test_a_mask_from_a_file_is_black_and_white(tmp_path):
    grey = np.zeros((40, 80), np.uint8)
    grey[:, 40:] = 255
    Image.fromarray(grey).save(tmp_path / "mask.png")
    mask = np.asarray(part_a.read_mask(tmp_path / "mask.png", 8))
    np.testing.assert_array_equal(mask, np.repeat([[0, 0, 0, 0, 1, 1, 1, 1]], 8, 0))
    Image.fromarray(grey * 0).save(tmp_path / "mask.png")
    with pytest.raises(ValueError, match="all black; accepted is some of both"):
        part_a.read_mask(tmp_path / "mask.png", 8)


def test_prompts_from_a_file_take_the_place_of_its_own(tmp_path):
    path = tmp_path / "prompts.json"
    pairs = [["a", "b"], ["c", "d"], ["e", "f"]]
    path.write_text(json.dumps({"neutral": "a tower", "hybrids": pairs}))
    told = part_a.read_prompts(path, part_a.IF)
    assert told == part_a.IF._replace(neutral="a tower", hybrids=(("a", "b"), ("c", "d"), ("e", "f")))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "prompts.json, no readable JSON"),
        ("[]", "which holds a list, accepted is an object"),
        ('{"boxes": []}', "has 'boxes', accepted are sampling, neutral, "),
        ('{"neutral": ["a"]}', r'has neutral \["a"\], accepted is in the form of "a red three"'),
        ('{"hybrids": [["a", "b"]]}', r'has hybrids \[\["a", "b"\]\], accepted is in the form of \[\["a '),
        ('{"sampling": ["a", "b", 3]}', r'has sampling \["a", "b", 3\]'),
        (json.dumps({"anagrams": [["mirrored", "a", "b"]] * 3}), "has the views mirrored, accepted are identity, flip"),
    ],
)
def test_prompts_that_do_not_fit_are_named(text, message, tmp_path):
    (tmp_path / "prompts.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        part_a.read_prompts(tmp_path / "prompts.json", part_a.MINI)
    with pytest.raises(ValueError, match="gone.json, no readable JSON"):
        part_a.read_prompts(tmp_path / "gone.json", part_a.MINI)


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
