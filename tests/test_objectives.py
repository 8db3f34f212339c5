"""The hybrid loss and the error of v: each part against its definition."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdiff import schedule
from jdiff.training import objectives
from jdiff.types import Prediction


class Batch(NamedTuple):
    images: jax.Array


ABAR = jnp.asarray(schedule.cosine(), jnp.float32)
IMAGES = jnp.round(jax.random.uniform(jax.random.key(5), (64, 4, 4, 3)) * 255) / 127.5 - 1


def exact(params, x, t, batch):
    """Predicts the noise that was added, with the posterior's own variance."""
    a = ABAR[t.astype(int)][:, None, None, None]
    eps = (x - jnp.sqrt(a) * batch.images) / jnp.sqrt(1 - a)
    return Prediction(params["scale"] * eps + params["offset"], jnp.full_like(x, -1) + params["wide"])


def loss(scale=1.0, offset=0.0, wide=0.0, least=1.0):
    params = {"scale": jnp.float32(scale), "offset": jnp.float32(offset), "wide": jnp.float32(wide)}
    f = lambda p: objectives.hybrid(
        ABAR, jnp.ones(1000), objectives.cast_weight(ABAR, least), exact, p, jax.random.key(0), Batch(IMAGES)
    )
    (value, parts), gradient = jax.value_and_grad(f, has_aux=True)(params)
    return value, parts, gradient


def test_the_true_noise_and_variance_cost_nothing_but_the_last_step():
    value, parts, _ = loss()
    assert parts["mse"] < 1e-6 and parts["offset"] < 1e-6
    assert parts["bits"] < 0.3  # t = 0 is drawn about once in a thousand: its bits are real


def test_a_network_without_a_variance_is_refused():
    bare = lambda params, x, t, batch: Prediction(x)
    with pytest.raises(ValueError, match="hybrid needs a network with a learned variance"):
        objectives.hybrid(ABAR, jnp.ones(1000), jnp.ones(1000), bare, {}, jax.random.key(0), Batch(IMAGES))


def test_the_bound_teaches_the_variance_alone():
    _, parts, gradient = loss(scale=0.9)
    assert abs(parts["mse"] - 0.01) < 1e-3
    free = jax.grad(lambda s: ((s * jax.random.normal(jax.random.key(1), (4000,)) * 0 + (s - 1)) ** 2).mean())(0.9)
    assert np.sign(gradient["scale"]) == np.sign(free) and abs(gradient["scale"] / free - 1) < 0.1
    assert loss(scale=0.9, wide=1.0)[1]["mse"] == parts["mse"]


def test_an_offset_is_weighted_as_a_cast_of_the_clean_image():
    _, parts, _ = loss(offset=0.1, least=0.01)
    t = objectives.spread_timesteps(jax.random.split(jax.random.key(0))[0], 64, 1000)
    want = (0.01 * (1 - ABAR[t]) / jnp.maximum(ABAR[t], 0.01)).mean()
    np.testing.assert_allclose(parts["offset"], want, rtol=1e-3)


def test_timesteps_are_each_uniform_and_together_even():
    draw = lambda key: objectives.spread_timesteps(key, 8, 1000)
    t = np.asarray(jax.vmap(draw)(jax.random.split(jax.random.key(0), 4000)))
    assert t.min() == 0 and t.max() == 999
    assert abs(t[:, 0].mean() - 499.5) < 3 * 289 / 4000**0.5
    assert (np.diff(np.sort(t), axis=1) >= 124).all()


def test_gaussian_kl_is_that_of_torch():
    torch = pytest.importorskip("torch", reason="the oracle is not installed")
    from torch.distributions import Normal, kl_divergence

    a = [np.random.default_rng(i).normal(size=20) for i in range(4)]
    p, q = (Normal(torch.tensor(m), torch.tensor(np.exp(v / 2))) for m, v in (a[:2], a[2:]))
    np.testing.assert_allclose(objectives.gaussian_kl(*map(jnp.asarray, a)), kl_divergence(p, q), rtol=2e-5)


def test_the_256_values_have_probability_one_together():
    values = jnp.arange(256) / 127.5 - 1
    for mean, log_var in ((0.0, -3.0), (0.9, -6.0), (-1.2, 0.0)):
        total = jnp.exp(-objectives.eight_bit_nll(values, jnp.float32(mean), jnp.float32(log_var))).sum()
        assert abs(total - 1) < 1e-4


def test_the_error_of_v_is_zero_for_the_right_v_and_one_for_none_of_it():
    abar, x0 = jnp.asarray(schedule.cosine(), jnp.float32), jnp.ones((64, 4, 4, 1))
    quantiles = jnp.asarray(objectives.timestep_quantiles(schedule.cosine()))

    def right(params, x, t, batch):
        a = abar[t.astype(int)][:, None, None, None]
        eps = (x - jnp.sqrt(a) * batch.images) / jnp.sqrt(1 - a)
        return Prediction(params * (jnp.sqrt(a) * eps - jnp.sqrt(1 - a) * batch.images))

    error = lambda share: objectives.v_error(abar, quantiles, right, share, jax.random.key(0), Batch(x0))[0]
    assert error(1.0) < 1e-5
    assert abs(float(error(0.0)) - 1) < 0.1  # v has the variance of x0 and eps, which is 1 here


def test_most_timesteps_of_v_are_where_signal_and_noise_are_alike():
    seen = []

    def told(params, x, t, batch):
        seen.append(t)
        return Prediction(x)

    abar = schedule.cosine()
    quantiles = jnp.asarray(objectives.timestep_quantiles(abar))
    images = Batch(jnp.zeros((1000, 1, 1, 1)))
    objectives.v_error(jnp.asarray(abar, jnp.float32), quantiles, told, {}, jax.random.key(0), images)
    ratio = np.log((1 - abar) / abar)[np.asarray(seen[0], int)] / 2
    near = (np.abs(ratio) < 1).mean()
    uniform = (np.abs(np.log((1 - abar) / abar) / 2) < 1).mean()
    assert abs(near - (0.9 * 0.6827 + 0.1 * uniform)) < 0.03  # a normal distribution has 68 % within its deviation


def test_adversarial_examples_are_near_and_cost_more():
    images = jax.random.normal(jax.random.key(1), (8, 5, 5, 1))
    seen = []

    def objective(params, key, batch):
        seen.append(batch[0])
        return (params * batch[0] ** 2).sum((1, 2, 3)).mean(), {}

    run = lambda params: objectives.adversarial(objective, 2.0, params, jax.random.key(0), (images, jnp.arange(8)))
    loss, _ = run(3.0)
    lengths = jnp.sqrt(((seen[-1] - images) ** 2).sum((1, 2, 3)))
    assert (lengths <= 2 + 1e-5).all() and lengths.max() > 1 and lengths.min() < 1
    each = (3.0 * seen[-1] ** 2).sum((1, 2, 3)) > (3.0 * images**2).sum((1, 2, 3))
    assert each.all() and float(loss) > float(objective(3.0, None, (images,))[0])
    slope = jax.grad(lambda params: run(params)[0])(3.0)  # the attack itself is not differentiated
    assert float(slope) == pytest.approx(float(loss) / 3, rel=1e-5)
