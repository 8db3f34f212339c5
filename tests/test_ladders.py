"""Several values of one flag: a row of the same seeds for each, in one labelled picture."""

from pathlib import Path

import numpy as np
import pytest
from test_commands import CROPPED, calls, main, same_again, same_sheet  # noqa: F401, calls is a fixture

from jdiff import images
from jdiff.cli import ladders
from jdiff.cli.parse import parse


def arrays(name="a.npz"):
    with np.load(name) as file:
        return dict(file)


@pytest.mark.parametrize("words, name, values, labels", [
    (["--steps", 2, 3, 4], "steps", [2, 3, 4], ["2 steps", "3 steps", "4 steps"]),
    (["--guidance", 1, 2.5], "guidance", [1.0, 2.5], ["guidance 1", "guidance 2.5"]),
    (["--steps", "3,1"], "steps", [3, 1], ["3 steps", "1 step"]),
])  # fmt: skip
@pytest.mark.filterwarnings("ignore:one step from")
def test_a_row_for_each_value(calls, words, name, values, labels):  # noqa: F811
    """Each row is what one value alone draws."""
    shared = ["-n", 2, "--negative", "no", "--sampler", "deepfloyd", "--npz", "a.npz"]
    assert main("generate", "one", *words, *shared) == 0
    found = arrays()
    assert [how[name] for _, _, how in calls] == values and found[name].tolist() == list(np.repeat(values, 2))
    made = found["images"].reshape(len(values), 2, 8, 8, 3)
    assert found["prompts"].tolist() == ["one"] * made.shape[0] * 2
    np.testing.assert_array_equal(
        images.to_uint8(images.load("out.png")), images.grid(made, labels, title="one", cell=128)
    )
    for row, value in zip(made, values, strict=True):
        assert main("generate", "one", f"--{name}", value, *shared, "-o", "alone.png") == 0
        np.testing.assert_array_equal(arrays()["images"], row)
    told = images.read_settings("out.png")
    assert told[name] == values and len({picture.tobytes() for picture in made[:, 0]}) == len(values)


@pytest.mark.parametrize("args, message", [
    (["edit", "in.png", "a", "--steps", 10, "--strength", 0.9, 0.01], "strength must be between 0.1 (one of 10 steps)"),
    (["generate", "a", "--sampler", "smart27", "--steps", 27, 50], "steps must be 27 for the sampler 'smart27'"),
    (["inpaint", "in.png", "a", "--mask", "mask.png", "--steps", 50, 5, "--resamplings", 2],
     "jump_length must be a whole number between 1 and 4, got 10"),
    (["generate", "a", "--size", 48, 32], "--size must be one word, got 48 32; write 48x32"),
])  # fmt: skip
def test_a_value_that_does_not_fit_is_told_before_any_is_drawn(calls, capsys, args, message):  # noqa: F811
    assert main(*args) == 2 and not calls
    *notes, error = capsys.readouterr().err.splitlines()
    assert message in error and all(line.startswith("jdiff: note: ") for line in notes)


def test_values_may_stand_behind_an_equals_sign():
    assert parse(["generate", "--steps=5", "10", "20", "a red three"]) == parse(
        ["generate", "a red three", "--steps", "5", "10", "20"]
    )


def test_strengths_of_an_edit_are_a_strip(calls):  # noqa: F811
    flags = ["--strength", 0.25, 0.5, 1, "-n", 1, "--npz", "a.npz", "--separate"]
    assert main("edit", "in.png", "one", *flags) == 0
    assert [how["strength"] for _, _, how in calls] == [0.25, 0.5, 1]
    original, made = calls[0][1][0], arrays()["images"]
    labels = ["original", "strength 0.25", "strength 0.5", "strength 1"]
    expected = images.strip(np.stack([original, *made]), labels, title="one")
    np.testing.assert_array_equal(images.to_uint8(images.load("out.png")), expected)
    same_again("edit", "out", "out-1-0")
    np.testing.assert_array_equal(images.to_uint8(images.load("out-1-0.png")), images.to_uint8(made[1]))
    assert images.read_settings("out-1-0.png")["strength"] == [0.25, 0.5, 1]
    assert main("edit", "--like", "out-1-0.png", "--strength", 0.5, "-o", "b.png") == 0
    found = images.read_settings("b.png")
    assert found["strength"] == 0.5 and found["image"] is None


@pytest.mark.parametrize("command, labels", [
    (["generate", "one", "two"], ["one, 2 steps", "one, 3 steps", "two, 2 steps", "two, 3 steps"]),
    (["inpaint", "in.png", "one", "two", "--mask", "mask.png"],
     ["original", "what is kept of it", "one, 2 steps", "one, 3 steps", "two, 2 steps", "two, 3 steps"]),
    (["anagram", "a", "a^", "--view", "flip"], ["a, 2 steps", "a, 3 steps", "a^, 2 steps", "a^, 3 steps"]),
    (["hybrid", "--low", "far", "--high", "near"], [
        f"{row}, {k} steps" for row in ("as it is", "from afar: far", "near: near") for k in (2, 3)
    ]),
    (["upscale", "in.png", "one", "--model", "large"], ["original", "2 steps", "3 steps"]),
])  # fmt: skip
def test_every_command_has_ladders(calls, command, labels):  # noqa: F811
    assert main(*command, "--steps", 2, 3, "-n", 2, "--npz", "a.npz", "--separate") == 0
    found = arrays()
    prompts = 2 if command[0] in ("generate", "inpaint") else 1
    assert found["steps"].tolist() == [2, 2, 3, 3] * prompts and len(found["prompts"]) == 4 * prompts
    assert prompts == 1 or found["prompts"].tolist() == ["one"] * 4 + ["two"] * 4
    asked = parse([*map(str, command), "--steps", "2", "3", "-n", "2"])
    fitted = None
    if command[0] in ("anagram", "inpaint", "upscale"):
        from jdiff import model

        fitted = asked.prepare(model.load(asked.model, "float32"), asked.read())  # type: ignore[union-attr]
    told, title = ladders.labels(asked, fitted)  # type: ignore[arg-type]
    assert told == labels and title == ("one" if command[0] == "upscale" else "")
    made = found["images"].reshape(2 * prompts, 2, *found["images"].shape[1:])
    if command[0] == "generate":
        same_sheet("out.png", made, labels)
    for i, j in np.ndindex(made.shape[:2]):
        np.testing.assert_array_equal(images.to_uint8(images.load(f"out-{i}-{j}.png")), images.to_uint8(made[i, j]))
    same_again(command[0], "out", "out-1-1")


@pytest.mark.parametrize("command, why", [
    (["generate", "a", "--steps", 2, 3, "--guidance", 1, 2], "only one flag may have several values, got --steps and"),
    (["edit", "in.png", "a", "--steps", 2, 3, "--strength", 0.5, 1], "only one flag may have several values, got --s"),
    (["generate", "a", "--steps", 2, 3, "--gif", "a.gif"], "--steps must have one value for an animation, got 2"),
    (["generate", "a", "--steps", 2, 0], "--steps must be between 1 and 1000, got 0"),
    (["generate", "a", "--steps", 2, 3.5], "--steps must be a whole number, got '2,3.5'"),
    (["generate", "a", "--steps", "2,"], "--steps must be a whole number, got '2,'"),
    (["generate", "a", "--guidance", "1,nan"], "--guidance must be a finite number, got nan"),
    (["edit", "in.png", "a", "--strength", 0.5, 1.5], "--strength must be above 0 and at most 1, got 1.5"),
    (["generate", "a", "-n", 5000, "--steps", 2, 3, 4], "-n must be between 1 and 3333 for 3 rows, got 5000"),
    (["generate", "a", "-n", 1500, "--steps", *range(1, 7)], "-o: the sheet must have at most 100 megapixels"),
])  # fmt: skip
def test_what_cannot_be_a_ladder_is_one_line(calls, capsys, command, why):  # noqa: F811
    before = sorted(Path().iterdir())
    assert main(*command) == 2
    told = capsys.readouterr().err.removeprefix(CROPPED)
    assert told.startswith(f"jdiff: {why}") and told.count("\n") == 1
    assert sorted(Path().iterdir()) == before and not calls


def test_flags_of_ladders_leave_prompts_alone():
    """What worked with one value works still: a prompt behind a flag, and a flag behind a flag."""
    for words in (["--steps", "5", "a 3", "7"], ["a 3", "7", "--steps", "5"], ["--steps=5", "a 3", "7"]):
        asked = parse(["generate", *words])
        assert (asked.steps, asked.prompts) == (5, ("a 3", "7"))  # type: ignore[union-attr]
    asked = parse(["generate", "--guidance", "-1", "2e0", "a 3", "--steps", "5", "-n", "2"])
    assert (asked.guidance, asked.steps, asked.n) == ((-1, 2), 5, 2)  # type: ignore[union-attr]


@pytest.mark.parametrize("value", [[2], [], ["2", "3"], [2, None], [2.5, 3]])
def test_settings_with_no_ladder_are_refused(calls, capsys, value):  # noqa: F811
    assert main("generate", "one", "-n", 1) == 0
    images.save("bad.png", images.load("out.png"), images.read_settings("out.png") | {"steps": value})
    capsys.readouterr()
    assert main("generate", "--like", "bad.png") == 2
    assert "whose settings have no usable steps" in capsys.readouterr().err


def test_a_row_that_is_not_finite_is_left_out(calls, capsys):  # noqa: F811
    assert main("generate", "one", "--guidance", 1, 1e38, "--negative", "no", "-n", 1, "--separate") == 0
    told = capsys.readouterr().err
    assert "1 of 2 pictures are not finite and left out: 0 of row 1; try" in told
    assert "or less guidance than 1e+38" in told and not Path("out-1-0.png").exists()
