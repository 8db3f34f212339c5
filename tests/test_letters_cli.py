"""`jdiff ambigram`: bad input in one line, and the shipped model from the command to the picture."""

import numpy as np
import pytest
from PIL import Image

from jdiff import images
from jdiff.cli import main as cli
from jdiff.cli.letters import Ambigram
from jdiff.letters import ambigrams
from jdiff.model import shipped


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([""], "WORD must have at least one letter, got ''"),
        (["na-me"], "letters A-Z, a-z and digits only, got '-' in 'na-me'"),
        (["a" * 40], "WORD must have at most 20 letters, got 40"),
        (["ab", "abcde"], "the words must have equally many letters, got 'ab' with 2 and 'abcde' with 5"),
        (["ab", "ab", "ab"], "ambigram takes one word or two, got 3"),
        ([], "ambigram takes one word or two, got 0"),
        (["ab", "--style", "gothic"], "--style must be words of thin, light"),
        (["ab", "--style", "thin bold"], "--style must have one of 'thin' and 'bold', got both"),
        (["ab", "--ink", "inky"], "--ink must be a colour such as"),
        (["ab", "-n", "0"], "-n must be between 1 and 1024, got 0"),
        (["ab", "--steps", "2000"], "--steps must be between 1 and 1000, got 2000"),
        (["ab", "--guidance", "nan"], "--guidance must be a finite number, got nan"),
        (["ab", "--push", "3"], "--push must be between 0 and 2, got 3"),
        (["ab", "-o", "word.jpg"], "-o must be a file that ends in .png, got word.jpg"),
        (["ab", "--model", "mini"], "--model must be a model of letters, such as letters, got 'mini'"),
    ],
)
def test_bad_input_is_one_line(args, message, capsys):
    assert cli.main(["ambigram", *args]) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("jdiff: ") and message in error and "\n" not in error


def test_a_picture_is_not_written_over_by_the_one_that_is_like_it(tmp_path, capsys):
    like = tmp_path / "word.png"
    images.save(like, np.zeros((8, 8, 3), np.float32), {"command": "ambigram", "words": ["on"]})
    before = like.read_bytes()
    assert cli.main(["ambigram", "--like", str(like), "-o", str(like)]) == 2
    assert capsys.readouterr().err == f"jdiff: -o must be another file than --like reads, got {like}\n"
    assert like.read_bytes() == before


def test_a_picture_of_an_older_version_is_drawn_without_the_guide(tmp_path):
    like = tmp_path / "word.png"
    for before, push in (({}, 0.0), ({"push": 0.5}, 0.5)):
        images.save(like, np.zeros((8, 8, 3), np.float32), {"command": "ambigram", "words": ["on"]} | before)
        assert Ambigram(like=like).settings()["push"] == push
    assert Ambigram(("on",)).settings()["push"] == ambigrams.PUSH


@pytest.mark.parametrize("view", ambigrams.CANDIDATES)
def test_each_view_has_its_number_of_candidates_unless_one_is_given(view):
    assert Ambigram(("on",), view=view).settings()["n"] == ambigrams.CANDIDATES[view]
    assert Ambigram(("on",), view=view, n=5).settings()["n"] == 5


@pytest.mark.skipif(not (shipped("letters") / "unet").is_dir(), reason="the letters model is not in this checkout")
def test_a_word_from_the_command_to_the_picture(tmp_path, capsys):
    output, gif, npz = (tmp_path / f"word.{suffix}" for suffix in ("png", "gif", "npz"))
    args = ["ambigram", "on", "no", "-n", "2", "--steps", "4", "--ink", "navy", "--quiet", "-o", str(output)]
    assert cli.main([*args, "--gif", str(gif), "--npz", str(npz)]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"wrote {output}, {npz}, {gif}: on / no is ") and "the worst letter is" in said
    settings = images.read_settings(output)
    assert settings["words"] == ["on", "no"] and settings["steps"] == 4 and settings["guidance"] == ambigrams.GUIDANCE
    with np.load(npz) as arrays:
        assert arrays["images"].shape == (2, 32, 32, 1) and arrays["scores"].shape == (2, 2)
        assert [row[0].lower() for row in arrays["pairs"]] == ["o", "n"]
    with Image.open(gif) as moving:
        assert moving.n_frames > 10
    before = output.read_bytes()
    assert cli.main(["ambigram", "--like", str(output), "--quiet"]) == 0
    again = tmp_path / "word-again.png"
    assert output.read_bytes() == before
    np.testing.assert_array_equal(images.load(output), images.load(again))
