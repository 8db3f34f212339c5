"""The command as a process: what it writes and says, how it ends, and what it leaves. The mini model draws for real."""

import contextlib
import errno
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from PIL import Image

import jdiff
from jdiff import images, parts
from jdiff import sample as tasks
from jdiff.cli import cache, errors, outputs
from jdiff.cli import main as cli
from jdiff.progress import Bar
from jdiff.training.log import Log

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "scripts"))
import fuzz_commands  # noqa: E402  # pyright: ignore[reportMissingImports]
import fuzz_signals  # noqa: E402  # pyright: ignore[reportMissingImports]

TWO = ["generate", "a red three", "a blue seven", "-n", "2", "--steps", "3", "--quiet"]
ONE = ["generate", "a red three", "-n", "1", "--steps", "2"]
NOTE = "jdiff: note: the model mini does not know 'Ä'; its prompts are like 'a red three' and 'a blue seven on white'\n"
OPTIONS = ["--seed", "4", "--guidance", "2.5", "--negative", "green", "--sampler", "deepfloyd"]
IS_ROOT = os.name == "posix" and os.geteuid() == 0


def main(*args):
    """Exit status of the command in this process."""
    try:
        return cli.main([str(a) for a in args])
    except SystemExit as error:
        return error.code


@pytest.fixture(scope="session")
def compiled(tmp_path_factory):
    """A cache that the processes of all tests share, so that one of them compiles."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder to be in, without a cache."""
    monkeypatch.setenv("JDIFF_CACHE", "")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with every kind of file that one command writes."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JDIFF_CACHE", "")
        files = ["--separate", "--gif", folder / "a.gif", "--npz", folder / "a.npz", "-o", folder / "a.png"]
        assert main("generate", "a red three", "Ä blue seven", *TWO[3:], *OPTIONS, *files) == 0
    return folder


def environment(compiled, **more):
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    return os.environ | {"PYTHONPATH": path, "JDIFF_CACHE": str(compiled)} | more


def shell(line, cwd, compiled, *before, **more):
    """Runs `jdiff` + line by a shell; raises where it takes a minute and a half."""
    line = " ".join([*before, sys.executable, "-m", "jdiff", line])
    return subprocess.run(
        line, shell=True, cwd=cwd, env=environment(compiled, **more), capture_output=True, text=True, timeout=90
    )


# --- what it writes and says


def test_one_line_says_what_was_written(here, capsys):
    assert main(*ONE, "-o", "three.png") == 0
    out, err = capsys.readouterr()
    assert out == "wrote three.png: 1 picture, 32 x 32\n"
    assert err.startswith("\r") or err == ""  # a bar that lasted half a second, or none
    assert images.load("three.png").shape[0] > 192 and os.listdir() == ["three.png"]
    assert main(*ONE, "--quiet") == 0
    assert capsys.readouterr() == ("wrote out.png: 1 picture, 32 x 32\n", "")


def test_every_png_holds_all_settings(made):
    names = ["a.gif", "a.npz", "a.png", *(f"a-{i}-{j}.png" for i in (0, 1) for j in (0, 1))]
    assert sorted(os.listdir(made)) == sorted(names)
    found = images.read_settings(made / "a.png")
    versions, weights = found.pop("versions"), found.pop("hash")
    assert set(versions) == {"jdiff", "jax", "flax", "numpy"} and versions["jax"] == jax.__version__
    assert len(weights) == 64 and int(weights, 16)
    assert found == {
        "command": "generate",
        "model": "mini",
        "prompts": ["a red three", "Ä blue seven"],
        "stage2": None,
        "n": 2,
        "steps": 3,
        "guidance": 2.5,
        "size": None,
        "negative": "green",
        "encoder": None,
        "embeddings": None,
        "embeddings_sha256": None,
        "sampler": "deepfloyd",
        "seed": 4,
        "dtype": "float32",
        "keep": 20,
        "image": None,
        "device": jax.devices()[0].device_kind,
    }
    alone = images.read_settings(made / "a-1-0.png")
    assert alone == found | {"versions": versions, "hash": weights, "image": [1, 0]}


def test_arrays_pictures_and_animation_agree(made):
    arrays = np.load(made / "a.npz")
    pictures = arrays["images"]
    assert pictures.shape == (4, 32, 32, 3) and pictures.dtype == np.float32 and np.abs(pictures).max() <= 1
    assert len({picture.tobytes() for picture in pictures}) == 4 and pictures.std() > 0.1
    assert arrays["prompts"].tolist() == ["a red three"] * 2 + ["Ä blue seven"] * 2
    for row, (i, j) in enumerate(np.ndindex(2, 2)):
        alone = images.to_uint8(images.load(made / f"a-{i}-{j}.png"))
        np.testing.assert_array_equal(alone, images.to_uint8(pictures[row]))
    sheet = outputs.sheet(pictures.reshape(2, 2, 32, 32, 3), ["a red three", "Ä blue seven"])
    np.testing.assert_array_equal(images.to_uint8(images.load(made / "a.png")), sheet)
    with Image.open(made / "a.gif") as gif, Image.open(made / "a.png") as png:
        assert gif.n_frames == 3 and gif.size == png.size


def test_like_draws_the_same_again(made, here, capsys):
    for name in ("a", "a-0-1"):
        assert main("generate", "--like", made / f"{name}.png", "--quiet") == 0
        assert capsys.readouterr().err == NOTE
        assert (made / f"{name}-again.png").read_bytes() == (made / f"{name}.png").read_bytes()
        (made / f"{name}-again.png").unlink()


def test_flags_beside_like_override(made, here, capsys):
    assert main("generate", "a red three", "--like", made / "a-0-1.png", "-n", 1, "--steps", 2, "-o", "b.png") == 0
    found, before = (images.read_settings(path) for path in ("b.png", made / "a-0-1.png"))
    changed = {name for name in found if found[name] != before[name]}
    assert changed == {"prompts", "n", "steps", "image"} and found["image"] is None
    assert "note" not in capsys.readouterr().err


def test_like_notes_in_one_line_what_differs(here, capsys):
    assert main(*ONE, "--quiet") == 0
    found = images.read_settings("out.png")
    found["versions"]["jax"], found["hash"] = "0.1.2", "f" * 64
    images.save("old.png", images.load("out.png"), found)
    capsys.readouterr()
    assert main("generate", "--like", "old.png", "--quiet") == 0
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "0.1.2" in err and "ffffffffffff" in err and "jdiff: note:" in err


def test_a_sampler_brings_its_number_of_steps(here):
    assert main("generate", "a red three", "-n", 1, "--sampler", "dpmpp_2m", "--quiet") == 0
    assert images.read_settings("out.png")["steps"] == tasks.SAMPLERS["dpmpp_2m"].steps == 25


@pytest.mark.filterwarnings("default:one step from")
@pytest.mark.parametrize("sampler", ["diffusers", "deepfloyd", "ddim", "course"])
def test_one_step_that_returns_noise_says_so(sampler, here, capsys):
    """One step at t = 0 leaves the noise it starts from, one at t = 999 divides by almost 0; the course takes 990."""
    assert (
        main("generate", "a red three", "-n", 1, "--steps", 1, "--sampler", sampler, "--quiet", "--npz", "a.npz") == 0
    )
    told = capsys.readouterr().err
    noise = np.load("a.npz")["images"][0]
    roughness = np.abs(np.diff(noise, axis=0)).mean()
    assert ("jdiff: note: one step from t = " in told and "returns noise; use more steps" in told) == (roughness > 0.65)
    assert told.count("\n") == (sampler != "course")


@pytest.mark.parametrize("n, ratio", [(1, 1), (2, 0.5), (3, 1 / 3), (4, 1), (5, 1 / 5), (6, 2 / 3), (7, 1), (8, 0.5)])
def test_one_prompts_pictures_lie_in_a_neat_block(n, ratio):
    height, width = outputs.sheet(-np.ones((1, n, 64, 64, 3)), ["a"]).shape[:2]
    assert height / width == pytest.approx(ratio, abs=0.3)
    assert outputs._sheet_size(["a"], n, 64, 64) == (height, width)


# --- pictures that are not finite


def broken(*places):
    """`generate` of the library, with NaN in these pictures of the first prompt."""
    generate = tasks.generate

    def spoiled(*args, **how):
        made = generate(*args, **how)
        return made._replace(images=made.images.at[0, jnp.array(places), 0, 0, 0].set(jnp.nan))

    return spoiled


def test_one_picture_that_is_not_finite_does_not_cost_the_others(here, monkeypatch, capsys):
    monkeypatch.setattr(tasks, "generate", broken(1))
    assert main(*TWO, "--npz", "a.npz", "--separate", "--gif", "a.gif", "--dtype", "bfloat16") == 0
    out, err = capsys.readouterr()
    assert "1 of 4 pictures are not finite and left out: 1 of prompt 0; try a wider dtype than bfloat16" in err
    assert err.count("\n") == 1 and out.endswith("a.gif: 3 pictures, 32 x 32\n")
    assert not Path("out-0-1.png").exists() and Path("out-1-1.png").exists()
    kept = np.load("a.npz")["images"]
    assert np.isnan(kept[1]).all() and np.isfinite(kept[[0, 2, 3]]).all()
    cells = np.array(images.load("out.png"))[60:70, -60:-50]  # of the empty cell at the top right
    assert (cells == 1).all()


def test_no_finite_picture_is_an_error_and_nothing_is_written(here, monkeypatch, capsys):
    monkeypatch.setattr(tasks, "generate", broken(0))
    assert main(*ONE, "--quiet", "--dtype", "bfloat16") == 2
    err = capsys.readouterr().err
    guidance = jdiff.load("mini").defaults.guidance
    assert err == f"jdiff: no picture is finite; try a wider dtype than bfloat16, or less guidance than {guidance}\n"
    assert os.listdir() == []


# --- bad input


BAD = {  # arguments, and what the line must have in it: what is wrong, the value, and what to do
    "no command": ([], "a command is missing; give one of generate, edit,"),
    "another command": (["paint"], "unknown flag or command: paint; see jdiff COMMAND --help"),
    "another flag": (["generate", "a", "--nope", "3"], "unknown flag or command: --nope, 3; see jdiff COMMAND --help"),
    "no value": (["generate", "a", "--steps"], "--steps needs a value"),
    "no number": (["generate", "a", "--steps", "x"], "--steps must be a whole number, got 'x'"),
    "no prompt": (["generate"], "no prompt is given; give one or more, such as jdiff generate 'a red three'"),
    "steps 0": (["generate", "a", "--steps", "0"], "--steps must be between 1 and 1000, got 0"),
    "steps 2000": (["generate", "a", "--steps", "2000"], "--steps must be between 1 and 1000, got 2000"),
    "n": (["generate", "a", "-n", "0"], "-n must be between 1 and 10000, got 0"),
    "huge n": (["generate", "a", "b", "-n", "9" * 23], f"-n must be between 1 and 5000 for 2 prompts, got {'9' * 23}"),
    "guidance": (["generate", "a", "--guidance", "nan"], "--guidance must be a finite number, got nan"),
    "infinite": (["generate", "a", "--guidance", "inf"], "--guidance must be a finite number, got inf"),
    "seed": (["generate", "a", "--seed", "-1"], "--seed must be between 0 and 4294967295, got -1"),
    "dtype": (["generate", "a", "--dtype", "int8"], "--dtype must be one of float32, bfloat16, float16, got 'int8'"),
    "bytes": (["generate", "a\udcff"], r"a prompt must be text in UTF-8, got 'a\udcff'"),
    "sampler": (["generate", "a", "--sampler", "euler"], "--sampler must be one of course, ddim, deepfloyd, diffusers"),
    "model": (["generate", "a", "--model", "nowhere"], "got 'nowhere', which does not exist"),
    "no model": (["generate", "a", "--model", ""], "--model must be the name or folder of a model, got ''"),
    "folder": (["generate", "a", "-o", "nowhere/out.png"], "-o must be in a folder that exists, got nowhere/out.png"),
    "suffix": (["generate", "a", "-o", "out.jpg"], "-o must be a file that ends in .png, got out.jpg"),
    "a folder": (["generate", "a", "-o", "f.png"], "-o must be a file that ends in .png, got f.png, which is a folder"),
    "alone": (["generate", "a", "-o", "x.png", "--separate"], "--separate must be a file that ends in .png, got x-0-1"),
    "read-only": (["generate", "a", "-o", "kept.png"], "-o must be a file that can be replaced, got kept.png"),
    "long": (["generate", "a", "-o", "x" * 252 + ".png"], "-o must have a name of at most 255 bytes, got 256 in xx"),
    "alone is long": (["generate", "a", "--separate", "-o", "x" * 251 + ".png"], "--separate must have a name of at m"),
    "gif": (["generate", "a", "--gif", "way.mp4"], "--gif must be a file that ends in .gif, got way.mp4"),
    "npz": (["generate", "a", "--npz", "nowhere/a.npz"], "--npz must be in a folder that exists, got nowhere/a.npz"),
    "like nothing": (["generate", "--like", "nowhere.png"], "--like: nowhere.png: there is no such file"),
    "like text": (["generate", "--like", "text.png"], "--like: text.png: this is no picture that can be read"),
    "like foreign": (["generate", "--like", "foreign.png"], "--like: foreign.png has no settings of jdiff in it"),
    "like another": (["generate", "--like", "another.png"], "drew, got another.png, which is another command's"),
    "like a part": (["generate", "--like", "part.png"], "got part.png, whose settings have no usable model, n, steps"),
    "no source": (["convert"], "SRC is missing; give the folder to convert"),
    "no target": (["convert", "f.png"], "DST is missing; give the new folder to write"),
    "no folder": (["convert", "nowhere", "new"], "SRC must be a folder with config.json in it, got nowhere"),
    "an old target": (["convert", "f.png", "x-0-1.png"], "DST must be a new folder, got x-0-1.png, which exists"),
    "a deep target": (["convert", "f.png", "no/new"], "DST must be in a folder that exists, got no/new"),
    "no weights": (["convert", "f.png", "new"], "src must be a folder with config.json or unet/ in it, got f.png"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_and_writes_nothing(name, here, capsys):
    Path("f.png").mkdir()
    Path("x-0-1.png").mkdir()
    Path("text.png").write_text("text")
    Path("kept.png").write_text("kept")
    Path("kept.png").chmod(0o444)
    for file, told in (("foreign", None), ("another", {"command": "convert"}), ("part", {"command": "generate"})):
        images.save(f"{file}.png", np.zeros((2, 2, 3)), told)
    Path("out.png").write_bytes(b"old")
    before = fuzz_commands.inventory(here)
    args, message = BAD[name]
    assert main(*args) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("jdiff: ") and message in err
    assert fuzz_commands.inventory(here) == before


def test_any_bad_command_line_is_one_line_and_writes_nothing(tmp_path, monkeypatch):
    """Over every flag of every command; scripts/fuzz_commands.py has more of them."""
    monkeypatch.setenv("JDIFF_CACHE", "")
    fuzz_commands.furnish(tmp_path)

    @settings(max_examples=150, deadline=None, database=None, derandomize=True, suppress_health_check=[*HealthCheck])
    @given(fuzz_commands.cases())
    def each(case):
        assert fuzz_commands.judge(case, tmp_path) == "", case

    each()


def test_real_models_that_are_none(here, capsys):
    Path("foreign").mkdir()
    Path("foreign/config.json").write_text(json.dumps({"_class_name": "VQModel"}))
    Path("foreign/model.safetensors").write_bytes(b"foreign")
    assert main(*ONE, "--model", "foreign") == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and "model must be" in err and "foreign" in err
    assert os.listdir() == ["foreign"]


def test_convert_lists_all_that_is_wrong_in_one_line(here, capsys):
    Path("src/unet").mkdir(parents=True)
    Path("src/unet/config.json").write_text("{}")
    assert main("convert", "src", "new") == 2
    err = capsys.readouterr().err
    assert err.startswith("jdiff: src does not hold the weights of this network: ") and err.count("\n") == 1
    assert os.listdir() == ["src"]


# --- help and terminals


def test_the_command_starts_without_jax(tmp_path, compiled):
    code = "import sys, jdiff.cli.parse; print([m for m in ('jax', 'flax') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], env=environment(compiled), capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_help_fits_any_terminal(tmp_path, compiled):
    for columns in ("1", "5", "39"):
        done = shell("generate --help", tmp_path, compiled, COLUMNS=columns)
        assert done.returncode == 0 and "--steps" in done.stdout and done.stderr == ""
    done = shell("generate --help | head -c 20", tmp_path, compiled)
    assert (done.stdout, done.stderr) == ("usage: jdiff generat", "")
    done = shell("generate --help", tmp_path, compiled, PYTHONIOENCODING="ascii")
    assert done.returncode == 0 and "--steps" in done.stdout and done.stdout.isascii()


@pytest.mark.skipif(not shutil.which("script"), reason="it takes a terminal, which `script` of util-linux makes")
@pytest.mark.parametrize("value, coloured", [("", True), ("1", False)])
def test_no_color_is_honoured(value, coloured, tmp_path, compiled):
    line = f"{sys.executable} -m jdiff generate --help"
    env = environment(compiled, NO_COLOR=value, TERM="xterm")
    done = subprocess.run(["script", "-qec", line, "/dev/null"], env=env, capture_output=True, text=True, timeout=90)
    assert done.returncode == 0 and "--steps" in done.stdout and ("\x1b[" in done.stdout) == coloured


# --- progress, reports and streams


def test_the_bar_shows_what_takes_long(capsys):
    for quiet in (False, True):
        with Bar(8, unit="step", label="compiling", quiet=quiet, delay=0.2) as bar:
            quiet or bar._timer.join()
            bar.update(4, 8, label="sampling")
        err = capsys.readouterr().err
        assert err == "" if quiet else ("compiling" in err and "sampling" in err and "4/8" in err)


def test_a_bar_that_was_shown_once_is_cleared_away(capsys):
    """An error behind it stands on a line of its own, even where nothing was done in the meantime."""
    with Bar(8, unit="step", label="compiling", delay=0.1) as bar:
        bar._timer.join()
    err = capsys.readouterr().err
    assert "compiling" in err and err.endswith("\r") and not err.rstrip("\r").rpartition("\r")[2].strip()


class Refusing:
    """A stream that cannot be written to, as a full disk, a closed file, or a pipe without a reader."""

    encoding = "utf-8"

    def __init__(self, error):
        self.error, self.asked = error, 0

    def write(self, text):
        self.asked += 1
        raise self.error

    flush = fileno = lambda self: self.write("")


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "full"), BrokenPipeError(), ValueError("closed"), None], ids=repr
)
def test_a_bar_that_cannot_be_drawn_is_no_bar(error, monkeypatch, tmp_path):
    stream = Refusing(error) if error else None
    monkeypatch.setattr(sys, "stderr", stream)
    with Bar(8, unit="step") as bar:
        for i in range(8):
            bar.update(i)
    with Log(tmp_path, 4, 2) as log:
        log(1, {"loss": np.ones(1)})
    assert stream is None or 0 < stream.asked < 20  # it gives up


def test_a_bar_does_not_wait_for_a_reader(monkeypatch):
    read, write = os.pipe()
    with open(write, "w") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        with Bar(20_000, unit="step") as bar:
            bar._bar.mininterval = 0
            for i in range(20_000):  # a pipe holds 64 KiB, of some 60 bytes a step
                bar.update(i)
    os.close(read)


STREAMS = {  # how the shell sets them, and what reaches the pipes
    "closed stderr": ("2>&-", {}, "wrote out.png: 1 picture, 32 x 32\n"),
    "full stderr": ("2>/dev/full", {}, "wrote out.png: 1 picture, 32 x 32\n"),
    "closed stdout": (">&-", {}, ""),
    "full stdout": (">/dev/full", {}, ""),
    "all closed": ("<&- >&- 2>&-", {}, ""),
    "a reader that leaves": ("2>&1 | head -c 5", {}, None),
    "a small alphabet": ("", {"PYTHONIOENCODING": "cp1252"}, "wrote \\u0442\\u0440\\u0438.png: 1 picture, 32 x 32\n"),
}


@pytest.mark.parametrize("name", STREAMS)
def test_no_stream_decides_what_becomes_of_the_work(name, tmp_path, compiled):
    redirect, more, said = STREAMS[name]
    output = "три.png" if "alphabet" in name else "out.png"
    line = f"generate 'a red three' -n 1 --steps 2 -o {output} {redirect}"
    done = shell(line, tmp_path, compiled, **more)
    assert done.returncode == 0 and "Traceback" not in done.stderr and "Exception" not in done.stderr
    assert said is None or done.stdout == said
    assert images.read_settings(tmp_path / output)["model"] == "mini" and os.listdir(tmp_path) == [output]


# --- memory, devices, caches


def test_errors_that_a_user_can_mend_are_lines(capsys):
    with pytest.raises(Exception) as caught:
        jnp.zeros((2**30, 2**20)).block_until_ready()  # 4 PiB
    status, line = errors.explained(caught.value)
    assert status == 1 and line.startswith("out of memory; draw fewer pictures, use a smaller model, or try --dtype")
    assert errors.explained(MemoryError()) == (status, line)
    assert errors.explained(OSError(28, "No space left on device", "a.png")) == (1, "a.png: No space left on device")
    assert errors.explained(errors.BadInput("a is wrong")) == (2, "a is wrong")
    assert errors.explained(TypeError("a bug")) is None and errors.explained(RuntimeError("a bug")) is None


def test_memory_that_runs_out_is_a_line(here, monkeypatch, capsys):
    monkeypatch.setattr(tasks, "generate", lambda *args, **how: jnp.zeros((2**30, 2**20)).block_until_ready())
    assert main(*ONE, "--quiet") == 1
    assert capsys.readouterr().err.startswith("jdiff: out of memory; ") and os.listdir() == []


def test_a_device_that_is_not_there_is_a_line(tmp_path, compiled):
    for platform in ("cuda", "nonsense"):
        done = shell("generate a -n 1", tmp_path, compiled, JAX_PLATFORMS=platform)
        assert done.returncode == 2 and done.stderr.count("\n") == 1
        assert done.stderr.startswith("jdiff: JAX found no device to compute on (")
        assert done.stderr.endswith(f"; JAX_PLATFORMS is {platform}, set it to cpu\n") and os.listdir(tmp_path) == []


def test_words_that_a_small_model_does_not_know_are_told(here, capsys):
    assert main("generate", "a cat", "a red dog on a cat", "--steps", 2, "-n", 1, "--quiet") == 0
    assert capsys.readouterr().err == NOTE.replace("'Ä'", "'cat', 'dog'")
    assert main("generate", "the digit 3 in red on white", "", "--steps", 2, "-n", 1, "--quiet") == 0
    assert capsys.readouterr().err == ""


PLUGINS = ("jax_cuda12_plugin", "jax_cuda13_plugin", "libtpu")


@pytest.mark.skipif(any(map(find_spec, PLUGINS)), reason="it takes a JAX that has only the CPU")
def test_a_gpu_that_jax_cannot_use_is_told(tmp_path, compiled):
    """JAX looks for the driver's files. One note says which package is missing, and the picture is drawn."""
    code = "from jax._src import hardware_utils as h; h._NVIDIA_GPU_DEVICES = ['/dev/null']\n"
    code += "from jdiff.cli.main import main; main()"
    args, env = [sys.executable, "-c", code, *ONE, "--quiet"], environment(compiled)
    env.pop("JAX_PLATFORMS", None)
    done = subprocess.run(args, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=90)
    assert done.returncode == 0 and os.listdir(tmp_path) == ["out.png"] and done.stderr.count("\n") == 1
    assert done.stderr.startswith("jdiff: note: An NVIDIA GPU may be present on this machine, but ")
    assert "To use it: pip install 'jax[cuda12]'. To use the CPU without this note: JAX_PLATFORMS=cpu" in done.stderr
    done = subprocess.run(
        args, cwd=tmp_path, env=env | {"JAX_PLATFORMS": "cpu"}, capture_output=True, text=True, timeout=90
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_where_the_cache_is(monkeypatch, tmp_path):
    for name in ("JDIFF_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/home/someone")
    assert cache.folder("xla") == Path("/home/someone/.cache/jdiff/xla")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # which its specification ignores
    assert cache.folder("prompts") == Path("/home/someone/.cache/jdiff/prompts")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache.folder("prompts") == tmp_path / "jdiff" / "prompts"
    monkeypatch.setenv("JDIFF_CACHE", "/other")
    assert (cache.folder("xla"), cache.folder("prompts")) == (Path("/other"), Path("/other/prompts"))
    monkeypatch.setenv("JDIFF_CACHE", "~nobody-of-this-name/x")
    assert cache.folder("xla") is None
    monkeypatch.setenv("JDIFF_CACHE", "")
    assert cache.folder("xla") is None


CACHES = {  # environment, what a note says
    "a file": ({"JDIFF_CACHE": "{folder}/file"}, "cannot be used (File exists)"),
    "in a file": ({"JDIFF_CACHE": "{folder}/file/cache"}, "cannot be used (Not a directory)"),
    "none": ({"JDIFF_CACHE": ""}, ""),
    "no home": ({"JDIFF_CACHE": "~/cache", "HOME": "{folder}/file"}, "cannot be used (Not a directory)"),
}


@pytest.mark.parametrize("name", CACHES)
def test_a_cache_that_cannot_be_used_is_a_note(name, here, monkeypatch, capsys):
    Path("file").write_text("in the way")
    variables, told = CACHES[name]
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value.format(folder=here))
    old = jax.config.jax_compilation_cache_dir
    assert main(*ONE, "--quiet") == 0
    err = capsys.readouterr().err
    assert told in err and all(line.startswith("jdiff: note: the cache ") for line in err.splitlines())
    assert bool(err) == bool(told) and jax.config.jax_compilation_cache_dir == old


def test_compilations_are_kept_where_told(tmp_path, monkeypatch):
    names = ("compilation_cache_dir", "persistent_cache_min_compile_time_secs", "persistent_cache_min_entry_size_bytes")
    before = {f"jax_{name}": getattr(jax.config, f"jax_{name}") for name in names}
    try:
        monkeypatch.setenv("JDIFF_CACHE", str(tmp_path / "xla"))
        cache.keep_compilations()
        assert jax.config.jax_compilation_cache_dir == str(tmp_path / "xla") and (tmp_path / "xla").is_dir()
    finally:
        for name, value in before.items():
            jax.config.update(name, value)


@pytest.mark.skipif(not shutil.which("setpriv"), reason="it takes a process without root's rights, by `setpriv`")
def test_folders_without_permission(tmp_path, compiled):
    """A cache that cannot be read is a note, and an output folder that cannot be written to is bad input."""
    place = tmp_path / "c" / "prompts"
    place.mkdir(parents=True)
    (tmp_path / "out").mkdir()
    place.chmod(0)
    (tmp_path / "out").chmod(0o555)
    as_user = ["setpriv --bounding-set=-dac_override,-dac_read_search"] if IS_ROOT else []
    done = shell("generate 'a red three' -n 1 --steps 2 --quiet", tmp_path, tmp_path / "c", *as_user)
    assert done.returncode == 0 and done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"jdiff: note: the cache {place} cannot be used (Permission denied); set JDIFF_CACHE")
    done = shell("generate 'a red three' -n 1 -o out/a.png", tmp_path, compiled, *as_user)
    assert done.returncode == 2 and os.listdir(tmp_path / "out") == []
    assert done.stderr == "jdiff: -o must be in a folder that you can write to, got out/a.png\n"
    place.chmod(0o755)


# --- files that cannot be written


@contextlib.contextmanager
def full_disk():
    """No file can have more than 6,000 bytes, which a small picture stays below. pytest's own log is a file, too."""
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (6000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_costs_only_the_files_that_do_not_fit(here, capsys):
    for name in ("out.png", "a.npz", "a.gif"):
        Path(name).write_bytes(b"old")
    with full_disk():
        assert main(*TWO, "--separate", "--npz", "a.npz", "--gif", "a.gif") == 1
    out, err = capsys.readouterr()
    small = [f"out-{i}-{j}.png" for i in (0, 1) for j in (0, 1)]
    assert out == f"wrote {', '.join(small)}: 4 pictures, 32 x 32\n"
    lines = [f"jdiff: {name} could not be written: File too large" for name in ("out.png", "a.npz", "a.gif")]
    assert err.splitlines() == lines
    assert sorted(os.listdir()) == sorted([*small, "out.png", "a.npz", "a.gif"])
    assert {Path(name).read_bytes() for name in ("out.png", "a.npz", "a.gif")} == {b"old"}
    assert all(images.load(name).shape == (32, 32, 3) for name in small)


@pytest.mark.skipif(not IS_ROOT, reason="only root mounts a small file system")
def test_a_small_disk_and_a_small_temporary_folder(tmp_path, compiled):
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(small)], capture_output=True).returncode:
        pytest.skip("this system lets nobody mount a file system")
    try:
        (small / "fill").write_bytes(bytes(16384))
        (tmp_path / "b.mp4").write_bytes(b"old")
        flags = "generate 'a red three' -n 1 --steps 2 --quiet -o small/a.png --mp4 b.mp4"
        done = shell(flags, tmp_path, compiled, TMPDIR=str(small))
        assert done.returncode == 1 and os.listdir(small) == ["fill"]
        assert done.stderr == "jdiff: small/a.png could not be written: No space left on device\n"
        assert done.stdout == "wrote b.mp4: 1 picture, 32 x 32\n" and (tmp_path / "b.mp4").stat().st_size > 1000
    finally:
        subprocess.run(["umount", str(small)], check=True)


@pytest.mark.parametrize("error", [OSError("disk full"), RuntimeError("a codec"), MemoryError(), ValueError("odd")])
def test_a_file_that_fails_is_named_and_the_rest_is_kept(error, here, monkeypatch, capsys):
    def fail(*args, **how):
        raise error

    monkeypatch.setattr(images, "save_gif", fail)
    assert main(*TWO, "--gif", "a.gif", "--npz", "a.npz") == 1
    out, err = capsys.readouterr()
    assert out == "wrote out.png, a.npz: 4 pictures, 32 x 32\n" and err.startswith(
        "jdiff: a.gif could not be written: "
    )
    assert (
        err.count("\n") == 1 and (str(error) or "out of memory") in err and sorted(os.listdir()) == ["a.npz", "out.png"]
    )


def test_links_and_long_names(here, capsys):
    Path("target.png").write_bytes(b"old")
    Path("link.png").symlink_to("target.png")
    assert main(*ONE, "--quiet", "-o", "link.png") == 0
    assert Path("link.png").is_symlink() and images.load("target.png").shape[0] > 100
    long = "x" * 251 + ".png"
    assert main(*ONE, "--quiet", "-o", long) == 0
    assert images.load(long).shape[0] > 100
    assert main(*ONE, "--quiet", "-o", "a.png", "--gif", "b.gif", "--npz", "c.npz") == 0


def test_two_runs_on_one_output(tmp_path, compiled):
    args = [sys.executable, "-m", "jdiff", *ONE, "--quiet", "-o", "out.png", "--seed"]
    env = environment(compiled)
    both = [subprocess.Popen([*args, seed], cwd=tmp_path, env=env, stdout=subprocess.DEVNULL) for seed in ("1", "2")]
    assert [process.wait(timeout=90) for process in both] == [0, 0]
    assert images.read_settings(tmp_path / "out.png")["seed"] in (1, 2) and os.listdir(tmp_path) == ["out.png"]
    assert images.load(tmp_path / "out.png").shape[0] > 192


# --- signals


@pytest.mark.parametrize("name, moments", [("generate", (0.0, 0.05, 0.3, 1.0)), ("mnist sample", (0.1, 1.5))])
def test_ctrl_c_at_any_moment_is_130(name, moments, tmp_path, compiled):
    """From the first import on; scripts/fuzz_signals.py has more of them, with SIGKILL."""
    digits = ["mnist", "sample", "class", "-n", "1000", "-o", "out.png"]
    args = {"generate": [*ONE, "--steps", "1000"], "mnist sample": digits}[name]  # longer than any moment
    job = fuzz_signals.Job(args, ["out.png"], lambda folder: None)
    images.save(tmp_path / "out.png", np.zeros((8, 8, 3)), {"old": True})
    before = (tmp_path / "out.png").read_bytes()
    for moment in moments:
        how, wrong = fuzz_signals.trial(name, job, tmp_path, signal.SIGINT, False, moment)
        assert (how, wrong) == ("130", []) and (tmp_path / "out.png").read_bytes() == before
        assert {path.name for path in tmp_path.iterdir()} <= {"out.png", "mark", "cache"}


WRITING = """
import sys, time
import numpy as np
from jdiff import images
from jdiff.cli.main import main

def slow(file, *args, **how):
    file.write(b"half of it")
    file.flush()
    print("writing", flush=True)
    time.sleep(60)

np.savez_compressed = slow
sys.exit(main())
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_inside_a_write_leaves_nothing(number, tmp_path, compiled):
    (tmp_path / "a.npz").write_bytes(b"old")
    args = [sys.executable, "-c", WRITING, *ONE, "--quiet", "--npz", "a.npz"]
    with fuzz_signals.inherited(number, signal.SIG_DFL):
        process = subprocess.Popen(
            args, cwd=tmp_path, env=environment(compiled), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
    assert process.stdout and process.stdout.readline() == "writing\n"
    assert len(list(tmp_path.glob(".*.part"))) == 1
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (128 + number, "", "")
    assert sorted(os.listdir(tmp_path)) == ["a.npz", "out.png"] and (tmp_path / "a.npz").read_bytes() == b"old"


def test_a_signal_that_is_ignored_stays_so(tmp_path, compiled):
    """As `nohup` and the background jobs of a shell start their commands."""
    args = [sys.executable, "-m", "jdiff", *ONE, "--quiet"]
    with fuzz_signals.inherited(signal.SIGINT, signal.SIG_IGN):
        process = subprocess.Popen(args, cwd=tmp_path, env=environment(compiled))
    dice = random.Random(0)
    while process.poll() is None:
        process.send_signal(signal.SIGINT)
        time.sleep(dice.uniform(0, 0.3))
    assert process.returncode == 0 and images.load(tmp_path / "out.png").shape[0] > 192


def test_parts_are_discarded_whoever_writes_them(tmp_path):
    """The registry that a signal clears: files, folders, and processes that write."""
    kept = tempfile.mkdtemp(dir=tmp_path)
    code = f"""
import subprocess, sys
from pathlib import Path
from jdiff import parts
folder = Path({str(tmp_path)!r})
with parts.beside(folder / "a.bin") as file, parts.new_folder(folder / "new") as new, parts.path_beside(folder / "b"):
    file.write(b"half")
    (new / "deep").mkdir()
    (new / "deep" / "file").write_text("half")
    with parts.running(["sleep", "60"], stdin=subprocess.DEVNULL) as sleeping:
        assert len(list(folder.glob(".*.part"))) == 2
        parts.discard()
        print(sleeping.poll(), sorted(path.name for path in folder.iterdir()), flush=True)
        import os
        os._exit(0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment(""), timeout=60)
    assert (done.stdout, done.stderr) == (f"-9 ['{Path(kept).name}']\n", "")
    with pytest.raises(FileExistsError), parts.beside(tmp_path / "x") as file:
        file.write(b"half")
        raise FileExistsError
    assert [path.name for path in tmp_path.iterdir()] == [Path(kept).name]
