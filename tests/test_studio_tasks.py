"""The studio without a browser: tasks, their commands and Python, runs that stop, uploads, judges."""

import io
import shlex
import subprocess
import threading
import time
from importlib.util import find_spec

import jax
import numpy as np
import pytest
from PIL import Image
from test_letters import small_model

import jdiff.model
from jdiff import images, mesh, sample, schedule, step
from jdiff.cli import grammar
from jdiff.cli import main as cli
from jdiff.cli.errors import BadInput
from jdiff.cli.parse import parse
from jdiff.networks import unet
from jdiff.studio import reading, results, runs, show, tasks
from jdiff.studio.listing import python

COMMON = tasks.Common(n=2, steps=4, seed=3)
RNG = np.random.default_rng(0)
PICTURE = RNG.uniform(-1, 1, (32, 32, 3)).astype(np.float32)
MASK = np.zeros((32, 32), np.float32)
MASK[8:20, 10:30] = 1
SAID = 'a "red" three, $HOME isn\'t it'

TASKS = {
    "generate": lambda: tasks.generate(COMMON, ["a red three", SAID]),
    "generate with all settings": lambda: tasks.generate(
        tasks.Common(n=1, steps=3, guidance=2.5, seed=7, negative="a blue one"), ["a red three"]
    ),
    "edit": lambda: tasks.edit(COMMON, PICTURE, ["a red eight"], 0.6),
    "inpaint": lambda: tasks.inpaint(COMMON, PICTURE, MASK, ["a red eight"]),
    "inpaint with resampling": lambda: tasks.inpaint(COMMON._replace(n=1), PICTURE, MASK, ["a red eight"], 2),
    "anagram": lambda: tasks.anagram(COMMON, ["a red six", "a red nine", "a red 0"], ["identity", "flip", "jigsaw"]),
    "anagram of pixels": lambda: tasks.anagram(
        COMMON._replace(guidance=3.0, negative="a blue one"), ["a red six", "a red nine"], ["flip", "pixel_permute"]
    ),
    "hybrid": lambda: tasks.hybrid(COMMON, "a red three", "a red eight", 1.5),
    "digits": lambda: tasks.digits("class", n=1, steps=3, guidance=1.5, seed=2),
    "digits of no class": lambda: tasks.digits("time", n=1, steps=2, guidance=3.0, seed=2),
}  # fmt: skip


def tiny_model():
    """A model that draws in colour by a network of a few parameters, so that programs compile quickly."""
    config = unet.Config(
        sample_size=32, patch=2, block_out_channels=(8, 8), down_block_types=(unet.PLAIN_DOWN, unet.CROSS_DOWN),
        up_block_types=(unet.CROSS_UP, unet.PLAIN_UP), layers_per_block=(1, 1), attention_head_dim=8,
        cross_attention_dim=32, encoder_hid_dim=8, addition_embed_type_num_heads=2, norm_num_groups=4,
    )  # fmt: skip
    params = jax.tree.map(lambda a: a + 0.05, unet.init(config, jax.random.key(1)))
    return small_model()._replace(
        network=unet.unet(config).bind(params), config=config, predicts=step.noise, x0_rule=step.threshold(),
        defaults=jdiff.model.Defaults("deepfloyd", 4, 2.0), name="mini",
    )  # fmt: skip


@pytest.fixture(scope="module")
def tiny():
    return tiny_model()


@pytest.fixture
def models(tiny, monkeypatch):
    """The tiny model, which the command and the Python load, too."""
    monkeypatch.setattr(jdiff.model, "load", lambda *_, **__: tiny)
    return results.Models("mini", {"mini": tiny})


def quietly(done, total, x=None):
    """A watch that does nothing."""


def by_command(line, folder):
    """The arrays that a command writes, with the shape [n h w c]."""
    words = shlex.split(line)
    assert words[0] == "jdiff"
    words += ["--npz", str(folder / "made.npz"), "--quiet"]
    assert cli.main([*words[1:], *([] if "-o" in words else ["-o", str(folder / "made.png")])]) == 0
    with np.load(folder / "made.npz") as arrays:
        made = arrays["images"]
    return made if made.ndim == 4 else 2 * made[..., None] - 1


def by_python(text):
    """What the Python of a page makes, as [n h w c]."""
    names = {}
    exec(text, names)
    made = np.asarray(names["made"].images)
    return 2 * made - 1 if made.ndim == 4 else made.reshape(-1, *made.shape[2:])


@pytest.mark.parametrize("name", TASKS)
def test_the_command_and_the_python_give_the_same_picture(name, models, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    task = TASKS[name]()
    for file, data in task.data.items():
        (tmp_path / file).write_bytes(data)
    steps = []
    made = results.draw(models, task, lambda done, total, x: steps.append((done, total, x.shape)))
    drawn = made.images.reshape(-1, *made.images.shape[2:])
    assert np.isfinite(drawn).all() and np.std(drawn) > 0.01
    assert len(steps) > 1 and steps[-1][0] == steps[-1][1] and steps[-1][2] == drawn.shape
    np.testing.assert_allclose(by_command(tasks.words(task), tmp_path), drawn, atol=1e-6)
    np.testing.assert_allclose(by_python(python(task)), drawn, atol=1e-6)
    assert len(python(task).splitlines()) <= 8
    assert show.result(made).count("data:image/png") >= len(drawn)


@pytest.mark.parametrize(
    "task",
    [
        lambda: tasks.hybrid(COMMON._replace(negative="-x"), "a red one", "-5", 2.0),
        lambda: tasks.generate(COMMON._replace(guidance=-2.0), ["-5", "--n"]),
    ],
)
def test_words_that_begin_with_a_hyphen_are_no_flags(task):
    made = task().command
    assert parse(shlex.split(tasks.words(task()))[1:]) == made


@pytest.mark.parametrize(("steps", "rows"), [(4, 10), (20, 50)])
def test_the_switch_of_resampling_walks_more_rows(steps, rows):
    command = tasks.inpaint(COMMON._replace(steps=steps), PICTURE, MASK, ["a red eight"], 4).command
    levels = schedule.levels(schedule.cosine(), schedule.leading(steps))
    assert len(schedule.resample(levels, command.jump_length, command.resamplings).t) == rows


def test_a_ladder_is_a_loop_in_both_languages(models, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    task = tasks.edit(COMMON._replace(n=1), PICTURE, ["a red eight"], 0.7, ladder=True)
    for file, data in task.data.items():
        (tmp_path / file).write_bytes(data)
    made = results.draw(models, task, quietly)
    assert made.images.shape[:2] == (len(tasks.LADDER), 1) and len(set(made.labels)) == len(tasks.LADDER)
    shell = f"jdiff() {{ printf '%s\\0' \"$@\"; printf '\\n'; }}; {tasks.words(task)}"
    told = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, check=True).stdout
    lines = [line.split("\0")[:-1] for line in told.splitlines()]
    assert len(lines) == len(tasks.LADDER)
    for i in (0, len(lines) - 1):
        again = by_command(shlex.join(["jdiff", *lines[i]]), tmp_path)
        np.testing.assert_allclose(again, made.images[i], atol=1e-6)
    np.testing.assert_allclose(by_python(python(task)), made.images[-1], atol=1e-6)
    assert len(list(tmp_path.glob("edit-*.png"))) == len(tasks.LADDER)


def test_an_ambigram_by_the_command_and_in_python(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = small_model()
    monkeypatch.setattr(jdiff.model, "load", lambda *_, **__: small)
    told = {"view": "rotate_180", "style": "bold", "n": 2, "steps": 2, "seed": 5, "model": "letters"}
    task = tasks.ambigram(["on", "no"], **told)
    done = []
    made = results.draw(results.Models("letters"), task, lambda at, total, x: done.append((at, total, x.shape)))
    assert made.word is not None
    assert done == [(1, 2, (4, 32, 32, 1)), (2, 2, (4, 32, 32, 1))]  # two candidates of each letter as they appear
    np.testing.assert_allclose(by_command(tasks.words(task), tmp_path), made.word.glyphs, atol=1e-5)
    names = {}  # one device, which adds up in another order
    exec(python(task), names)
    np.testing.assert_allclose(names["made"].glyphs, made.word.glyphs, atol=5e-5)  # 1.2e-5 here
    html = show.result(made)
    assert 'data-view="rotate_180"' in html and made.word.verdict in html


@pytest.mark.parametrize("name", ["generate", "inpaint", "anagram", "hybrid"])
def test_the_downloaded_png_is_drawn_again_by_like(name, models, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    task = TASKS[name]()
    for file, data in task.data.items():
        (tmp_path / file).write_bytes(data)
    made = results.draw(models, task, quietly)
    given, again = tmp_path / "given.png", tmp_path / "again.png"
    given.write_bytes(images.png(made.sheet, made.settings))
    command = task.command.name
    assert cli.main([command, "--like", str(given), "-o", str(again), "--quiet"]) == 0
    np.testing.assert_array_equal(images.load(again), images.load(given))
    one = tmp_path / "one.png"
    one.write_bytes(images.png(made.images[0, 1], made.settings | {"image": [0, 1]}))
    assert cli.main([command, "--like", str(one), "-o", str(again), "--quiet"]) == 0
    np.testing.assert_array_equal(images.load(again), images.load(one))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: tasks.generate(COMMON, []), "no prompt is given"),
        (lambda: tasks.generate(COMMON._replace(n=40), ["a", "b"]), "a page draws at most 64 pictures at once, got 80"),
        (lambda: tasks.generate(COMMON._replace(seed=-1), ["a"]), "--seed must be between 0 and 4294967295, got -1"),
        (lambda: tasks.generate(COMMON._replace(steps=2000), ["a"]), "--steps must be between 1 and 1000, got 2000"),
        (lambda: tasks.edit(COMMON, PICTURE, ["a"], 1.5), "--strength must be above 0 and at most 1, got 1.5"),
        (lambda: tasks.inpaint(COMMON, PICTURE, 0 * MASK, ["a"]), "the mask is empty; paint over"),
        (lambda: tasks.inpaint(COMMON, PICTURE, 0 * MASK + 1, ["a"]), "the mask covers the whole picture"),
        (lambda: tasks.anagram(COMMON, ["a"], ["identity"]), "there must be two or more prompts, got one"),
        (lambda: tasks.hybrid(COMMON, "a", " ", 2.0), "a prompt is missing"),
        (lambda: tasks.digits("class", n=7, steps=2, guidance=1.0, seed=0), "between 1 and 6, got 7"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_one_line(make, message):
    with pytest.raises(BadInput, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def a_png(width, height):
    file = io.BytesIO()
    Image.new("RGB", (width, height), "red").save(file, "PNG")
    return file.getvalue()


def test_an_upload_becomes_the_middle_square():
    found = tasks.uploaded(a_png(90, 60), "the picture", 32)
    assert found.shape == (32, 32, 3) and found[..., 0].min() > 0.99 and found[..., 1:].max() < -0.99


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\0" * (tasks.LARGEST_FILE + 1), "must have at most 20 megabytes, got 20"),
        (a_png(6000, 4100), "must have at most 24 megapixels, got 6000 x 4100"),
        (a_png(20_000, 10_000), "must have at most 24 megapixels, got many more"),
        (b"no picture at all", "this is no picture that can be read"),
        (a_png(40, 40)[:60], "damaged|no picture"),
        (b"", "this file is empty"),
    ],
    ids=["bytes", "pixels", "bomb", "text", "cut off", "empty"],
)
def test_an_upload_that_is_too_large_or_no_picture_is_refused(data, message):
    with pytest.raises(ValueError, match=message):
        tasks.uploaded(data, "the picture", 32)


def test_a_run_tells_its_steps_and_its_value():
    seen = list(
        runs.run(lambda watch: [watch(i, 3, None) or time.sleep(0.05) for i in (1, 2, 3)] and 42, threading.Event())
    )
    assert [step.done for step in seen[:-1]] and seen[-1] == runs.Done(42)


def test_a_run_that_fails_hands_its_error_over():
    def fail(watch):
        raise ValueError("no")

    *_, last = runs.run(fail, threading.Event())
    assert last.value is None and str(last.error) == "no"


@pytest.mark.parametrize("how", ["stop", "close"])
def test_a_run_ends_in_the_middle(how):
    stop, reached = threading.Event(), []

    def work(watch):
        for i in range(10_000):
            reached.append(i)
            watch(i, 10_000, None)
            time.sleep(0.01)

    going = runs.run(work, stop)
    next(going)
    if how == "stop":
        stop.set()
        assert list(going)[-1] == runs.Done(None)
    else:
        going.close()
    for thread in threading.enumerate():
        if thread.name == "jdiff studio run":
            thread.join(30)
            assert not thread.is_alive()
    assert len(reached) < 10_000


def test_one_run_computes_at_a_time():
    inside, most = [0], [0]

    def work(watch):
        inside[0] += 1
        most[0] = max(most[0], inside[0])
        time.sleep(0.05)
        inside[0] -= 1

    threads = [threading.Thread(target=lambda: list(runs.run(work, threading.Event()))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most[0] == 1


def test_a_session_stops_only_its_own_runs():
    stops = runs.Stops()
    mine, other = stops.start("a"), stops.start("b")
    assert stops.stop("a") == 1 and mine.is_set() and not other.is_set()
    stops.end("a", mine)
    stops.end("b", other)
    assert stops.going_on() == 0 and stops.stop("b") == 0


@pytest.mark.parametrize("over", [None, "devices"])
def test_watching_changes_no_picture_and_an_exception_ends_the_drawing(tiny, over):
    model = tiny
    how = {"n": 2, "steps": 6, "progress": lambda done, total: None, "mesh": mesh.make() if over else None}
    seen = []
    plain = sample.generate(model, ["a red three"], jax.random.key(0), **how).images
    watched = sample.generate(
        model, ["a red three"], jax.random.key(0), watch=lambda *told: seen.append(told), **how
    ).images
    np.testing.assert_array_equal(plain, watched)
    assert [told[:2] for told in seen] == [(i, 6) for i in range(1, 7)]
    np.testing.assert_allclose(np.clip(seen[-1][2], -1, 1), watched[0], atol=1e-6)
    assert np.abs(seen[0][2]).std() > np.abs(seen[-1][2]).std() / 2

    def stop(done, total, x):
        if done == 3:
            raise runs.Stopped

    with pytest.raises(runs.Stopped):
        sample.generate(model, ["a red three"], jax.random.key(0), watch=stop, **how)


def test_every_prompt_of_a_grammar_is_a_caption():
    from jdiff.mnist import captions

    known = {caption.text for caption in captions.captions()}
    mini = grammar.of("mini")
    digits, colours, backgrounds = (group.words for group in mini.groups)
    texts = [mini.prompt(d, c, b) for d in digits for c in colours for b in backgrounds if (c, b) != ("white", "white")]
    assert set(texts) <= known and len(texts) == 150
    assert {*mini.examples, *mini.pair} <= known
    letters = grammar.of("letters")
    assert letters.prompt("R", "bold", grammar.NOTHING, "serif") == "a bold serif R"
    assert grammar.of("IF-I-XL-v1.0") is None


def test_words_that_no_caption_has_are_found():
    from jdiff.letters import captions as letters
    from jdiff.mnist import captions as digits

    styles = [letters.caption("R", style, spelled=True) for style in letters.styles()]
    plain = [letters.caption(character) for character in letters.CHARACTERS]
    assert grammar.unknown("letters", [*styles, *plain, ""]) == []
    assert grammar.unknown("letters", ["a bald capital R", "a bald R"]) == ["bald"]
    assert grammar.unknown("mini", [caption.text for caption in digits.captions()]) == []
    assert grammar.unknown("mini", ["a red cat on a mat"]) == ["cat", "mat"]
    assert grammar.unknown("IF-I-XL-v1.0", ["a cat"]) == []


def test_the_judge_reads_what_the_mini_model_drew(tmp_path, monkeypatch):
    """With the shipped model, by all three ways."""
    monkeypatch.chdir(tmp_path)
    task = tasks.generate(tasks.Common(n=2, steps=12), ["a red three", "a blue seven"])
    made = results.draw(results.Models("mini"), task, quietly)
    drawn = made.images.reshape(-1, 32, 32, 3)
    np.testing.assert_allclose(by_command(tasks.words(task), tmp_path), drawn, atol=1e-3)
    np.testing.assert_allclose(by_python(python(task)), drawn, atol=1e-3)
    right = reading.chances("mini", ["a red three", "a blue seven"], made.images)
    wrong = reading.chances("mini", ["a red nine", "a blue nine"], made.images)
    assert right.shape == (2, 2) and right.mean() > 0.7 > 0.2 > wrong.mean()
    assert reading.chances("mini", ["a red three", "a cat"], made.images) is None
    assert reading.chances("another", ["a red three", "a red four"], made.images) is None


def test_html_holds_no_markup_of_a_prompt(models):
    made = results.draw(models, tasks.generate(COMMON, ["<script>alert(1)</script>", 'a"b']), quietly)
    html = show.result(made)
    assert "<script>" not in html and "&lt;script&gt;" in html


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--port", "0"], "--port must be between 1 and 65535, got 0"),
        (["--model", ""], "--model must be a name or a folder, got ''"),
        (["--model", "mini-upscaler"], "--model must be of stage 1, got mini-upscaler, which is of stage 2"),
        (["--model", "mimi"], "got 'mimi', which does not exist; did you mean 'mini'?"),
    ],
)
@pytest.mark.skipif(find_spec("gradio") is None, reason="gradio, the extra `studio`, is not installed")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_bad_input_of_the_command_is_one_line(args, message, capsys):
    assert cli.main(["studio", *args]) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("jdiff: ") and message in error and "\n" not in error


def test_without_gradio_the_command_says_what_to_install(monkeypatch, capsys):
    from jdiff.cli import studio

    monkeypatch.setattr(studio, "find_spec", lambda name: None)
    assert cli.main(["studio"]) == 2
    error = capsys.readouterr().err.strip()
    assert error == "jdiff: jdiff studio needs Gradio, which is not installed; pip install 'gradio>=6' 'pillow<13'"
