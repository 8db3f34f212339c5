"""Devices: the tasks over a mesh of eight and in groups are the same pictures, and no step of theirs communicates."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from test_tasks import HALF, IMAGE, KEY, LARGE, PROMPTS, SMALL, anagram, make

from jdiff import mesh, sample, scan
from jdiff.networks import unet
from jdiff.types import Conditioning

TASKS = {
    "generate": lambda **s: sample.generate(make(), PROMPTS, KEY, n=4, **s),
    "edit": lambda **s: sample.edit(make(), IMAGE, PROMPTS, KEY, n=4, **s),
    "inpaint with jumps": lambda **s: sample.inpaint(
        make(), IMAGE, HALF, PROMPTS, KEY, n=4, jump_length=2, resamplings=2, **s
    ),
    "inpaint, clean": lambda **s: sample.inpaint(make(), IMAGE, HALF, PROMPTS, KEY, n=4, noised=False, **s),
    "upscale": lambda **s: sample.upscale(make(2), SMALL, PROMPTS, KEY, n=4, **s),
    "edit, stage 2": lambda **s: sample.edit(make(2), LARGE, PROMPTS, KEY, n=4, low_res=SMALL, **s),
    "anagrams": lambda **s: sample.generate(make(), [anagram(p) for p in PROMPTS], KEY, n=4, **s),
    "a function": lambda **s: sample.generate(make(), halves, KEY, n=8, **s),
}


def halves(denoise, x, level):
    return denoise(x, level.t, Conditioning(jnp.zeros((5, 32))))


@pytest.mark.parametrize("name", TASKS)
def test_a_task_over_eight_devices_draws_the_same_without_a_collective(name, monkeypatch):
    programs, split = [], []
    run = scan._run

    def spied(*args, **settings):
        programs.append(run.lower(*args, **settings).compile().as_text())
        state = run(*args, **settings)
        split.append(state.x.sharding.shard_shape(state.x.shape)[0] * 8 == len(state.x))
        return state

    alone = TASKS[name]().images
    monkeypatch.setattr(scan, "_run", spied)
    spread = TASKS[name](mesh=mesh.make()).images
    np.testing.assert_allclose(spread, alone, atol=2e-5)
    assert len(programs) == 1 and split == [True]  # each device draws an eighth of the images
    words = ("all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter")
    assert not [word for word in words if word in programs[0]]


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize(("n", "at_once"), [(3, 2), (3, 100), (5, 1)])
def test_groups_draw_the_same(n, at_once, devices):
    told = []
    how = {"mesh": mesh.make() if devices == 8 else None, "images_at_once": at_once}
    whole = sample.generate(make(), PROMPTS, KEY, n=n, keep=2)
    parts = sample.generate(make(), PROMPTS, KEY, n=n, keep=2, progress=lambda *done: told.append(done), **how)
    np.testing.assert_allclose(parts.images, whole.images, atol=2e-5)
    np.testing.assert_allclose(parts.way, whole.way, rtol=1e-4, atol=2e-5)
    assert told[-1][0] == told[-1][1] and [done for done, _ in told] == sorted(done for done, _ in told)


@pytest.mark.parametrize("n", [1, 5, 8, 17])
@pytest.mark.parametrize("at_once", [None, 1, 3, 8, 100])
@pytest.mark.parametrize("devices", [1, 2, 8])
def test_groups_cover_each_row_once_in_one_size(n, at_once, devices):
    parts = list(mesh.groups(n, at_once, devices))
    assert np.concatenate([rows[:wanted] for rows, wanted in parts]).tolist() == list(range(n))
    assert len({len(rows) for rows, _ in parts}) == 1 and all(len(rows) % devices == 0 for rows, _ in parts)
    assert at_once is None or len(parts[0][0]) <= max(at_once, devices) or at_once >= n


def test_parameters_are_split_over_the_model_axis():
    """IF-I-M's network on eight devices: each holds an eighth of what is large, and the small ones whole."""
    shapes = unet.unet(unet.Config()).params
    shardings = mesh.parameter_shardings(mesh.make(model=8), shapes)
    pairs = list(zip(jax.tree.leaves(shapes), jax.tree.leaves(shardings), strict=True))
    bytes_a_device = sum(4 * np.prod(sharding.shard_shape(a.shape)) for a, sharding in pairs)
    total = sum(4 * a.size for a, _ in pairs)
    assert bytes_a_device < 1.05 * total / 8
    assert any(sharding.spec == PartitionSpec() for _, sharding in pairs)


def test_a_model_axis_that_does_not_divide_the_devices_is_refused():
    with pytest.raises(ValueError, match="model must divide the number of devices, 8, got 3"):
        mesh.make(model=3)
