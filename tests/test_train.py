"""The training loop: it learns, resumes to the bit, keeps what is good, and is the same on a mesh."""

import chex
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


def test_the_objective_is_traced_with_the_mesh_that_the_convolutions_look_for():
    seen = []

    def looks(params, key, batch):
        seen.append(jax.sharding.get_abstract_mesh())
        return objective(params, key, batch)

    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    state, optimizer = begin()
    T.train(state, looks, data, optimizer, steps=2, mesh=mesh)
    assert seen and all(mesh.auto_axes == ("data",) for mesh in seen)


def test_a_loss_that_is_not_finite_stops_and_leaves_the_last_checkpoint(tmp_path):
    run(40, checkpoints=tmp_path)
    bad = lambda key: (data(key)[0], data(key)[1] / 0.0)
    state, optimizer = begin()
    with pytest.raises(FloatingPointError, match="the loss of update 40 is"):
        T.train(state, objective, bad, optimizer, steps=80, every=10, save_every=20, decay=0.9, checkpoints=tmp_path)
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


def other_state(**changed):
    params = {"w": jnp.zeros(3), "b": jnp.zeros(())} | changed.pop("params", {})
    return T.start(params, optax.adam(0.05), changed.pop("key", jax.random.key(0)))


OTHERS = {
    "another network": ({"params": {"w": jnp.zeros(4)}}, {}, "state .* is float32 "),
    "another dtype": ({"params": {"w": jnp.zeros(3, jnp.bfloat16)}}, {}, "state .* is bfloat16"),
    "another seed": ({"key": jax.random.key(1)}, {}, "key is "),
    "another decay": ({}, {"decay": 0.5}, "decay is 0.5, was 0.9"),
    "another objective": ({}, {"objective": lambda p, k, b: objective(p, k, b)}, "objective is .*lambda"),
    "other settings": ({}, {"settings": {"rate": 0.1}}, "settings rate is 0.1, was 0.05"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_checkpoint_of_another_run_is_refused(name, tmp_path):
    how = {"steps": 20, "checkpoints": tmp_path, "decay": 0.9, "settings": {"rate": 0.05}}
    changed, settings, message = OTHERS[name]
    state, optimizer = begin()
    first = T.train(state, objective, data, optimizer, **how)
    settings = dict(settings)
    wanted = settings.pop("objective", objective)
    with pytest.raises(ValueError, match=f"are of another run: {message}"):
        T.train(other_state(**changed), wanted, data, optimizer, **(how | settings))
    assert same(T.train(begin()[0], objective, data, optimizer, **how), first)


def test_an_objectives_small_arrays_are_part_of_the_run(tmp_path):
    weigh = lambda weight: jax.tree_util.Partial(weighted, jnp.asarray(weight))
    state, optimizer = begin()
    T.train(state, weigh(1.0), data, optimizer, steps=10, checkpoints=tmp_path)
    with pytest.raises(ValueError, match="are of another run: objective's arrays is"):
        T.train(state, weigh(2.0), data, optimizer, steps=20, checkpoints=tmp_path)


def weighted(weight, params, key, batch):
    loss, metrics = objective(params, key, batch)
    return weight * loss, metrics


def test_settings_that_are_no_json_are_refused(tmp_path):
    state, optimizer = begin()
    with pytest.raises(ValueError, match="settings must be JSON"):
        T.train(state, objective, data, optimizer, steps=1, checkpoints=tmp_path, settings={"a": object()})


@pytest.mark.parametrize("name", ["every", "save_every"])
def test_reports_and_checkpoints_need_updates_between_them(name):
    state, optimizer = begin()
    with pytest.raises(ValueError, match=f"{name} must be a whole number of at least 1, got 0"):
        T.train(state, objective, data, optimizer, steps=3, **{name: 0})


def test_the_callers_arrays_stay():
    params = {"w": jnp.zeros(3), "b": jnp.zeros(())}
    optimizer = optax.adam(0.05)
    state = T.start(params, optimizer, jax.random.key(0))
    after = T.train(state, objective, data, optimizer, steps=10)
    again = T.train(state, objective, data, optimizer, steps=10)
    assert float(params["w"].sum()) == 0 and int(state.step) == 0 and same(after, again)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_parameters_train_and_their_average_is_float32(dtype, tmp_path):
    """An average in bfloat16 would forget updates of a thousandth: 1 + 0.001 is 1 there."""
    optimizer = optax.sgd(0.02)
    params = {"w": jnp.zeros(3, dtype), "b": jnp.zeros((), dtype)}
    how = {"steps": 40, "every": 10, "save_every": 20, "checkpoints": tmp_path, "decay": 0.999}
    state = T.start(params, optimizer, jax.random.key(0))
    trained = T.train(state, objective, data, optimizer, **how)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(trained.params)} == {dtype}
    assert {leaf.dtype.name for leaf in jax.tree.leaves(trained.ema)} == {"float32"}
    assert float(trained.params["b"]) > 0.5
    assert same(T.train(state, objective, data, optimizer, **how), trained)  # from its checkpoint


@pytest.mark.parametrize("implementation", ["rbg", "threefry2x32"])
def test_every_kind_of_key_trains_and_resumes(implementation, tmp_path):
    optimizer = optax.adam(0.05)
    begin = lambda: T.start({"w": jnp.zeros(3), "b": jnp.zeros(())}, optimizer, jax.random.key(3, impl=implementation))
    whole = T.train(begin(), objective, data, optimizer, steps=20, every=10)
    T.train(begin(), objective, data, optimizer, steps=10, every=10, checkpoints=tmp_path)
    assert same(T.train(begin(), objective, data, optimizer, steps=20, every=10, checkpoints=tmp_path), whole)


def test_the_host_reads_ahead_while_the_device_computes(monkeypatch):
    """The data of the next updates are read before the loop waits for the metrics of these."""
    events, get = [], jax.device_get
    monkeypatch.setattr(jax, "device_get", lambda tree: (events.append("waited"), get(tree))[1])

    def ahead(first, n):
        events.append(("read", first))
        return np.arange(first, first + n, dtype=np.float32)

    batches = T.Batches(ahead, lambda key, ahead, i: data(key))
    state, optimizer = begin()
    T.train(
        state, objective, batches, optimizer, steps=30, every=10, report=lambda step, _: events.append(("told", step))
    )
    first, second, third = (["waited", ("told", step)] for step in (10, 20, 30))
    assert events == [("read", 0), ("read", 10), *first, ("read", 20), *second, *third]


def test_the_manager_of_checkpoints_is_closed(tmp_path, monkeypatch):
    import orbax.checkpoint as ocp

    closed = []
    close = ocp.CheckpointManager.close
    monkeypatch.setattr(ocp.CheckpointManager, "close", lambda self: (closed.append(1), close(self))[1])
    run(20, checkpoints=tmp_path)
    with pytest.raises(ValueError, match="of another run"):
        T.train(other_state(key=jax.random.key(5)), objective, data, optax.adam(0.05), steps=40, checkpoints=tmp_path)
    assert len(closed) == 2


def test_training_is_traced_once_for_reports_of_one_length():
    """Two-sided: new parameters, keys and data of the same shapes are the same program."""
    traced = chex.assert_max_traces(objective, n=1)
    chex.clear_trace_counter()
    state, optimizer = begin()
    for _ in range(2):
        state = T.train(state, traced, data, optimizer, steps=int(state.step) + 20, every=10, save_every=20)
