"""Training part B's networks: its data in order, its objective the course's, killed and resumed to the bit."""

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import moments
import numpy as np
import pytest

from jdiff.mnist import data, fit, model, objectives, recipes
from jdiff.training import log
from jdiff.training import loop as T
from jdiff.training.checkpoints import FINGERPRINT
from jdiff.training.conv import fitting_conv
from jdiff.types import Prediction

pytest.importorskip("orbax.checkpoint", reason="checkpoints need the extra `train`")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")  # of orbax
KILLED = int(os.environ.get("JDIFF_TEST_KILLS", "3"))  # runs that are killed
IMAGES = np.random.default_rng(0).integers(0, 256, (96, 28, 28)).astype(np.uint8)
LABELS = np.arange(96, dtype=np.int32) % 10


def test_every_image_comes_once_an_epoch_however_training_is_divided():
    images = np.broadcast_to(np.arange(40, dtype=np.uint8)[:, None, None], (40, 28, 28))
    batches = data.on_device(images, np.arange(40), 8, jax.random.key(0))
    get = lambda ahead, i: batches.batch(None, ahead, i)
    whole = batches.ahead(0, 15)
    labels = np.stack([get(whole, i)[1] for i in range(15)])
    for epoch in np.split(labels, 3):
        assert sorted(epoch.ravel()) == list(range(40))
    assert (labels[:5] != labels[5:10]).any()
    np.testing.assert_allclose(get(whole, 3)[0][:, 0, 0, 0] * 255, labels[3], atol=1e-4)
    for cut in ([15], [4, 6, 5], [1] * 15):
        first, parts = 0, []
        for n in cut:
            ahead = batches.ahead(first, n)
            parts += [get(ahead, i)[1] for i in range(n)]
            first += n
        np.testing.assert_array_equal(np.stack(parts), labels)


def test_a_source_on_the_host_is_read_in_order_by_any_number_of_processes():
    pytest.importorskip("grain", reason="reading on the host needs the extra `train`")
    rows = [{"x": np.float32(i)} for i in range(24)]
    whole = data.from_source(rows, 6, 0).ahead(0, 8)["x"]
    for epoch in np.split(whole, 2):
        assert sorted(epoch.ravel()) == list(range(24))
    np.testing.assert_array_equal(data.from_source(rows, 6, 0).ahead(3, 4)["x"], whole[3:7])
    halves = [data.from_source(rows, 3, 0, process=i, processes=2).ahead(0, 8)["x"] for i in range(2)]
    np.testing.assert_array_equal(np.concatenate(halves, axis=1), whole)
    assert [data.from_source(rows, 3, 0, processes=n).per_process for n in (1, 2)] == [False, True]


def test_a_source_is_read_by_several_threads_and_rows_that_fill_no_batch_wait():
    pytest.importorskip("grain", reason="reading on the host needs the extra `train`")
    threads, turns, both_read = set(), itertools.count(), threading.Barrier(2)

    def read(row):
        if threading.get_ident() not in threads:
            threads.add(threading.get_ident())
            if next(turns) < 2:
                both_read.wait(timeout=60)  # fails if no second thread reads
        return np.float32(row)

    rows = data.from_source(range(25), 6, 0, read).ahead(0, 8)
    assert rows.shape == (8, 6) and len(threads) > 1
    for epoch in np.split(rows, 2):
        assert len(set(epoch.ravel())) == 24
    assert set(rows[:4].ravel()) != set(rows[4:].ravel())  # another one waits


LEVELS = {
    "denoise": (partial(objectives.fixed, 1.0, 0.5), objectives.of_clean),
    "ddpm": (partial(objectives.timesteps, jnp.array([0.9, 0.5, 0.2])), objectives.of_noise),
    "flow": (objectives.uniform_flow, objectives.of_velocity),
}


@pytest.mark.parametrize("name", LEVELS)
def test_the_objective_is_the_courses(name):
    levels, target = LEVELS[name]
    seen = {}

    def network(params, x, t, conditioning):
        seen.update(x=x, t=t, text=conditioning.text)
        return Prediction(params * x), 3e9

    x0, key = jax.random.uniform(jax.random.key(1), (50, 28, 28, 1)), jax.random.key(2)
    classes = jnp.arange(50) % 10
    found, _ = objectives.regression(levels, target, jnp.float32(0.5), network, 0.25, key, (x0, classes))
    x, t = np.asarray(seen["x"]), np.asarray(seen["t"])
    signal, noise = {
        "denoise": lambda: (np.ones(50), np.full(50, 0.5)),
        "ddpm": lambda: (np.sqrt(a := np.array([0.9, 0.5, 0.2])[np.round(t * 3).astype(int) - 1]), np.sqrt(1 - a)),
        "flow": lambda: (t, 1 - t),
    }[name]()
    column = lambda a: a[:, None, None, None]
    eps = (x - column(signal) * np.asarray(x0)) / np.maximum(column(noise), 1e-3)
    assert abs(eps.mean()) < 0.05 and abs(eps.std() - 1) < 0.05
    want = {"denoise": x0, "ddpm": eps, "flow": np.asarray(x0) - eps}[name]
    np.testing.assert_allclose(found, ((0.25 * x - want) ** 2).mean(), rtol=1e-4)  # what was added is not told
    told = np.asarray(seen["text"]).sum((1, 2))
    assert set(told) == {0.0, 1.0} and 10 < told.sum() < 40  # each sample's class is dropped on its own
    np.testing.assert_array_equal(np.asarray(seen["text"])[told > 0].argmax(-1)[:, 0], np.asarray(classes)[told > 0])
    if name == "ddpm":
        assert set(np.round(t * 3).astype(int)) == {1, 2, 3}


def _objective(recipe, width, train=None):
    train = train or recipe.training(width, fitting_conv())
    functions = map(jax.tree_util.Partial, (recipe.levels, recipe.target, train))
    levels, target, train = functions
    return jax.tree_util.Partial(objectives.regression, levels, target, jnp.float32(recipe.dropout), train)


def test_cores_become_devices_that_divide_the_batch_unless_told():
    imports = "import jax; from jdiff import mesh; from jdiff.mnist import recipes; "
    code = imports + "recipes.recipes(); mesh.use_cores({}); print(jax.device_count())"  # recipes leave JAX as it is
    bare = {name: value for name, value in os.environ.items() if name not in ("JAX_NUM_CPU_DEVICES", "XLA_FLAGS")}
    bare |= {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(Path(__file__).parents[1])}

    def devices(batch: int, **more: str) -> int:
        command = [sys.executable, "-c", code.format(batch)]
        return int(subprocess.run(command, env=bare | more, capture_output=True, text=True, check=True).stdout)

    assert devices(3) == 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    assert devices(8) == {1: 1, 2: 2, 3: 2}.get(cores, 4)
    assert devices(8, JAX_NUM_CPU_DEVICES="3") == 3
    assert devices(8, XLA_FLAGS="--xla_force_host_platform_device_count=5") == 5


def test_on_a_mesh_batchnorm_sees_the_whole_batch():
    recipe = recipes.recipes()["class", "spec"]
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    losses, means = [], []
    for devices in (None, mesh):
        optimizer = recipe.optimizer(1e-3, 3, 1)
        state = T.start(recipe.init(2, jax.random.key(0)), optimizer, jax.random.key(1))
        batches = data.on_device(IMAGES, LABELS, 32, jax.random.key(2))
        told = []
        how = {"every": 1, "mesh": devices, "report": lambda step, metrics, told=told: told.extend(metrics["loss"])}
        state = T.train(state, _objective(recipe, 2), batches, optimizer, steps=1, **how)
        means.append(np.asarray(state.params["statistics"]["first"][0]["norm"]["mean"]))
        T.train(state, _objective(recipe, 2), batches, optimizer, steps=3, **how)
        losses.append(told)
    np.testing.assert_allclose(*losses, rtol=1e-5)
    np.testing.assert_allclose(*means, atol=1e-6)  # of one update: later ones have Adam's way with small gradients
    assert len(losses[0]) == 3 and abs(means[0]).max() > 0.01


def test_in_half_precision_weights_and_statistics_stay_whole(tmp_path):
    recipe = recipes.recipes()["class", "spec"]
    run = fit.Run("class", "spec", 2, 32, 2, 1e-3, 0, "bfloat16")
    state, done = fit.fit(recipe, run, IMAGES, LABELS, tmp_path, quiet=True)
    assert done and {a.dtype.name for a in jax.tree.leaves(state.params)} == {"float32"}
    whole, _ = fit.fit(recipe, run._replace(dtype="float32"), IMAGES, LABELS, tmp_path / "whole", quiet=True)
    mean = lambda s: s.params["statistics"]["first"][0]["norm"]["mean"]
    np.testing.assert_allclose(mean(state), mean(whole), rtol=0.05, atol=2e-3)


def test_it_keeps_weights_after_epochs_and_writes_what_it_was(tmp_path):
    recipe = recipes.recipes()["denoise", "spec"]
    run = fit.Run("denoise", "spec", 2, 32, 2, 1e-3, 0)
    state, done = fit.fit(recipe, run, IMAGES, LABELS, tmp_path, keep_epochs=(1, 2), tensorboard=True, quiet=True)
    assert done and int(state.step) == 6
    assert {path.name for path in tmp_path.glob("epoch-*")} == {"epoch-1.safetensors", "epoch-2.safetensors"}
    (events,) = (tmp_path / "tensorboard").glob("events*")
    assert b"loss" in events.read_bytes()
    fit.export(tmp_path / "model", run, state, done, tmp_path, len(IMAGES))
    facts = json.loads((tmp_path / "model" / "training.json").read_text())
    assert (facts["updates"], facts["epochs_done"], facts["finished"], facts["width"]) == (6, 2.0, True, 2)
    state.ema["statistics"]["first"][0]["norm"]["var"] = jnp.full(2, 1e5)  # more than half precision has
    fit.export(tmp_path / "model", run, state, done, tmp_path, len(IMAGES))
    kept = model.load(tmp_path / "model").network.params["statistics"]["first"][0]["norm"]["var"]
    np.testing.assert_allclose(kept, 1e5)
    with pytest.raises(ValueError, match="are of another run: settings width is 4, was 2"):
        fit.fit(recipe, run._replace(width=4), IMAGES, LABELS, tmp_path, quiet=True)
    with pytest.raises(ValueError, match="are of another run: settings images is 64, was 96;"):
        fit.fit(recipe, run, IMAGES[:64], LABELS[:64], tmp_path, quiet=True)


def test_the_log_goes_on_where_a_run_was_killed(tmp_path):
    for last in (3, 5):  # the second begins again after update 20, as from a checkpoint
        first = 0 if last == 3 else 2
        with log.Log(tmp_path, 50, 4, quiet=True) as told:
            for i in range(first, last):
                told(10 * (i + 1), {"loss": np.full(10, float(last)), "gradient_norm": np.ones(10)})
        with (tmp_path / "log.csv").open("a") as file:
            file.write("99,1.5,")  # killed while it wrote
    rows = log.read(tmp_path / "log.csv")
    assert [row["update"] for row in rows] == [10, 20, 30, 40, 50]
    assert [row["loss"] for row in rows] == [3, 3, 5, 5, 5]


DRIVER = """
import sys
import numpy as np
from jdiff.mnist import data
r = np.random.default_rng(0)
images = r.integers(0, 256, (128, 28, 28)).astype(np.uint8)
data.mnist = lambda split, folder: (images, np.arange(128, dtype=np.int32) % 10)
{more}
from jdiff.cli.main import main
sys.exit(main(sys.argv[1:]))
"""
ARGUMENTS = (
    "mnist",
    "train",
    "class",
    "--width",
    "2",
    "--batch",
    "16",
    "--epochs",
    "3",
    "--save-every",
    "3",
    "--quiet",
)


def _start(tmp_path, run, *more, code=""):
    tests = Path(__file__).parent
    path = f"{tests.parent}{os.pathsep}{tests}"
    environment = os.environ | {"JDIFF_CACHE": str(tmp_path / "cache"), "PYTHONPATH": path}
    command = [sys.executable, "-c", DRIVER.format(more=code), *ARGUMENTS, "--run", str(tmp_path / run), *more]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_killed_at_any_moment_it_ends_with_the_same_bits(tmp_path):
    """Each run is killed twice, while it writes one of its checkpoints or between two of them."""
    whole = _start(tmp_path, "whole")
    _, errors = whole.communicate()
    assert whole.returncode == 0, errors
    want = (tmp_path / "whole" / "model" / "model.safetensors").read_bytes()
    dice = random.Random(0)
    for run in map(str, range(KILLED)):
        for _ in range(2):
            kill = moments.KILL.format(uses=dice.randint(1, 100), folder=str(tmp_path / run))
            process = _start(tmp_path, run, code=kill)
            _, errors = process.communicate()
            assert process.returncode == -signal.SIGKILL, errors
        process = _start(tmp_path, run)
        _, errors = process.communicate()
        assert process.returncode == 0, errors
        assert (tmp_path / run / "model" / "model.safetensors").read_bytes() == want
        left = {path.name for path in (tmp_path / run / "checkpoints").iterdir() if not path.name.isdigit()}
        assert left == {FINGERPRINT}  # no half of a checkpoint


FULL = """
import collections, shutil
disk = collections.namedtuple("disk", "total used free")
shutil.disk_usage = lambda path: disk(10**6, 10**6, 100) if list(path.glob("3")) else disk(10**9, 0, 10**9)
"""
FAILING = """
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
from jdiff.training.checkpoints import Checkpoints
save = Checkpoints.save
def fill(self, step, state):
    if step > 3:
        resource.setrlimit(resource.RLIMIT_FSIZE, (500, resource.RLIM_INFINITY))
    try:
        save(self, step, state)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
Checkpoints.save = fill
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there is no limit on files to set")
def test_a_full_disk_is_told_and_the_last_checkpoint_stays(tmp_path):
    for code in (FULL, FAILING):  # seen beforehand, in one line; and writes that fail, among traces of Orbax's own
        process = _start(tmp_path, "full", code=code)
        _, errors = process.communicate()
        lines = errors.strip().splitlines()
        (ours,) = [line for line in lines if line.startswith("jdiff: ")]
        assert process.returncode == 1 and (lines == [ours] or code == FAILING), errors[-3000:]
        assert ours.startswith("jdiff: the checkpoint of update 6 cannot be written to"), ours
        assert "that of update 3 is kept" in ours
    process = _start(tmp_path, "full")
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    assert (tmp_path / "full" / "model" / "model.safetensors").is_file()
