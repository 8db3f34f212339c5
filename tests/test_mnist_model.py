"""Digits drawn: the course's samplers written out, the shipped networks, and the commands."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from jdiff import combine, sample, step
from jdiff.cli import main as cli
from jdiff.images import read_settings
from jdiff.mnist import model, recipes
from jdiff.mnist.objectives import of_noise, one_hot
from jdiff.types import Prediction

TABLE = recipes.recipes()


def _network(x, t, conditioning):  # something that depends on all that it is told
    told = conditioning.text[:, 0] @ jnp.arange(1.0, 11.0)
    return Prediction(0.3 * x + (0.1 * jnp.cos(3 * t) + 0.02 * told)[:, None, None, None])


def _by_hand(x, t, c):
    return 0.3 * x + 0.1 * np.cos(3 * t) + 0.02 * (0 if c is None else c + 1)


def _guided(x, t, c, scale):
    nothing = _by_hand(x, t, None)
    return nothing + scale * (_by_hand(x, t, c) - nothing)


def _walk(recipe, x, noises, c, scale):
    """The recipe's own table and solver by hand in a loop, `noises` in place of what is drawn."""
    left = iter(noises)
    solver = step.ddpm(step.large, draw=lambda key, shape, dtype: next(left)) if noises else recipe.solver()
    rows = solver.table(recipe.table(len(noises) or 7))
    combiner = jax.tree.map(lambda a: a[0], model.guided(jnp.array([c]), scale))
    estimate = combine.denoiser(_network, combiner)
    state = solver.init(x)
    for i in range(len(rows.level.t)):
        row = jax.tree.map(lambda a, i=i: jnp.asarray(a[i]), rows)
        state, _ = solver.step(jax.random.key(i), state, row, estimate)
    return state.x


def test_the_ddpm_is_the_courses_algorithm(x64):
    rng = np.random.default_rng(0)
    x, noises = rng.standard_normal((28, 28, 1)), list(rng.standard_normal((300, 28, 28, 1)))
    found = _walk(TABLE["class", "spec"], jnp.asarray(x), list(noises), 3, 5.0)
    beta = np.linspace(1e-4, 0.02, 300)
    abar = np.cumprod(1 - beta)
    for t in range(300, 0, -1):
        eps = _guided(x, t / 300, 3, 5.0)
        a, b, here = 1 - beta[t - 1], beta[t - 1], abar[t - 1]
        before = abar[t - 2] if t > 1 else 1.0
        x0 = (x - np.sqrt(1 - here) * eps) / np.sqrt(here)
        z = noises[300 - t] if t > 1 else 0.0
        x = np.sqrt(before) * b / (1 - here) * x0 + np.sqrt(a) * (1 - before) / (1 - here) * x + np.sqrt(b) * z
    np.testing.assert_allclose(found, x, atol=1e-10 * np.abs(x).max())


def test_the_flow_is_eulers_method(x64):
    x = np.random.default_rng(0).standard_normal((28, 28, 1))
    found = _walk(TABLE["flow-class", "spec"], jnp.asarray(x), [], 3, 5.0)
    for i in range(7):
        x = x + _guided(x, i / 7, 3, 5.0) / 7
    np.testing.assert_allclose(found, x, atol=1e-12 * np.abs(x).max())


@pytest.mark.parametrize(("kind", "name"), [key for key in TABLE if key[0] != "denoise"])
def test_the_exact_network_of_gaussian_data_gives_its_variance(kind, name):
    recipe, s2 = TABLE[kind, name], 0.25

    def exact(x, t, conditioning):  # of data N(0, s2)
        t = t[:, None, None, None]
        if "flow" in kind or name == "best":
            signal = 1 - t / 1000 if name == "best" else t
            noise = 1 - signal
        else:
            abar = jnp.asarray(np.cumprod(1 - np.linspace(1e-4, 0.02, 300)))
            signal = jnp.sqrt(abar)[jnp.round(t * 300).astype(int) - 1]
            noise = jnp.sqrt(1 - signal**2)
        total = signal**2 * s2 + noise**2
        x0, eps = signal * s2 / total * x, noise / total * x
        return Prediction(eps if recipe.target is of_noise else x0 - eps)

    steps = 300 if recipe.steps == 300 else 200
    digits = model.Digits(Partial(exact), recipe._replace(unscale=recipes.as_it_is), {})
    made = sample.sample(
        digits.network, keys := sample.image_keys(jax.random.key(0), 6), sample.start(keys, (28, 28, 1)),
        recipe.table(steps), combiner=combine.conditional(one_hot(jnp.array([-1]))[0]), solver=recipe.solver(),
    ).images  # fmt: skip
    assert abs(float(made.var()) - s2) < 0.04


def test_an_image_is_the_same_in_any_batch(monkeypatch):
    digits = model.Digits(Partial(_network), TABLE["flow-class", "spec"], {})
    classes = np.array([3, 1, -1, 7])
    whole = model.draw(digits, classes, jax.random.key(0), steps=5, keep=2)
    assert whole.images.shape == (4, 28, 28, 1) and whole.way.shape[:2] == (4, 2)
    monkeypatch.setattr(model, "TOGETHER", 3)
    np.testing.assert_allclose(model.draw(digits, classes, jax.random.key(0), steps=5).images, whole.images, atol=1e-6)


@pytest.mark.parametrize(("kind", "classes"), [("flow-class", [3, 1, -1, 7]), ("flow-time", [-1] * 4)])
def test_an_image_is_the_same_on_any_number_of_devices(kind, classes):
    digits = model.Digits(Partial(_network), TABLE[kind, "spec"], {})
    seen = []
    watch = lambda done, total, x: seen.append((done, total, x.shape))
    draw = lambda classes, mesh: model.draw(digits, classes, jax.random.key(0), steps=5, keep=2, mesh=mesh, watch=watch)
    two = jax.make_mesh((2, 1), ("data", "model"), devices=jax.devices()[:2])
    alone, split = draw(classes, None), draw(classes, two)
    for a, b in zip(alone, split, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    assert seen == 2 * [(done, 5, (4, 28, 28, 1)) for done in range(1, 6)]
    with pytest.raises(ValueError, match="the number of devices must divide 240 and 3 images, got 2"):
        draw(classes[:3], two)


def test_the_mesh_for_a_number_of_images_divides_it():
    devices = jax.device_count()
    assert model.mesh_for(devices + 1) is None
    assert (model.mesh_for(devices) is None) == (devices == 1)


def test_tables_start_in_noise_and_end_clean_however_many_steps():
    for key, recipe in TABLE.items():
        for steps in (1,) if key[0] == "denoise" else (1, 2, 7, 50, 300):
            table = recipe.table(steps)
            assert len(table.t) == steps and (table.signal_to[-1], table.noise_to[-1]) == (1, 0)
            np.testing.assert_array_equal(table.signal[1:], table.signal_to[:-1])
            assert key[0] == "denoise" or table.t[0] == {"ddpm": 1, "flow": 0, "best": 1000}[
                "best" if key[1] == "best" else "flow" if "flow" in key[0] else "ddpm"
            ]  # fmt: skip


@pytest.mark.parametrize("classes", [[], [10], [-2], [[1]]])
def test_other_classes_are_refused(classes):
    digits = model.Digits(Partial(_network), TABLE["class", "spec"], {})
    with pytest.raises(ValueError, match="classes must be a list of digits 0 to 9"):
        model.draw(digits, classes, jax.random.key(0))


def test_what_ships_loads_and_draws_what_it_is_asked():
    found = {folder.name for folder in model.shipped("mnist").iterdir()}
    assert found <= {model.name(*key) for key in TABLE} and "class-best" in found
    for name in sorted(found):
        digits = model.load(name)
        assert model.name(digits.facts["kind"], digits.facts["recipe"]) == name
    from jdiff.mnist import judge

    made = model.draw(model.load("class-best"), np.arange(10), jax.random.key(0)).images
    apply, _ = judge.network()
    read = apply(judge.load_params(), jnp.pad(made[..., 0], ((0, 0), (2, 2), (2, 2)))).argmax(-1)
    assert (read == np.arange(10)).sum() >= 9


def test_another_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match="model must be a folder that .*class-best.*, got '"):
        model.load(tmp_path)


def _run(capsys, *args):
    code = cli.main(["mnist", *map(str, args)])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def test_the_command_draws_sheets_and_arrays(tmp_path, capsys):
    npz, png, gif = (tmp_path / f"a.{kind}" for kind in ("npz", "png", "gif"))
    arguments = ("-n", 2, "--steps", 3, "--quiet", "--npz", npz, "-o", png, "--gif", gif)
    code, out, _ = _run(capsys, "sample", "class", *arguments)
    assert code == 0 and "20 digits" in out
    with np.load(npz) as found:
        assert found["images"].shape == (20, 28, 28) and found["images"].dtype == np.float32
        assert found["images"].min() >= 0 and found["images"].max() <= 1
        np.testing.assert_array_equal(found["labels"], np.repeat(np.arange(10), 2))
    settings = read_settings(png)
    assert (settings["kind"], settings["recipe"], settings["steps"]) == ("class", "best", 3) and settings[
        "guidance"
    ] > 1
    assert gif.stat().st_size > 1000


BAD = [
    (("sample", "class", "-n", "0", "-o", "a.png"), "-n must be between 1 and 1000, got 0"),
    (("sample", "class"), "no file to write is given; give -o"),
    (("sample", "denoise", "-o", "a.png"), "KIND must be one of time, class, flow-time, flow-class, got 'denoise'"),
    (("sample", "class", "-o", "a.gif"), "-o must be a file that ends in .png, got a.gif"),
    (("sample", "class", "-o", "a.png", "--steps", "0"), "--steps must be between 1 and 1000, got 0"),
    (
        ("sample", "class", "-o", "a.png", "--recipe", "spec", "--steps", "500"),
        "between 1 and 300, got 500",
    ),
    (
        ("train", "class", "--epochs", "2", "--keep-epochs", "3"),
        "--keep-epochs must be between 1 and 2, the last epoch, got 3",
    ),
    (("sample", "class", "-o", "a.png", "--model", "none"), "got 'none'"),
    (("sample", "flow-class", "-o", "a.png", "--recipe", "best"), "got 'flow-class-best'"),
    (("train", "flow-class", "--recipe", "best"), "--recipe must be spec for flow-class, got best"),
    (("train", "class", "--epochs", "-1"), "--epochs must be above 0, and below 2147483648, got -1"),
    (("train", "class", "--batch", "200"), "--batch must be at most 96, the number of pictures, got 200"),
    (("train", "class", "--minutes", "0"), "--minutes must be above 0, got 0.0"),
    (("train", "class", "--data-dir", "nowhere"), "data_dir must be a folder with a prepared 'mnist', got nowhere"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=[message for _, message in BAD])
@pytest.mark.filterwarnings("ignore")  # of TFDS and what it imports
def test_bad_input_is_one_line_and_writes_nothing(arguments, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if arguments[0] == "train" and "nowhere" not in arguments:
        pixels = np.zeros((96, 28, 28), np.uint8), np.zeros(96, np.int32)
        monkeypatch.setattr("jdiff.mnist.data.mnist", lambda split, folder: pixels)
    code, out, err = _run(capsys, *arguments)
    assert code == 2 and not out and err.count("\n") == 1 and message in err
    assert not list(tmp_path.iterdir())


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")  # of orbax
def test_a_rate_that_is_too_high_stops_and_keeps_what_was_good(tmp_path, capsys, monkeypatch):
    pytest.importorskip("orbax.checkpoint", reason="checkpoints need the extra `train`")
    pixels = np.random.default_rng(0).integers(0, 256, (32, 28, 28)).astype(np.uint8), np.zeros(32, np.int32)
    monkeypatch.setattr("jdiff.mnist.data.mnist", lambda split, folder: pixels)
    arguments = ("--width", 2, "--batch", 8, "--epochs", 30, "--save-every", 1, "--rate", 1e9, "--run", tmp_path / "r")
    code, _, err = _run(capsys, "train", "class", "--quiet", *arguments)
    assert code == 2 and err.count("\n") == 1
    assert "--rate is too high, got 1000000000.0: the loss" in err and "give a lower one" in err
    assert any((tmp_path / "r" / "checkpoints").iterdir()) and not (tmp_path / "r" / "model").exists()
