"""A guidance interval changes no picture, and outside it the network is evaluated for the text alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdiff import combine, sample, scan, schedule, step, views
from jdiff.types import Prediction

LOW, HIGH = 250.0, 700.0
LEVELS = schedule.levels(schedule.cosine(), range(950, -1, -50))
OUTSIDE = int(((LEVELS.t < LOW) | (LEVELS.t > HIGH)).sum())
SHAPE = (4, 4, 3)


def text(seed):
    return jax.random.normal(jax.random.key(seed), (2, 3), float)


def skipped(scale):
    return combine.between(scale, LOW, HIGH)


def same(scale):
    """The same scale by a function that says nothing of an interval, so that nothing is left out."""
    return lambda level: jnp.where((level.t >= LOW) & (level.t <= HIGH), scale, 1.0)


def guided(seed, scale, **how):
    return combine.cfg(text(seed), scale, text(0), **how)


# The combiner of a scale, its evaluations inside the interval, and outside.
COMBINERS = {
    "cfg": (lambda s: guided(1, s(3.0)), 2, 1),
    "rescaled": (lambda s: guided(1, s(3.0), rescale=0.7), 2, 1),
    "anagram": (lambda s: combine.mean([guided(1, s(3.0)), combine.view(views.flip(), guided(2, s(4.0)))]), 4, 2),
    "hybrid of anagrams": (
        lambda s: combine.components({
            views.low_pass(1.0, 5): combine.mean([guided(1, s(3.0)), combine.view(views.flip(), guided(2, s(2.0)))]),
            views.high_pass(1.0, 5): guided(3, s(5.0)),
        }), 6, 3,
    ),
    "beside a constant": (lambda s: combine.mean([guided(1, s(3.0)), guided(2, 4.0)]), 4, 3),
    "beside a condition": (lambda s: combine.mean([guided(1, s(3.0)), combine.conditional(text(2))]), 3, 2),
}  # fmt: skip


def network(seen):
    def denoise(x, t, told):
        jax.debug.callback(lambda: seen.append(x.shape[0]))
        shift = told.text.sum(axis=(1, 2))[:, None, None, None]
        return Prediction(jnp.tanh(x + shift + t[:, None, None, None] / 1000))

    return denoise


def drawn(combiner, seen, n=1, **how):
    keys = sample.image_keys(jax.random.key(5), n)
    x = sample.start(keys, SHAPE, float)
    made = sample.sample(network(seen), keys, x, LEVELS, combiner=combiner, solver=step.ddim(), **how).images
    jax.effects_barrier()
    return np.asarray(made)


@pytest.mark.parametrize("branch_batch", [None, 1])
@pytest.mark.parametrize("name", COMBINERS)
def test_an_interval_leaves_out_evaluations_and_changes_nothing(name, branch_batch):
    make, inside, outside = COMBINERS[name]
    with jax.enable_x64(True):
        fewer, all_of_them = [], []
        found = drawn(make(skipped), fewer, branch_batch=branch_batch)
        want = drawn(make(same), all_of_them, branch_batch=branch_batch)
    np.testing.assert_allclose(found, want, rtol=0, atol=1e-13)
    assert sum(all_of_them) == inside * len(LEVELS.t)
    assert sum(fewer) == inside * (len(LEVELS.t) - OUTSIDE) + outside * OUTSIDE


def test_images_with_combiners_of_their_own_leave_out_evaluations_where_all_can():
    """Their intervals differ: evaluations are left out outside of both."""
    with jax.enable_x64(True):
        scales = [combine.between(3.0, LOW, HIGH), combine.between(2.0, LOW, 450.0)]
        stacked = jax.tree.map(lambda *a: jnp.stack(a), *(guided(i, scale) for i, scale in enumerate(scales)))
        seen = []
        both = drawn(stacked, seen, n=2, in_axes=0)
        alone = [drawn(guided(i, scale), [], n=2)[i] for i, scale in enumerate(scales)]
    np.testing.assert_allclose(both, np.stack(alone), rtol=0, atol=1e-13)
    assert sum(seen) == 2 * len(LEVELS.t) - OUTSIDE  # the callback is called once for both images


def test_every_interval_is_one_program():
    with jax.enable_x64(True):
        denoise, keys = network([]), sample.image_keys(jax.random.key(0), 1)
        x = sample.start(keys, SHAPE, float)
        draw = lambda scale: sample.sample(denoise, keys, x, LEVELS, combiner=guided(1, scale), solver=step.ddim())
        draw(combine.between(3.0, 100, 200))
        before = scan._run._cache_size()
        for scale in (combine.between(3, 0, 999), combine.between(2.5, LOW, HIGH)):
            draw(scale)
        assert scan._run._cache_size() == before
