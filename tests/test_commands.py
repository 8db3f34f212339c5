"""Edits, inpainting, anagrams, hybrids and upscaling from the command line, with a model that knows what it draws."""

import json
import os
import zlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jdiff import images, sample, schedule, step, views
from jdiff.cli import illusions, make, outputs, parse, settings
from jdiff.cli import main as cli
from jdiff.cli.drawing import Drawing
from jdiff.model import Defaults, Model
from jdiff.networks import unet
from jdiff.types import Prediction, as_network

SIDE = 8
CROPPED = (
    "jdiff: note: in.png is 24 wide and 12 high; its middle, 12 x 12, is used (--fit pad or stretch uses the whole)\n"
)
rng = np.random.default_rng(0)


def main(*args):
    """Exit status of the command in this process, without a bar."""
    try:
        return cli.main([*map(str, args), "--quiet"])
    except SystemExit as error:
        return error.code


def pattern(prompt, side=SIDE):
    """The one picture [side side 3] of a prompt; of "x^" it is that of "x", upside down."""
    if prompt.endswith("^"):
        return pattern(prompt[:-1], side)[::-1]
    drawn = np.random.default_rng([*prompt.encode()]).uniform(-0.8, 0.8, (side, side, 3))
    return drawn.astype(np.float32) if prompt else np.zeros((side, side, 3), np.float32)


def model(name, side, channels):
    """A model whose every estimate is exact for the pattern of its prompt."""
    abar = schedule.cosine()

    def denoise(x, t, conditioning):
        level = jnp.asarray(abar, jnp.float32)[t.astype(int)][:, None, None, None]
        clean = conditioning.text.reshape(-1, SIDE, SIDE, 3).repeat(side // SIDE, 1).repeat(side // SIDE, 2)
        return Prediction((x - jnp.sqrt(level) * clean) / jnp.sqrt(1 - level), jnp.zeros_like(x))

    return Model(
        network=as_network(denoise),
        embed=lambda prompts: jnp.stack([pattern(prompt).reshape(SIDE, -1) for prompt in prompts]),
        schedule=abar,
        config=unet.Config(
            sample_size=side,
            in_channels=channels,
            block_out_channels=(4, 8),
            class_embed_type="timestep" if channels == 6 else None,
        ),
        x0_rule=step.untouched,
        defaults=Defaults("ddim", steps=4, guidance=1.0, low_res=SIDE),
        name=name,
    )


@pytest.fixture
def calls(monkeypatch, tmp_path):
    """That model as "mini", one of stage 2 as "large", pictures in an otherwise empty folder; what tasks are asked."""
    asked = []
    models = {"mini": model("mini", SIDE, 3), "large": model("large", 4 * SIDE, 6)}

    def spy(task):
        def spied(model, *args, **how):
            asked.append((task.__name__, args, how))
            return task(model, *args, **how)

        return spied

    for task in (sample.generate, sample.edit, sample.inpaint, sample.upscale):
        monkeypatch.setattr(sample, task.__name__, spy(task))
    monkeypatch.setattr("jdiff.model.load", lambda name, dtype, **_: models[name])
    monkeypatch.setenv("JDIFF_CACHE", "")
    monkeypatch.chdir(tmp_path)
    images.save("in.png", rng.uniform(-1, 1, (12, 24, 3)))
    Image.fromarray(half((12, 24))).save("mask.png")
    return asked


def half(shape):
    """A mask, white on the right."""
    mask = np.zeros(shape, np.uint8)
    mask[:, shape[1] // 2 :] = 255
    return mask


def original():
    return images.square(images.load("in.png"), SIDE)


def same_sheet(path, rows, labels):
    np.testing.assert_array_equal(images.to_uint8(images.load(path)), outputs.sheet(rows, labels))


def under(made, *originals):
    top = np.full((len(originals), *made.shape[1:]), np.nan, np.float32)
    top[:, 0] = originals
    return np.concatenate([top, made])


def same_again(command, *names):
    """`--like` writes the same bytes, from the sheet and from a single picture."""
    for name in names:
        assert main(command, "--like", f"{name}.png") == 0
        assert Path(f"{name}-again.png").read_bytes() == Path(f"{name}.png").read_bytes()


def test_edit(calls, capsys):
    flags = ["--strength", "0.5", "-n", 2, "--separate", "--npz", "a.npz", "--gif", "a.gif", "-o", "a.png"]
    assert main("edit", "in.png", "one", "two", *flags) == 0
    out, err = capsys.readouterr()
    assert (
        err == CROPPED
        and out.startswith("wrote a.png, a-0-0.png, a-0-1.png, a-1-0.png, a-1-1.png, a.npz, a.gif: ")
        and out.endswith("4 pictures, 8 x 8\n")
    )
    ((task, (image, prompts, _), how),) = calls
    assert (task, prompts, how["strength"], how["n"]) == ("edit", ("one", "two"), 0.5, 2)
    np.testing.assert_array_equal(image, original())
    arrays = np.load("a.npz")
    made = arrays["images"].reshape(2, 2, SIDE, SIDE, 3)
    np.testing.assert_allclose(made[1, 0], pattern("two"), atol=1e-3)
    assert arrays["prompts"].tolist() == ["one", "one", "two", "two"]
    same_sheet("a.png", under(made, original()), ["original", "one", "two"])
    with Image.open("a.gif") as gif, Image.open("a.png") as png:
        assert gif.n_frames > 1 and gif.size == png.size
    found = images.read_settings("a.png")
    assert [found[key] for key in ("command", "source", "strength", "prompts")] == [
        "edit",
        "in.png",
        0.5,
        ["one", "two"],
    ]
    same_again("edit", "a", "a-1-0")
    assert calls[1][2]["strength"] == 0.5
    assert main("edit", "--like", "a.png", "--strength", "0.75", "-o", "b.png") == 0
    assert calls[-1][1][1] == ("one", "two") and calls[-1][2]["strength"] == 0.75


@pytest.mark.parametrize("flags, expected", [([], (True, 1, 10)), (["--clean"], (False, 1, 10)), (None, (True, 2, 2))])
def test_inpaint_keeps_what_is_black(calls, flags, expected):
    flags = ["--resamplings", 2, "--jump-length", 2] if flags is None else flags
    assert main("inpaint", "in.png", "one", "--mask", "mask.png", "-n", 2, "--npz", "a.npz", *flags) == 0
    made = np.load("a.npz")["images"]
    mask = half((SIDE, SIDE))[..., None] > 0
    np.testing.assert_allclose(made, np.where(mask, pattern("one"), original())[None].repeat(2, 0), atol=1e-3)
    ((task, _, how),) = calls
    assert (how["noised"], how["resamplings"], how["jump_length"]) == expected
    kept = np.where(mask, 0, original())
    same_sheet("out.png", under(made[None], original(), kept), ["original", "what is kept of it", "one"])
    if "--clean" in flags:
        same_again("inpaint", "out")
        assert images.read_settings("out-again.png")["mask"] == "mask.png" and calls[1][2]["noised"] is False


def test_anagram(calls):
    assert (
        main(
            "anagram",
            "a",
            "a^",
            "--view",
            "flip",
            "-n",
            2,
            "--npz",
            "a.npz",
            "--gif",
            "a.gif",
            "--separate",
            "--mp4",
            "a.mp4",
        )
        == 0
    )
    arrays = np.load("a.npz")
    np.testing.assert_allclose(arrays["images"], [pattern("a")] * 2, atol=1e-3)
    assert arrays["prompts"].tolist() == [["a", "a^"]] * 2
    same_sheet("out.png", np.stack([arrays["images"], arrays["images"][:, ::-1]]), ["a", "a^"])
    with Image.open("a.gif") as gif:
        assert gif.n_frames > 2 * illusions.MOVING * 0.8
    assert images.read_settings("out.png")["view"] == ["flip"]
    assert sorted(p.name for p in Path().glob("out-*")) == ["out-0-0.png", "out-0-1.png"]
    same_again("anagram", "out", "out-0-1")
    assert main("anagram", "--like", "out.png", "--view", "negate", "--view", "flip", "-o", "b.png") == 0
    again = images.read_settings("b.png")
    assert (again["view"], again["guidance"]) == (["negate", "flip"], 1)


def test_hybrid(calls):
    assert main("hybrid", "--low", "far", "--high", "near", "-n", 2, "--npz", "a.npz", "--gif", "a.gif") == 0
    arrays = np.load("a.npz")
    expected = views.low_pass()(pattern("far")) + views.high_pass()(pattern("near"))
    np.testing.assert_allclose(arrays["images"], np.stack([np.clip(expected, -1, 1)] * 2), atol=1e-3)
    assert arrays["prompts"].tolist() == [["far", "near"]] * 2
    rows = [arrays["images"], *(jax.vmap(part)(arrays["images"]) for part in (views.low_pass(), views.high_pass()))]
    same_sheet("out.png", np.stack(rows), ["as it is", "from afar: far", "near: near"])
    same_again("hybrid", "out")
    assert main("hybrid", "--like", "out.png", "--sigma", 5, "--npz", "b.npz") == 0
    low, high = views.low_pass(5.0, 81), views.high_pass(5.0, 81)
    expected = np.stack([np.clip(low(pattern("far")) + high(pattern("near")), -1, 1)] * 2)
    np.testing.assert_allclose(np.load("b.npz")["images"], expected, atol=1e-3)
    assert images.read_settings("out-again.png")["sigma"] == 5 and images.read_settings("out.png")["sigma"] == 2


def test_upscale(calls):
    flags = ["--model", "large", "-n", 1, "--noise-level", 100]
    assert main("upscale", "in.png", "one", *flags, "--npz", "a.npz") == 0
    ((task, (low_res, prompts, _), how),) = calls
    assert (task, prompts, how["noise_level"]) == ("upscale", ["one"], 100)
    small = images.square(images.load("in.png"), SIDE, Image.Resampling.BOX)
    np.testing.assert_array_equal(low_res, small)
    made = np.load("a.npz")["images"]
    np.testing.assert_allclose(made, [pattern("one").repeat(4, 0).repeat(4, 1)], atol=1e-3)
    enlarged = small.repeat(4, 0).repeat(4, 1)
    same_sheet("out.png", under(made[None], enlarged), ["original", "one"])
    same_again("upscale", "out")
    images.save("small.png", pattern("small", 6))
    assert main("upscale", "small.png", *flags) == 0
    assert calls[-1][1][0].shape == (6, 6, 3) and calls[-1][1][1] == [""]


def test_generate_in_two_stages(calls):
    assert main("generate", "one", "two", "-n", 2, "--stage2", "large", "--npz", "a.npz", "--gif", "way.gif") == 0
    (first, _, _), (second, (low_res, prompts, _), how) = calls
    assert (first, second, len(prompts), how["n"]) == ("generate", "upscale", 2, 2)
    small = np.repeat([pattern(prompt) for prompt in ("one", "two")], 2, 0)
    large = small.repeat(4, 1).repeat(4, 2)
    np.testing.assert_allclose(low_res.reshape(small.shape), small, atol=1e-3)
    np.testing.assert_allclose(np.load("a.npz")["images"], large, atol=1e-3)
    same_again("generate", "out")
    made = images.read_settings("out.png")
    assert main("generate", "one", "two", "-n", 2, "-o", "one.png") == 0
    assert (made["stage2"], images.read_settings("one.png")["hash"] == made["hash"]) == ("large", False)


@pytest.mark.parametrize("name", views.VIEWS)
def test_pixels_travel_from_one_reading_to_the_next(name):
    made, side = rng.uniform(-1, 1, (2, 16, 16, 3)).astype(np.float32), 16
    view = views.VIEWS[name](grid=side) if name == "pixel_permute" else views.VIEWS[name]()
    here, there = illusions.places(views.identity(), side), illusions.places(view, side)
    enlarge = lambda a: np.asarray(a).repeat(12, 1).repeat(12, 2)
    np.testing.assert_array_equal(illusions.between(made, here, there, 0), enlarge(made))
    np.testing.assert_array_equal(illusions.between(made, here, there, 1), enlarge(jax.vmap(view.apply)(made)))
    assert np.abs(illusions.between(made, here, there, 0.5)).max() <= 1


def test_half_way_is_half_way():
    made = -np.ones((1, 2, 2, 3), np.float32)
    upside_down = illusions.places(views.flip(), 2)
    frame = illusions.between(made, illusions.places(views.identity(), 2), upside_down, 0.5)
    dark = (frame[0, :, :, 0] == -1).any(axis=1)
    assert frame.shape == (1, 192, 192, 3) and np.flatnonzero(dark).tolist() == list(range(48, 144))
    faded = illusions.between(made, illusions.places(views.identity(), 2), illusions.places(views.negate(), 2), 0.5)
    np.testing.assert_array_equal(faded, 0)


def test_like_says_what_became_of_the_pictures(calls, capsys):
    assert main("inpaint", "in.png", "one", "--mask", "mask.png", "-n", 1, "-o", "a.png") == 0
    capsys.readouterr()
    images.save("in.png", rng.uniform(-1, 1, (12, 24, 3)))
    assert main("inpaint", "--like", "a.png") == 0
    err = capsys.readouterr().err.removeprefix(CROPPED)
    assert err.count("\n") == 1 and "jdiff: note: " in err and "source in.png (sha256" in err and "mask" not in err
    Path("mask.png").unlink()
    before = sorted(os.listdir())
    assert main("inpaint", "--like", "a.png") == 2
    err = capsys.readouterr().err
    assert err == "jdiff: --mask: mask.png: there is no such file; give the path of a picture\n"
    assert main("edit", "--like", "a.png") == 2
    assert (
        "--like must be a picture that jdiff edit drew, got a.png, which is another" in capsys.readouterr().err
        and sorted(os.listdir()) == before
    )


FLIPS = ["--view", "flip"]
BAD = {  # arguments, and what the line must have in it
    "no image": (["edit"], "no prompt is given; give one or more, such as jdiff edit"),
    "no prompt": (["edit", "in.png"], "no prompt is given"),
    "gone": (["edit", "gone.png", "a"], "IMAGE: gone.png: there is no such file"),
    "text": (["edit", "text.png", "a"], "IMAGE: text.png: this is no picture that can be read"),
    "cut": (["edit", "cut.png", "a"], "IMAGE: cut.png: the picture is damaged"),
    "huge": (["edit", "huge.png", "a"], "IMAGE: huge.png: the picture has more than 100 megapixels"),
    "strength 0": (["edit", "in.png", "a", "--strength", "0"], "--strength must be above 0 and at most 1, got 0.0"),
    "strength 2": (["edit", "in.png", "a", "--strength", "2"], "--strength must be above 0 and at most 1, got 2.0"),
    "strength nan": (["edit", "in.png", "a", "--strength", "nan"], "--strength must be above 0 and at most 1, got nan"),
    "strength small": (["edit", "in.png", "a", "--strength", "0.01"], "strength must be between 0.25 (one of 4 steps)"),
    "over the source": (["edit", "in.png", "a", "-o", "../tmp/in.png"], "-o must be another file than IMAGE reads"),
    "steps": (["edit", "in.png", "a", "--steps", "0"], "--steps must be between 1 and 1000, got 0"),
    "stage 2 edit": (
        ["edit", "in.png", "a", "--model", "large"],
        "--model must be of stage 1 for jdiff edit, got large, which is of stage 2",
    ),
    "no mask": (["inpaint", "in.png", "a"], "--mask is missing; give the path of a picture"),
    "mask size": (
        ["inpaint", "in.png", "a", "--mask", "wide.png"],
        "--mask must have the picture's size, 24 x 12 pixels, got wide.png with 25 x 12",
    ),
    "black": (["inpaint", "in.png", "a", "--mask", "black.png"], "got black.png, which is all black there"),
    "white": (["inpaint", "in.png", "a", "--mask", "white.png"], "got white.png, which is all white there"),
    "outside": (["inpaint", "in.png", "a", "--mask", "edge.png"], "part used, got edge.png, which is all black"),
    "resamplings": (
        ["inpaint", "in.png", "a", "--mask", "mask.png", "--resamplings", "0"],
        "--resamplings must be between 1 and 1000, got 0",
    ),
    "jump": (
        ["inpaint", "in.png", "a", "--mask", "mask.png", "--jump-length", "0"],
        "--jump-length must be between 1 and 1000, got 0",
    ),
    "view": (["anagram", "a", "b", "--view", "mirrored"], "--view must be one of identity, flip, mirror, rotate_cw"),
    "no view": (["anagram", "a", "b", "c", *FLIPS], "--view must be given 2 or 3 times for 3 prompts, got 1"),
    "views": (["anagram", "a", "b", *FLIPS * 3], "--view must be given 1 or 2 times for 2 prompts, got 3"),
    "one reading": (["anagram", "a", *FLIPS], "there must be two or more prompts, got one"),
    "no jigsaw": (["anagram", "a", "b", "--view", "jigsaw"], "--view jigsaw: "),
    "no high": (["hybrid", "--low", "a"], "--high is missing; give a prompt"),
    "sigma": (["hybrid", "--low", "a", "--high", "b", "--sigma", "8"], "--sigma must be above 0 and at most 7, got 8"),
    "two stages": (["generate", "a", "--stage2", "mini"], "--stage2 must be a stage-2 model, got mini, which"),
    "upscale nothing": (["upscale"], "IMAGE is missing; give the path of a picture"),
    "stage 1": (
        ["upscale", "in.png", "--model", "mini"],
        "--model must be of stage 2 for jdiff upscale, got mini, which is of stage 1",
    ),
    "noise": (["upscale", "in.png", "--noise-level", "1000"], "--noise-level must be between 0 and 999, got 1000"),
    "too wide for a GIF": (["generate", "a", "b", "-n", "500", "--gif", "a.gif"], "--gif: a.gif: a .gif has at most"),
    "too wide for an MP4": (["generate", "a", "b", "-n", "130", "--mp4", "a.mp4"], "--mp4: a.mp4: an .mp4 has at most"),
    "too large a sheet": (["generate", "a", "-n", "9000"], "-o: the sheet must have at most 100 megapixels, got"),
    "like another": (
        ["hybrid", "--like", "one.png"],
        "--like must be a picture that jdiff hybrid drew, got one.png, whose settings have no usable",
    ),
}  # fmt: skip


def widened(path, to, width, height):
    """The PNG at `path` with another size in its header, and nothing else."""
    data = bytearray(Path(path).read_bytes())
    data[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    Path(to).write_bytes(data)


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_and_writes_nothing(name, calls, capsys, tmp_path):
    args, message = BAD[name]
    args = [str(tmp_path / "in.png") if a == "../tmp/in.png" else a for a in args]
    Path("text.png").write_text("text")
    Path("cut.png").write_bytes(Path("in.png").read_bytes()[:300])
    widened("in.png", "huge.png", 10001, 10000)
    Image.fromarray(half((12, 25))).save("wide.png")
    for colour, value in (("black", 0), ("white", 255)):
        Image.new("L", (24, 12), value).save(f"{colour}.png")
    edge = np.zeros((12, 24), np.uint8)
    edge[:, :3] = 255
    Image.fromarray(edge).save("edge.png")
    kinds = {"model": "mini", "n": 1, "steps": 4, "guidance": 1, "negative": "", "sampler": "ddim", "seed": 0}
    kinds |= {"dtype": "float32", "prompts": ["a"], "hash": "", "versions": {}, "keep": 0, "device": "cpu"}
    images.save("one.png", pattern("a"), {"command": "hybrid", "sigma": 2.0} | kinds)
    before = {path: path.read_bytes() for path in Path().iterdir()}
    assert main(*args) == 2
    out, err = capsys.readouterr()
    err = err.removeprefix(CROPPED)  # what is wrong beyond the files is found after them
    assert out == "" and err.count("\n") == 1 and err.startswith("jdiff: ") and message in err
    assert {path: path.read_bytes() for path in Path().iterdir()} == before
    assert calls == [] or name == "strength small"


def test_files_of_like_are_found_beside_the_picture(calls, tmp_path, monkeypatch, capsys):
    """First where the command runs, then beside the picture; of two, the one with the right content."""
    assert main("edit", "in.png", "one", "-n", 1, "-o", "a.png") == 0
    monkeypatch.chdir(tmp_path.parent)
    assert main("edit", "--like", tmp_path / "a.png") == 0
    np.testing.assert_array_equal(images.load(tmp_path / "a-again.png"), images.load(tmp_path / "a.png"))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    images.save("in.png", rng.uniform(-1, 1, (12, 24, 3)))
    capsys.readouterr()
    assert main("edit", "--like", tmp_path / "a.png") == 0
    assert capsys.readouterr().err == CROPPED.replace("in.png", str(tmp_path / "in.png"))
    np.testing.assert_array_equal(images.load(tmp_path / "a-again.png"), images.load(tmp_path / "a.png"))


@pytest.mark.parametrize(("count", "side", "devices", "each"), [
    (1, 32, 1, None), (256, 32, 2, None), (257, 32, 1, 129), (300, 32, 8, 152), (5, 256, 1, 3), (5, 1024, 2, 2),
])  # fmt: skip
def test_many_pictures_are_drawn_in_groups_of_about_one_size(count, side, devices, each):
    assert make.at_once(count, side, devices) == each
    assert each is None or (each % devices == 0 and each * side**2 <= max(make.AT_ONCE * 1.2, devices * side**2))


@pytest.mark.parametrize("command", ["edit", "inpaint", "anagram", "hybrid", "upscale"])
def test_settings_are_json_and_flags_survive(command, calls):
    """What every command takes from generate: the shared flags, in the settings and again in what --like asks."""
    args = {
        "edit": ["in.png", "a"],
        "inpaint": ["in.png", "a", "--mask", "mask.png"],
        "anagram": ["a", "b", "--view", "negate"],
        "hybrid": ["--low", "a", "--high", "b"],
        "upscale": ["in.png", "a", "--model", "large"],
    }[command]
    shared = ["-n", 1, "--steps", 3, "--guidance", 2, "--negative", "c", "--sampler", "deepfloyd", "--seed", 7]
    asked = parse.parse([command, *args, *map(str, shared), "--dtype", "bfloat16"])
    assert isinstance(asked, Drawing) and asked.name == command
    files = asked.read()
    loaded = model(asked.model, SIDE, 6 if command == "upscale" else 3)
    told = settings.of(asked, files, loaded, loaded.hash, "deepfloyd", 3, None)
    images.save("a.png", pattern("a"), told)
    assert json.loads(json.dumps(told))["guidance"] == 2 and set(asked.own) <= set(told)
    again = parse.parse([command, "--like", "a.png"])
    unlike = ("output", "like")
    assert vars(again) | {name: None for name in unlike} == vars(asked) | {name: None for name in unlike}
