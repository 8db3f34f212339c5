"""The training loop: it learns, resumes to the bit, keeps what is good, and is the same on a mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jdiff.training import loop as T

pytest.importorskip("orbax.checkpoint", reason="checkpoints need the extra `train`")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")  # of orbax


def data(key):
    x = jax.random.normal(key, (16, 3))
    return x, x @ jnp.array([1.0, -2.0, 0.5]) + 3.0


def objective(params, key, batch):
    x, y = batch
    shaken = x + 0.01 * jax.random.normal(key, x.shape)
    return jnp.mean((shaken @ params["w"] + params["b"] - y) ** 2), {"bias": params["b"]}


def begin():
    optimizer = optax.adam(0.05)
    return T.start({"w": jnp.zeros(3), "b": jnp.zeros(())}, optimizer, jax.random.key(0)), optimizer


def run(steps, **settings):
    state, optimizer = begin()
    return T.train(state, objective, data, optimizer, steps=steps, every=10, save_every=20, decay=0.9, **settings)


def same(a, b):
    return all(jax.tree.leaves(jax.tree.map(lambda a, b: bool((a == b).all()), a, b)))


def test_it_learns_and_reports():
    told = []
    state = run(400, report=lambda step, metrics: told.append((step, len(metrics["loss"]), set(metrics))))
    np.testing.assert_allclose(state.params["w"], [1.0, -2.0, 0.5], atol=0.05)
    np.testing.assert_allclose(state.ema["w"], [1.0, -2.0, 0.5], atol=0.05)
    assert [t[0] for t in told] == list(range(10, 401, 10))
    assert told[0][1:] == (10, {"loss", "gradient_norm", "bias"})


def test_the_running_mean_is_the_recursion():
    state, optimizer = begin()
    mean = state.ema
    for step in range(30):
        state, _ = T.update(state, objective, data, optimizer, 0.9, None)
        d = min(0.9, (1 + step) / (10 + step))
        mean = jax.tree.map(lambda m, p, d=d: d * m + (1 - d) * p, mean, state.params)
    np.testing.assert_allclose(state.ema["w"], mean["w"], rtol=1e-5)


@pytest.mark.parametrize("stop", [20, 40, 50])
def test_stopped_and_resumed_it_ends_bit_equal(stop, tmp_path):
    whole = run(60)
    first = run(stop, checkpoints=tmp_path)
    assert int(first.step) == stop
    assert same(run(60, checkpoints=tmp_path), whole)


def test_on_a_mesh_it_is_the_same():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    alone, meshed = run(40), run(40, mesh=mesh)
    np.testing.assert_allclose(alone.params["w"], meshed.params["w"], atol=1e-5)


def test_a_loss_that_is_not_finite_stops_and_leaves_the_last_checkpoint(tmp_path):
    run(40, checkpoints=tmp_path)
    bad = lambda params, key, batch: (objective(params, key, batch)[0] / 0.0, {})
    state, optimizer = begin()
    with pytest.raises(FloatingPointError, match="the loss of update 40 is inf"):
        T.train(state, bad, data, optimizer, steps=80, every=10, save_every=20, checkpoints=tmp_path)
    assert same(run(40, checkpoints=tmp_path), run(40))


def test_saving_between_reports_changes_nothing(tmp_path):
    state, optimizer = begin()
    told = []
    settings = {"steps": 80, "every": 10, "save_every": 25, "decay": 0.9}
    report = lambda step, metrics: told.append((step, len(metrics["loss"])))
    found = T.train(state, objective, data, optimizer, checkpoints=tmp_path, report=report, **settings)
    assert [step for step, _ in told] == [10, 20, 25, 35, 45, 50, 60, 70, 75, 80]
    assert sum(n for _, n in told) == 80
    assert same(found, run(80))


def test_a_report_that_says_so_ends_it_with_a_checkpoint(tmp_path):
    state, optimizer = begin()
    settings = {"every": 10, "save_every": 1000, "decay": 0.9, "checkpoints": tmp_path}
    first = T.train(state, objective, data, optimizer, steps=60, report=lambda step, _: step == 30, **settings)
    assert int(first.step) == 30
    assert same(T.train(begin()[0], objective, data, optimizer, steps=60, **settings), run(60))


def test_batches_come_in_an_order_from_the_host(tmp_path):
    rows = np.random.default_rng(0).standard_normal((60, 16, 3)).astype(np.float32)
    asked = []

    def ahead(first, n):
        asked.append((first, n))
        return rows[first : first + n]

    def cut(key, ahead, i):
        del key
        return ahead[i], ahead[i] @ jnp.array([1.0, -2.0, 0.5])

    batches = T.Batches(ahead, cut)
    state, optimizer = begin()
    whole = T.train(state, objective, batches, optimizer, steps=60, every=20)
    assert asked == [(0, 20), (20, 20), (40, 20)]
    T.train(begin()[0], objective, batches, optimizer, steps=30, every=20, checkpoints=tmp_path)
    again = T.train(begin()[0], objective, batches, optimizer, steps=60, every=20, checkpoints=tmp_path)
    assert same(whole, again)


def test_a_checkpoint_of_another_network_is_refused(tmp_path):
    run(20, checkpoints=tmp_path)
    optimizer = optax.adam(0.05)
    other = T.start({"w": jnp.zeros(4), "b": jnp.zeros(())}, optimizer, jax.random.key(0))
    with pytest.raises(ValueError, match="which holds another network's state"):
        T.train(other, objective, data, optimizer, steps=40, checkpoints=tmp_path)
