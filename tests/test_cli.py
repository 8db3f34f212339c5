"""The command: what it writes, that it makes a picture again, and one line for whatever it cannot do."""

import json
import os
import subprocess
import sys
import types
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from PIL import Image

from jdiff import images
from jdiff.cli import main as cli

ROOT = Path(__file__).resolve().parents[1]


def command(*args, cwd, **env):
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    env = os.environ | {"PYTHONPATH": path} | env
    return subprocess.run([sys.executable, *args], cwd=cwd, env=env, capture_output=True, text=True, timeout=300)


def main(*args):
    """Exit status of the command in this process."""
    try:
        return cli.main([str(a) for a in args])
    except SystemExit as error:
        return error.code


class Defaults(NamedTuple):
    sampler: str = "diffusers"
    steps: int = 5
    guidance: float = 3.0


class Model(NamedTuple):
    name: str
    hash: str = "0123456789abcdef" * 4
    defaults: Defaults = Defaults()


class Samples(NamedTuple):
    images: Any
    way: Any


@pytest.fixture
def calls(monkeypatch, tmp_path):
    """Stand-ins for loading and sampling, in an empty folder; what they are called with."""
    made = []

    def load(name, dtype="float32", **_):
        if name != "mini":
            raise ValueError(f"name_or_folder is {name!r},\n  accepted is mini or a folder of jdiff")
        return Model(name)

    def generate(model, prompts, key, *, n, steps, guidance, negative, sampler, keep, progress, mesh):
        made.append(dict(prompts=list(prompts), n=n, steps=steps, guidance=guidance, sampler=sampler, keep=keep))
        seeds = [*np.asarray(jax.random.key_data(key)).tolist(), steps, int(100 * guidance), len(negative)]
        p = len(prompts)
        rows = [np.random.default_rng([*seeds, *text.encode()]).uniform(-1, 1, (n, 8, 8, 3)) for text in prompts]
        images = np.stack(rows).astype(np.float32)
        for i in range(steps):
            progress(i + 1, steps)
        way = np.linspace(2, 1, keep).reshape(1, 1, keep, 1, 1, 1) * images[:, :, None] if keep else None
        assert images.shape == (p, n, 8, 8, 3)
        return Samples(images, way)

    samplers = {name: types.SimpleNamespace(steps=9) for name in ("diffusers", "deepfloyd", "course")}
    monkeypatch.setitem(sys.modules, "jdiff.model", types.SimpleNamespace(load=load))
    monkeypatch.setitem(sys.modules, "jdiff.sample", types.SimpleNamespace(generate=generate, SAMPLERS=samplers))
    monkeypatch.setenv("JDIFF_CACHE", "")
    monkeypatch.chdir(tmp_path)
    return made


def test_one_line_says_what_was_written(calls, capsys):
    assert main("generate", "a red three", "-o", "three.png") == 0
    out, err = capsys.readouterr()
    assert out == "wrote three.png: 4 pictures, 8 x 8\n"
    assert err.startswith("\r") or err == ""  # a bar that lasted half a second, or none
    assert calls == [dict(prompts=["a red three"], n=4, steps=5, guidance=3.0, sampler="diffusers", keep=0)]
    assert images.load("three.png").shape[0] > 2 * 192 and os.listdir() == ["three.png"]
    assert main("generate", "a red three", "--quiet") == 0
    out, err = capsys.readouterr()
    assert (out, err) == ("wrote out.png: 4 pictures, 8 x 8\n", "")


def test_every_png_holds_all_settings(calls):
    flags = "-n 3 --steps 7 --guidance 2.5 --negative blue --sampler course --seed 4 --dtype bfloat16".split()
    assert main("generate", "a red three", "Ä two", *flags, "--separate", "--quiet") == 0
    assert sorted(os.listdir()) == sorted(["out.png", *(f"out-{i}-{j}.png" for i in (0, 1) for j in (0, 1, 2))])
    found = images.read_settings("out.png")
    versions = found.pop("versions")
    assert set(versions) == {"jdiff", "jax", "flax", "numpy"} and versions["jax"] == jax.__version__
    assert found == {
        "command": "generate",
        "model": "mini",
        "hash": Model("").hash,
        "prompts": ["a red three", "Ä two"],
        "stage2": None,
        "n": 3,
        "steps": 7,
        "guidance": 2.5,
        "negative": "blue",
        "encoder": None,
        "embeddings": None,
        "embeddings_sha256": None,
        "sampler": "course",
        "seed": 4,
        "dtype": "bfloat16",
        "keep": 0,
        "image": None,
        "device": jax.devices()[0].device_kind,
    }
    assert images.read_settings("out-1-2.png") == found | {"versions": versions, "image": [1, 2]}


def test_arrays_and_animation(calls):
    assert main("generate", "one", "two", "-n", 3, "--npz", "a.npz", "--gif", "a.gif", "--separate", "--quiet") == 0
    arrays = np.load("a.npz")
    assert arrays["images"].shape == (6, 8, 8, 3) and arrays["images"].dtype == np.float32
    assert arrays["prompts"].tolist() == ["one"] * 3 + ["two"] * 3
    for row, (i, j) in enumerate((i, j) for i in (0, 1) for j in (0, 1, 2)):
        expected = images.to_uint8(arrays["images"][row])
        np.testing.assert_array_equal(images.to_uint8(images.load(f"out-{i}-{j}.png")), expected)
    with Image.open("a.gif") as gif, Image.open("out.png") as png:
        assert 15 <= gif.n_frames <= 25 and gif.size == png.size
    assert calls[0]["keep"] == 20


def test_like_makes_the_same_again(calls, capsys):
    first = ["generate", "one", "two", "-n", "3", "--steps", "7", "--guidance", "2.5", "--seed", "9", "--separate"]
    assert main(*first, "-o", "a.png", "--gif", "a.gif", "--quiet") == 0
    assert main("generate", "--like", "a.png", "--quiet") == 0
    assert capsys.readouterr().err == ""
    assert calls[1] == calls[0]
    assert Path("a-again.png").read_bytes() == Path("a.png").read_bytes()
    assert main("generate", "--like", "a-1-2.png", "-o", "alone.png", "--quiet") == 0
    assert Path("alone.png").read_bytes() == Path("a-1-2.png").read_bytes()


def test_a_sampler_brings_its_number_of_steps(calls):
    assert main("generate", "one", "--sampler", "course", "--quiet") == 0
    assert main("generate", "one", "--quiet") == 0
    assert [call["steps"] for call in calls] == [9, 5]


def test_the_bar_shows_what_takes_long(capsys):
    import time

    for quiet in (False, True):
        with cli._Bar(8, quiet) as progress:
            time.sleep(0.7)
            progress(4, 8)
        err = capsys.readouterr().err
        assert err == "" if quiet else ("compiling" in err and "sampling" in err and "4/8" in err)


def test_flags_beside_like_override(calls):
    assert main("generate", "one", "--seed", "9", "--separate", "--quiet") == 0
    assert main("generate", "two", "--like", "out-0-1.png", "-n", "2", "--steps", "3", "-o", "b.png", "--quiet") == 0
    assert calls[1] == calls[0] | dict(prompts=["two"], n=2, steps=3)
    found = images.read_settings("b.png")
    assert (found["seed"], found["image"]) == (9, None)


def test_like_notes_in_one_line_what_is_different(calls, capsys):
    assert main("generate", "one", "--quiet") == 0
    found = images.read_settings("out.png")
    found["versions"]["jax"], found["hash"] = "0.1.2", "f" * 64
    images.save("old.png", images.load("out.png"), found)
    capsys.readouterr()
    assert main("generate", "--like", "old.png", "--quiet") == 0
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "0.1.2" in err and "ffffffffffff" in err and "jdiff: note:" in err


BAD = {  # arguments, and what the line must have in it: the value given and what is accepted
    "no prompt": ([], "no prompt is given, accepted is one or more"),
    "steps 0": (["a", "--steps", "0"], "--steps is 0, accepted is 1 to 1000"),
    "steps 2000": (["a", "--steps", "2000"], "--steps is 2000, accepted is 1 to 1000"),
    "n": (["a", "-n", "0"], "-n is 0, accepted is 1 or more"),
    "guidance": (["a", "--guidance", "nan"], "--guidance is nan, accepted is any finite number"),
    "infinite": (["a", "--guidance", "inf"], "--guidance is inf, accepted is any finite number"),
    "seed": (["a", "--seed", "-1"], "--seed is -1, accepted is 0 to 4294967295"),
    "bytes": (["a\udcff"], r"'a\udcff', accepted is text in UTF-8"),
    "sampler": (["a", "--sampler", "euler"], "--sampler is euler, accepted are course, deepfloyd, diffusers"),
    "model": (["a", "--model", "nowhere"], "'nowhere', accepted is mini or a folder of jdiff"),
    "no model": (["a", "--model", ""], "--model is empty, accepted is"),
    "folder": (["a", "-o", "nowhere/out.png"], "-o is nowhere/out.png, but there is no folder nowhere, accepted is"),
    "suffix": (["a", "-o", "out.jpg"], "-o is out.jpg, accepted is a file that ends in .png"),
    "a folder": (["a", "-o", "folder.png"], "-o is folder.png, a folder, accepted is a file that ends in .png"),
    "alone": (["a", "-o", "x.png", "--separate"], "--separate is x-0-1.png, a folder, accepted is a file"),
    "gif": (["a", "--gif", "way.mp4"], "--gif is way.mp4, accepted is a file that ends in .gif"),
    "npz": (["a", "--npz", "nowhere/a.npz"], "--npz is nowhere/a.npz, but there is no folder nowhere, accepted is"),
    "like nothing": (["--like", "nowhere.png"], "--like is nowhere.png: there is no such file; give"),
    "like text": (["--like", "text.png"], "--like is text.png: this is no picture that can be read"),
    "like foreign": (["--like", "foreign.png"], "--like is foreign.png has no settings of jdiff in it; give"),
    "like another": (["--like", "another.png"], "without usable model, n, steps"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_and_writes_nothing(name, calls, capsys):
    Path("folder.png").mkdir()
    Path("x-0-1.png").mkdir()
    Path("text.png").write_text("text")
    images.save("foreign.png", np.zeros((2, 2, 3)))
    images.save("another.png", np.zeros((2, 2, 3)), {"command": "convert"})
    Path("out.png").write_bytes(b"old")
    before = {path: path.is_dir() or path.read_bytes() for path in Path().iterdir()}
    args, message = BAD[name]
    assert main("generate", *args) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("jdiff: ") and message in err
    assert {path: path.is_dir() or path.read_bytes() for path in Path().iterdir()} == before and calls == []


@pytest.mark.parametrize(
    "args", [[], ["paint"], ["generate", "a", "--steps", "x"], ["generate", "a", "--dtype", "int8"]]
)
def test_usage_errors_exit_2(args, capsys):
    assert main(*args) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_pictures_that_are_not_finite_are_not_written(calls, monkeypatch, capsys):
    broken = Samples(np.full((1, 4, 8, 8, 3), np.nan, np.float32), None)
    monkeypatch.setattr(sys.modules["jdiff.sample"], "generate", lambda *args, **kwargs: broken)
    assert main("generate", "a", "--dtype", "float16", "--quiet") == 2
    assert "no picture is finite; try a wider dtype than float16" in capsys.readouterr().err and os.listdir() == []


def test_one_picture_that_is_not_finite_does_not_cost_the_others(calls, monkeypatch, capsys):
    made = np.full((1, 4, 8, 8, 3), 0.5, np.float32)
    made[0, 2, 0, 0, 0] = np.nan
    monkeypatch.setattr(sys.modules["jdiff.sample"], "generate", lambda *args, **kwargs: Samples(made, None))
    assert main("generate", "a", "--quiet", "--npz", "a.npz") == 0
    assert "1 of 4 pictures are not finite and left black: 2 of prompt 0" in capsys.readouterr().err
    kept = np.load("a.npz")["images"]
    assert kept[2].max() == -1 and (kept[[0, 1, 3]] == 0.5).all()


def test_a_file_that_cannot_be_written_is_status_1(calls, monkeypatch, capsys):
    def full(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(images, "save", full)
    assert main("generate", "a", "--quiet") == 1
    assert capsys.readouterr().err == "jdiff: disk full\n"


def test_interrupted_is_130(calls, monkeypatch, capsys):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(sys.modules["jdiff.model"], "load", interrupt)
    assert main("generate", "a") == 130
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("n, ratio", [(1, 1), (2, 0.5), (3, 1 / 3), (4, 1), (5, 1 / 5), (6, 2 / 3), (7, 1), (8, 0.5)])
def test_one_prompts_pictures_lie_in_a_neat_block(n, ratio):
    height, width = cli.sheet(-np.ones((1, n, 64, 64, 3)), ["a"]).shape[:2]
    assert height / width == pytest.approx(ratio, abs=0.3)


def test_compilations_are_cached_where_told(tmp_path, monkeypatch):
    names = ("compilation_cache_dir", "persistent_cache_min_compile_time_secs", "persistent_cache_min_entry_size_bytes")
    before = {f"jax_{name}": getattr(jax.config, f"jax_{name}") for name in names}
    old = jax.config.jax_compilation_cache_dir
    try:
        monkeypatch.setenv("JDIFF_CACHE", "")
        cli.cache_compilations()
        assert jax.config.jax_compilation_cache_dir == old
        (tmp_path / "file").write_text("in the way")
        monkeypatch.setenv("JDIFF_CACHE", str(tmp_path / "file" / "xla"))
        cli.cache_compilations()
        assert jax.config.jax_compilation_cache_dir == old
        monkeypatch.setenv("JDIFF_CACHE", str(tmp_path / "xla"))
        cli.cache_compilations()
        assert jax.config.jax_compilation_cache_dir == str(tmp_path / "xla") and (tmp_path / "xla").is_dir()
    finally:
        for name, value in before.items():
            jax.config.update(name, value)


def test_convert_hands_over_and_lists_what_is_wrong(tmp_path, monkeypatch, capsys):
    seen = []

    def convert(source, target, *, dtype):
        seen.append((source, target, dtype))
        if dtype == "float16":
            raise ValueError("2 things are wrong:\n  conv_in is missing\n  conv_out is surplus")

    monkeypatch.setattr("jdiff.checkpoints.convert.convert", convert)
    target = tmp_path / "new"
    assert main("convert", tmp_path, target, "--dtype", "bfloat16") == 0
    assert seen == [(tmp_path, target, "bfloat16")] and capsys.readouterr().out == f"wrote {target}\n"
    assert main("convert", tmp_path, target, "--dtype", "float16") == 2
    assert "conv_out is surplus" in capsys.readouterr().err
    for args in ((tmp_path / "no", target), (tmp_path, tmp_path / "no" / "new")):
        assert main("convert", *args) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1 and "accepted is" in err
    assert len(seen) == 2


def test_the_command_starts_without_jax(tmp_path):
    done = command(
        "-c", "import sys, jdiff.cli.main; print([m for m in ('jax', 'flax') if m in sys.modules])", cwd=tmp_path
    )
    assert (done.stdout, done.stderr) == ("[]\n", "")


# From here on with the real model.


def test_a_picture_from_an_empty_folder(tmp_path):
    args = ("-m", "jdiff", "generate", "a red three", "--steps", "2", "-n", "1", "-o", "three.png")
    done = command(*args, cwd=tmp_path, JDIFF_CACHE=str(tmp_path / "cache"))
    assert (done.returncode, done.stdout) == (0, "wrote three.png: 1 picture, 32 x 32\n"), done.stderr
    assert "Traceback" not in done.stderr and images.read_settings(tmp_path / "three.png")["model"] == "mini"


def test_ctrl_c_ends_it_quietly(tmp_path):
    """A signal in the middle of the work: status 130 at once, no traceback, no file."""
    code = """
import os, signal, sys, threading, time
from jdiff.cli import main as cli
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs begin with it ignored
threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
cli.interruptible(lambda: time.sleep(60))
"""
    done = command("-c", code, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with everything the mini model's pictures can be written to."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JDIFF_CACHE", "")
        flags = ["-n", 2, "--steps", 6, "--separate", "--gif", folder / "a.gif", "--npz", folder / "a.npz"]
        assert main("generate", "a red three", "a blue seven on white", *flags, "-o", folder / "a.png") == 0
    return folder


def test_the_real_pictures_are_in_range_and_differ(made):
    arrays = np.load(made / "a.npz")
    pictures = arrays["images"]
    assert pictures.shape == (4, 32, 32, 3) and pictures.dtype == np.float32 and np.abs(pictures).max() <= 1
    assert len({picture.tobytes() for picture in pictures}) == 4 and pictures.std() > 0.1
    alone = images.load(made / "a-1-0.png")
    np.testing.assert_array_equal(images.to_uint8(alone), images.to_uint8(pictures[2]))
    with Image.open(made / "a.gif") as gif:
        assert gif.n_frames >= 4


def test_the_real_picture_is_made_again_to_the_bit(made, monkeypatch, capsys):
    monkeypatch.setenv("JDIFF_CACHE", "")
    for name in ("a", "a-0-1"):
        assert main("generate", "--like", made / f"{name}.png", "--quiet") == 0
        assert capsys.readouterr().err == ""
        np.testing.assert_array_equal(images.load(made / f"{name}-again.png"), images.load(made / f"{name}.png"))
    again, first = (images.read_settings(made / name) for name in ("a-again.png", "a.png"))
    assert json.dumps(again) == json.dumps(first)


@pytest.mark.parametrize("make", ["nowhere", "foreign"])
def test_real_models_that_are_none(make, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("JDIFF_CACHE", "")
    model = tmp_path / make
    if make == "foreign":
        model.mkdir()
        (model / "config.json").write_text(json.dumps({"_class_name": "VQModel"}))
        (model / "model.safetensors").write_bytes(b"foreign")
    assert main("generate", "a red three", "--model", model, "-o", tmp_path / "out.png") == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and make in err and "model must be" in err
    assert not (tmp_path / "out.png").exists()
