"""Keys: an image has the same bits alone and in any batch, for every key implementation; wrong keys are refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdiff import combine, keys, sample, schedule, step
from jdiff.types import Prediction

IMPLEMENTATIONS = ("threefry2x32", "rbg", "unsafe_rbg")
PROMPT = combine.conditional(jnp.zeros((1, 1)))


def draw(image_keys, solver=None, jumps=False):
    levels = schedule.levels(schedule.cosine(), schedule.leading(6))
    levels = schedule.resample(levels, 2, 2) if jumps else levels
    x = sample.start(image_keys, (4, 4, 3))
    network = lambda x, t, told: Prediction(jnp.tanh(x), 0.1 * x)
    return sample.sample(network, image_keys, x, levels, combiner=PROMPT, solver=solver).images


SOLVERS = {
    "ddpm": lambda: step.ddpm(),
    "ddim eta 1": lambda: step.ddim(1.0),
    "condition": lambda: step.condition(step.ddpm(), jnp.zeros((4, 4, 3)), lambda x: 0.5 * x),
}


@pytest.mark.parametrize("jumps", [False, True])
@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_an_image_is_the_same_alone_and_in_a_batch(implementation, name, jumps):
    key = jax.random.key(5, impl=implementation)
    together = draw(keys.image_keys(key, 4), SOLVERS[name](), jumps)
    alone = draw(keys.image_keys(key, 4)[2:3], SOLVERS[name](), jumps)
    np.testing.assert_allclose(together[2], alone[0], rtol=1e-5, atol=1e-6)
    assert np.abs(together[1] - together[2]).max() > 0.1


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_keys_and_noise_are_jaxs_own(implementation):
    key = jax.random.key(5, impl=implementation)
    assert bool((keys.image_keys(key, 4)[3] == jax.random.fold_in(key, 3)).all())
    nested = keys.image_keys(key, 4).reshape(2, 2)
    noise = jax.vmap(jax.vmap(lambda key: keys.normal(key, (3,))))(nested)
    for i in range(2):
        for j in range(2):
            np.testing.assert_array_equal(noise[i, j], jax.random.normal(nested[i, j], (3,)))


@pytest.mark.parametrize(("implementation", "raw"), [("threefry2x32", 2), ("rbg", 4)])
def test_raw_keys_are_wrapped(implementation, raw):
    typed = jax.random.key(3, impl=implementation)
    data = jax.random.key_data(typed)
    assert data.shape == (raw,)
    assert bool((keys.as_key(data) == typed).all())
    np.testing.assert_array_equal(draw(jax.random.key_data(keys.image_keys(typed, 2))), draw(keys.image_keys(typed, 2)))


@pytest.mark.parametrize("wrong", [0, None, 1.5, "key", np.zeros(2, np.uint32), jnp.zeros(3, jnp.uint32), jnp.zeros(2)])
def test_what_is_no_key_is_refused(wrong):
    with pytest.raises(ValueError, match="key must be a random key such as jax.random.key"):
        keys.as_key(wrong)
