"""Laws that every combiner, solver and sampler obeys, over tables of all members."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params
from jax.tree_util import Partial

from jdiff import combine, sample, scan, schedule, step, views
from jdiff.networks import unet
from jdiff.types import Combiner, Conditioning, Level, Network, Prediction

L, D = 5, 6  # tokens and width of the test's prompt embeddings
SHAPE = (4, 8, 3)


def text(seed):
    return jax.random.normal(jax.random.key(seed), (L, D))


def guided(seed, scale=3.0):
    return combine.cfg(text(seed), scale, text(0))


def interval(level):  # guidance between the highest levels and the lowest
    return jnp.where((level.noise > 0.2) & (level.noise < 0.9), 5.0, 1.0)


def anagram_of_hybrids():
    hybrid = lambda a, b: combine.components([(views.grayscale(), guided(a, 2.0 + a)), (views.color(), guided(b))])
    return combine.mean([hybrid(1, 2), combine.view(views.flip(), hybrid(3, 4))])


COMBINERS = {
    "conditional": lambda: combine.conditional(text(1)),
    "cfg": lambda: guided(1),
    "cfg, scale of the level": lambda: combine.cfg(text(1), interval, text(0)),
    "mixture": lambda: combine.mixture([combine.conditional(text(1)), guided(2)], [1.0, 3.0]),
    "mixture of mixtures": lambda: combine.mixture([guided(1), combine.mixture([guided(2), guided(3)])]),
    "compose": lambda: combine.compose(guided(1).rule, [combine.conditional(text(4)), guided(5)]),
    "cfg, rescaled": lambda: combine.cfg(text(1), 3.0, text(0), rescale=0.7),
    "cfg between": lambda: combine.cfg(text(1), combine.between(3.0, 100, 800), text(0)),
    "conjunction": lambda: combine.conjunction([text(1), text(2)], [3.0, -1.0], text(0)),
    "view": lambda: combine.view(views.flip(), guided(1)),
    "mean": lambda: combine.mean([guided(1), combine.view(views.negate(), guided(2))]),
    "alternate": lambda: combine.alternate([guided(1), combine.conditional(text(2)), guided(3)]),
    "components": lambda: combine.components({views.low_pass(): guided(1), views.high_pass(): guided(2)}),
    "anagram of hybrids": lambda: anagram_of_hybrids(),
}
SOLVERS = {
    "ddpm learned": step.ddpm(),
    "ddpm small": step.ddpm(step.small),
    "ddpm large": step.ddpm(step.large),
    "ddpm threshold": step.ddpm(x0_rule=step.threshold()),
    "ddim": step.ddim(),
    "ddim eta 0.5": step.ddim(0.5),
    "ddim eta 1": step.ddim(1.0, x0_rule=step.threshold()),
    "dpmpp_2m": step.dpmpp_2m(),
    "condition": step.condition(step.ddpm(), jnp.linspace(-1, 1, 96).reshape(SHAPE), views.low_pass()),
    "condition, clean": step.condition(step.dpmpp_2m(), jnp.zeros(SHAPE), views.grayscale(), noised=False),
}
LEVEL = sample.one(schedule.levels(schedule.cosine(), schedule.leading(4)), 1)

traces = []


def network(weights, x, t, conditioning):
    """A small network that depends on all its inputs, and counts how often it is traced."""
    traces.append(x.shape)
    told = jnp.tanh(conditioning.text @ weights).mean(axis=(-2, -1))[:, None, None, None]
    wave = jnp.sin(t / 300)[:, None, None, None]
    return Prediction(jnp.tanh(x * 0.7 + told) + 0.1 * wave, 0.3 * jnp.cos(x + told))


def denoise(seed=7, dtype=jnp.float32):
    return Partial(network, jax.random.normal(jax.random.key(seed), (D, 3), dtype))


def estimate(combiner, x, level=LEVEL):
    return combine.denoiser(denoise(), combiner)(x, level)


def image(seed=11):
    return jax.random.normal(jax.random.key(seed), SHAPE)


def assert_same(a, b, tolerance=2e-6):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=tolerance), a, b)


def walk(combiner, solver, n_images=3, steps=6, **settings):
    levels = schedule.levels(schedule.cosine(), schedule.leading(steps))
    keys = sample.image_keys(jax.random.key(3), n_images)
    x = sample.start(keys, SHAPE)
    return sample.sample(denoise(), keys, x, levels, combiner=combiner, solver=solver, **settings)


# --- combiners


@pytest.mark.parametrize("name", COMBINERS)
def test_agreeing_predictions_pass_through(name):
    """If all branches agree, the result is their prediction. A view moves variances, but does not change their sign."""
    combiner, one = COMBINERS[name](), Prediction(image(1), jnp.abs(image(2)))
    shown, variances = (combiner.rule.spread(a, None, LEVEL)[0] for a in one)
    assert_same(combiner.rule.gather(Prediction(shown, jnp.abs(variances)), image(), LEVEL), one)


@pytest.mark.parametrize("name", COMBINERS)
def test_compose_has_conditional_as_identity(name):
    combiner = COMBINERS[name]()
    outside = combine.compose(combine.identity_rule(), [combiner])
    assert_same(estimate(outside, image()), estimate(combiner, image()))
    leaves = [combine.conditional(t) for t in combiner.conditioning.text]
    assert_same(estimate(combine.compose(combiner.rule, leaves), image()), estimate(combiner, image()))


@pytest.mark.parametrize("name", COMBINERS)
def test_compose_is_associative(name):
    outer = COMBINERS[name]()
    middle = [guided(10 + i, 1.5 + i) for i in range(combine.size(outer))]
    inner = [combine.mixture([combine.conditional(text(20 + i)), guided(30 + i)]) for i in range(2 * len(middle))]
    left = combine.compose(combine.compose(outer.rule, middle).rule, inner)
    right = combine.compose(
        outer.rule, [combine.compose(m.rule, inner[2 * i : 2 * i + 2]) for i, m in enumerate(middle)]
    )
    assert combine.size(left) == combine.size(right) == 6 * len(middle)
    assert_same(estimate(left, image()), estimate(right, image()), 1e-5)


def test_cfg_equals_the_papers_formula_and_scale_one_is_the_conditional():
    one = lambda t: network(denoise().args[0], image()[None], jnp.full(1, LEVEL.t, jnp.float32), Conditioning(t[None]))
    u, c = one(text(0)), one(text(1))
    want = Prediction((u.estimate + 3 * (c.estimate - u.estimate))[0], c.variance[0])
    assert_same(estimate(guided(1), image()), want)
    assert_same(estimate(guided(1, 1.0), image()), estimate(combine.conditional(text(1)), image()))


def test_agreeing_predictions_pass_through_alternation_in_turn():
    inners = [guided(1), combine.conditional(text(2)), guided(3)]
    for i in range(5):
        level = LEVEL._replace(i=i)
        assert_same(estimate(combine.alternate(inners), image(), level), estimate(inners[i % 3], image(), level))


def test_an_anagram_of_hybrids_equals_the_same_written_out():
    weights, x = denoise().args[0], image()

    def one(x, seed):
        return jax.tree.map(lambda a: a[0], network(weights, x[None], jnp.full(1, LEVEL.t, jnp.float32),
                                                    Conditioning(text(seed)[None])))  # fmt: skip

    def guide(x, seed, scale):
        u, c = one(x, 0), one(x, seed)
        return u.estimate + scale * (c.estimate - u.estimate), c.variance

    def hybrid(x, a, b):
        (ea, va), (eb, vb) = guide(x, a, 2.0 + a), guide(x, b, 3.0)
        return ea.mean(-1, keepdims=True) + eb - eb.mean(-1, keepdims=True), (va + vb) / 2

    (upright, v1), (turned, v2) = hybrid(x, 1, 2), hybrid(x[::-1], 3, 4)
    want = Prediction((upright + turned[::-1]) / 2, (v1 + v2[::-1]) / 2)
    assert_same(estimate(anagram_of_hybrids(), x), want, 1e-5)
    traces.clear()
    walk(anagram_of_hybrids(), step.ddpm(), n_images=1)
    assert traces == [(8, *SHAPE)]


def test_conjunction_is_style_mixing_and_guidance():
    assert_same(estimate(combine.conjunction([text(1)], [3.0], text(0)), image()), estimate(guided(1), image()))
    u, c, p = (estimate(combine.conditional(text(i)), image()) for i in range(3))
    want = Prediction(u.estimate + 7 * (0.7 * c.estimate + 0.3 * p.estimate - u.estimate), c.variance)
    assert_same(estimate(combine.conjunction([text(1), text(2)], [7 * 0.7, 7 * 0.3], text(0)), image()), want, 1e-5)


def test_guidance_is_rescaled_to_the_deviation_of_the_texts_own():
    plain, full = (combine.cfg(text(1), 3.0, text(0), rescale=r) for r in (0.0, 1.0))
    assert_same(estimate(plain, image()), estimate(guided(1), image()))
    alone = estimate(combine.conditional(text(1)), image()).estimate
    np.testing.assert_allclose(estimate(full, image()).estimate.std(), alone.std(), rtol=1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: combine.between(7.0, 800, 200), "low must be at most high, got 800 and 200"),
        (
            lambda: combine.cfg(text(1), 3.0, text(0), rescale=5),
            "rescale must be a finite number between 0 and 1, got 5",
        ),
        (lambda: views.low_and_high(8.0), "sigma must be a finite number between 1e-06 and 7, got 8.0"),
    ],
)
def test_numbers_that_cannot_mean_anything_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_guidance_in_an_interval():
    told = combine.cfg(text(1), combine.between(3.0, 100, 400), text(0))
    for t, scale in ((50.0, 1.0), (100.0, 3.0), (400.0, 3.0), (401.0, 1.0)):
        level = LEVEL._replace(t=t)
        assert_same(estimate(told, image(), level), estimate(guided(1, scale), image(), level))


def test_a_view_acts_on_the_low_res_image_too():
    low = image(3)
    shown = combine.view(views.negate(), combine.view(views.flip(), guided(1))).rule.spread(image(), low, LEVEL)
    assert_same(shown, (jnp.stack([-image()[::-1]] * 2), jnp.stack([-low[::-1]] * 2)), 0)


def test_mixture_equals_the_weighted_mean():
    parts = [combine.conditional(text(1)), guided(2)]
    a, b = (estimate(p, image()) for p in parts)
    want = jax.tree.map(lambda a, b: (a + 3 * b) / 4, a, b)
    assert_same(estimate(COMBINERS["mixture"](), image()), want)


@pytest.mark.parametrize("name", COMBINERS)
@pytest.mark.parametrize("branch_batch", [1, 2])
def test_branches_a_few_at_a_time_are_the_same(name, branch_batch):
    few = combine.denoiser(denoise(), COMBINERS[name](), branch_batch=branch_batch)(image(), LEVEL)
    assert_same(few, estimate(COMBINERS[name](), image()))


def test_a_plain_function_is_a_combiner():
    def guide(one, x, level):
        u, c = (one(x, level.t, Conditioning(t)) for t in (text(0), text(1)))
        return Prediction(u.estimate + 3 * (c.estimate - u.estimate), c.variance)

    assert_same(walk(guide, step.ddpm()).images, walk(guided(1), step.ddpm()).images, 1e-5)


def test_a_plain_function_may_take_gradients_through_the_network():
    goal = image(5)

    def posterior(one, x, level):  # diffusion posterior sampling
        def miss(x):
            p = one(x, level.t, Conditioning(text(1)))
            return jnp.sum((step.noise(p.estimate, x, level) - goal) ** 2), p

        gradient, p = jax.grad(miss, has_aux=True)(x)
        return p._replace(estimate=p.estimate + 0.1 * level.noise * gradient)

    free, led = (walk(c, step.ddim()).images for c in (combine.conditional(text(1)), posterior))
    assert np.abs(led - goal[None]).mean() < 0.9 * np.abs(free - goal[None]).mean()


def test_a_functions_arrays_may_be_per_image():
    def guide(texts, one, x, level):
        u, c = (one(x, level.t, Conditioning(t)) for t in (text(0), texts))
        return Prediction(u.estimate + 3 * (c.estimate - u.estimate), c.variance)

    texts = jnp.stack([text(1), text(2), text(3)])
    each = walk(Partial(guide, texts), step.ddpm(), in_axes=0).images
    for i in range(3):
        assert_same(each[i], walk(guided(i + 1), step.ddpm()).images[i], 1e-5)


def low_res_network(weights, x, t, told):
    found = network(weights, x, t, told)
    shift = 0.3 * told.low_res + 0.001 * told.noise_level[:, None, None, None]
    return found._replace(estimate=found.estimate + shift)


@pytest.mark.parametrize("solver", [step.ddpm(), step.ddim()])
def test_a_function_is_shown_the_low_res_image_like_any_combiner(solver):
    def plain(one, x, level):
        return one(x, level.t, Conditioning(text(1)))

    keys, levels = sample.image_keys(jax.random.key(3), 2), schedule.levels(schedule.cosine(), schedule.leading(4))
    low = jax.random.normal(jax.random.key(4), (2, *SHAPE))
    network = Partial(low_res_network, denoise().args[0])
    how = {"solver": solver, "low_res": low, "noise_level": 250}
    x = sample.start(keys, SHAPE)
    a, b, dry = (
        sample.sample(network, keys, x, levels, combiner=c, **(how | settings)).images
        for c, settings in ((plain, {}), (combine.conditional(text(1)), {}), (plain, {"low_res": -low}))
    )
    assert_same(a, b, 1e-5)
    assert np.abs(a - dry).max() > 1e-3


def test_a_function_refuses_branch_batch():
    with pytest.raises(ValueError, match="branch_batch must be None with a function as combiner, got 2"):
        walk(lambda one, x, level: one(x, level.t, Conditioning(text(1))), step.ddpm(), branch_batch=2)


def primitives(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for sub in jaxprs_in_params(equation.params):
            yield from primitives(sub)


def equations(combiner, solver, levels, shape=(16, 16, 3)):
    """Returns all operations of the compiled scan."""
    keys, weights = sample.image_keys(jax.random.key(0), 2), denoise().args[0]
    x = sample.start(keys, shape)
    run = lambda keys, x: program(Network(weights, network), keys, x, levels, solver, combiner)
    return list(primitives(jax.make_jaxpr(run)(keys, x).jaxpr))


COSINE = schedule.levels(schedule.cosine(), schedule.leading(6))


@pytest.mark.parametrize(
    ("solver", "levels", "draws"),
    [
        (step.ddim(), COSINE, False),
        (step.dpmpp_2m(), COSINE, False),
        (step.ddim(predicts=step.velocity), schedule.flow(np.linspace(0, 1, 7)), False),
        (step.ddim(0.5), COSINE, True),
        (step.ddpm(), COSINE, True),
        (step.ddim(), schedule.resample(COSINE, 2, 2), True),
    ],
)
def test_noise_is_drawn_only_where_it_is_used(solver, levels, draws):
    names = {equation.primitive.name for equation in equations(guided(1), solver, levels)}
    assert ("random_bits" in names) == draws


EXPENSIVE = {
    **{f"view {name}": lambda view=view: combine.view(view(), guided(1)) for name, view in views.VIEWS.items()},
    **{
        f"components {name}": lambda parts=parts: combine.components([(part, guided(1)) for part in parts()])
        for name, parts in views.FACTORISATIONS.items()
    },
}


@pytest.mark.parametrize("name", [name for name in EXPENSIVE if "pixel_permute" not in name])
def test_views_and_components_scatter_and_sort_nothing_in_the_loop(name):
    found = {equation.primitive.name for equation in equations(EXPENSIVE[name](), step.ddim(), COSINE)}
    assert not [primitive for primitive in found if "scatter" in primitive or primitive == "sort"]


@pytest.mark.parametrize("name", ["components low and high", "components three bands"])
def test_products_outside_the_network_have_the_highest_precision(name):
    combiner = combine.mixture([EXPENSIVE[name](), combine.conjunction([text(1)], [2.0], text(0))])
    products = [e for e in equations(combiner, step.ddim(), COSINE) if e.primitive.name == "dot_general"]
    ours = [e for e in products if D not in e.invars[0].aval.shape]  # the network's own has the text's width
    highest = (jax.lax.Precision.HIGHEST,) * 2
    assert len(ours) >= 4 and all(e.params["precision"] == highest for e in ours)


def test_compose_and_mixture_refuse_the_wrong_number():
    with pytest.raises(ValueError, match="combiners must have one for each of the rule's 2 branches, got 1"):
        combine.compose(guided(1).rule, [guided(2)])
    with pytest.raises(ValueError, match=r"weights must have 2 numbers, got shape \(3,\)"):
        combine.mixture([guided(1), guided(2)], [1.0, 2.0, 3.0])


def test_a_pooled_text_beside_silent_ones_is_their_text():
    styled = combine.conditional(text(1), pooled=text(2))
    both = combine.mixture([styled, combine.conditional(text(3))]).conditioning
    assert_same(both.pooled, jnp.stack([text(2), text(3)]))


# --- the scan


@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)
@pytest.mark.parametrize("name", ["conditional", "mixture of mixtures"])
def test_the_scan_equals_a_loop_over_public_steps(name, solver):
    combiner = COMBINERS[name]()
    rows = solver.table(schedule.levels(schedule.cosine(), schedule.leading(6)))
    key = sample.image_keys(jax.random.key(3), 3)[1]
    state = solver.init(sample.start(key[None], SHAPE)[0])
    for i in range(6):
        row = jax.tree.map(lambda a, i=i: jnp.asarray(a[i], jnp.float32), rows)
        estimate = combine.denoiser(denoise(), combiner)
        state, info = solver.step(jax.random.fold_in(key, i), state, row, estimate)
        assert info.x0.shape == SHAPE
    got = walk(combiner, solver).images[1]
    assert np.linalg.norm(got - state.x) < 2e-5 * np.linalg.norm(state.x)


@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)
def test_an_image_is_the_same_alone_and_in_any_batch(solver):
    assert_same(walk(guided(1), solver, n_images=1).images[0], walk(guided(1), solver, n_images=5).images[0], 1e-5)


def test_eager_equals_jit():
    with jax.disable_jit():
        eager = walk(guided(1), step.ddpm(), n_images=1, steps=3).images
    assert_same(eager, walk(guided(1), step.ddpm(), n_images=1, steps=3).images, 1e-5)


def test_progress_and_what_is_kept_change_nothing():
    seen = []
    plain = walk(guided(1), step.ddpm())
    told = walk(guided(1), step.ddpm(), progress=lambda done, total: seen.append((done, total)), keep_every=2)
    assert_same(plain.images, told.images, 1e-6)
    assert seen == [(2, 6), (4, 6), (6, 6)] and plain.way is None
    assert told.way.shape == (3, 3, *SHAPE)
    assert_same(told.way[:, -1], told.images, 0)
    assert_same(walk(guided(1), step.ddpm(), keep_every=2).way, told.way, 1e-6)
    stopped = iter_to_row(4)
    assert_same(told.way[:, 1], stopped, 1e-6)


def iter_to_row(n):
    levels = jax.tree.map(lambda a: a[:n], schedule.levels(schedule.cosine(), schedule.leading(6)))
    keys = sample.image_keys(jax.random.key(3), 3)
    return sample.sample(denoise(), keys, sample.start(keys, SHAPE), levels, combiner=guided(1)).images


def test_iterative_denoise_is_the_rest_of_the_table():
    levels = schedule.levels(schedule.cosine(), schedule.leading(6))
    keys = sample.image_keys(jax.random.key(3), 3)
    rest = sample.iterative_denoise(denoise(), keys, iter_to_row(4), levels, i_start=4, combiner=guided(1))
    assert_same(rest.images, walk(guided(1), step.ddpm()).images, 1e-6)
    with pytest.raises(ValueError, match="i_start must be a whole number between 0 and 5, got 6"):
        sample.iterative_denoise(denoise(), keys, iter_to_row(4), levels, i_start=6, combiner=guided(1))


def traced(run, *settings):
    """Returns how often the network is traced for each of `settings` after the first, and the images of all."""
    images = [run(**settings[0])]
    traces.clear()
    images += [run(**other) for other in settings[1:]]
    return len(traces), images


def run(seed=1, scale=3.0, steps=10, network_seed=1, keep_every=0, progress=None):
    keys = sample.image_keys(jax.random.key(seed), 2)
    levels = schedule.levels(schedule.cosine(), schedule.leading(steps))
    how = {"combiner": combine.cfg(text(seed), scale, text(0)), "solver": step.ddpm(x0_rule=step.threshold())}
    how |= {"keep_every": keep_every, "progress": progress}
    return sample.sample(denoise(network_seed), keys, sample.start(keys, (8, 4, 3)), levels, **how).images


def test_nothing_is_traced_again_for_new_values():
    settings = [{}, {"seed": 2}, {"scale": 4.0}, {"steps": 20}, {"steps": 64}, {"network_seed": 2}]
    again, (first, *others) = traced(run, *settings)
    assert again == 0
    assert all(np.abs(first - other).max() > 1e-3 for other in others)


@pytest.mark.parametrize("number", [3, np.int64(3), np.float32(3), np.float64(3), jnp.float32(3), jnp.int32(3)])
def test_a_number_is_one_program_whatever_its_type(number):
    again, (first, other) = traced(run, {"scale": 3.0}, {"scale": number})
    assert again == 0
    np.testing.assert_array_equal(first, other)


NUMBERS = {
    "cfg": lambda n: combine.cfg(text(1), n, text(0)),
    "cfg, rescaled": lambda n: combine.cfg(text(1), n, text(0), rescale=n),
    "cfg between": lambda n: combine.cfg(text(1), combine.between(n, n, n), text(0)),
    "conjunction": lambda n: combine.conjunction([text(1), text(2)], [n, n], text(0)),
    "mixture": lambda n: combine.mixture([guided(1), guided(2)], [n, n]),
    "low_pass": lambda n: combine.components({views.low_pass(n): guided(1), views.high_pass(n): guided(2)}),
    "scale": lambda n: combine.components({views.scale(n): guided(1), views.scale(n): guided(2)}),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_constructors_give_numbers_a_strong_type(name):
    """Weak types, strong types and other dtypes would each compile: all leaves of a combiner have one type."""
    types = {
        tuple((leaf.dtype, leaf.weak_type) for leaf in jax.tree.leaves(NUMBERS[name](n)))
        for n in (1, 1.0, np.float64(1), np.int64(1), jnp.float32(1))
    }
    assert len(types) == 1 and not any(weak for _, weak in next(iter(types)))


@pytest.mark.parametrize("settings", [{"keep_every": 1}, {"keep_every": 5}, {"progress": lambda done, n: None}])
def test_kept_images_and_progress_are_one_program_for_all_numbers_of_steps(settings):
    others = [{"steps": steps, "keep_every": keep} for steps in (10, 20, 33) for keep in (1, 2, 7)]
    again, images = traced(run, settings, *others)
    assert again == 0 and len(images) == 10


def test_a_nested_combiner_holds_its_branches_and_nothing_else():
    """An anagram of hybrids at T5-XXL's size has as leaves one embedding per branch, and small arrays."""
    prompt = lambda seed: jnp.full((77, 4096), seed, jnp.float32)
    guide = lambda seed: combine.cfg(prompt(seed), 7.0, prompt(0))
    hybrid = lambda a, b: combine.components([(views.low_pass(), guide(a)), (views.high_pass(), guide(b))])
    anagram = combine.mean([hybrid(1, 2), combine.view(views.patch_permute(), hybrid(3, 4))])
    leaves = sorted(leaf.nbytes for leaf in jax.tree.leaves(anagram))
    assert leaves[-1] == combine.size(anagram) * 77 * 4096 * 4 == anagram.conditioning.text.nbytes
    assert sum(leaves[:-1]) < 600  # the two orders of the view's 64 patches, and small numbers
    assert len(leaves) == 1 + 4 + 1 + 4 + 4  # text; scales; the mean's weights; sigmas; the view's orders and signs


def test_the_network_is_called_once_a_step_whatever_the_nesting():
    traces.clear()
    walk(COMBINERS["mixture of mixtures"](), step.ddpm(), n_images=4)
    assert traces == [(6, *SHAPE)]


@cache
def tiny_unet():
    config = unet.Config(
        sample_size=8, block_out_channels=(8, 16), layers_per_block=(1, 1), attention_head_dim=8, norm_num_groups=4,
        down_block_types=(unet.PLAIN_DOWN, unet.CROSS_DOWN), up_block_types=(unet.CROSS_UP, unet.PLAIN_UP),
        cross_attention_dim=32, encoder_hid_dim=52, addition_embed_type_num_heads=4,
    )  # fmt: skip
    return unet.unet(config).bind(unet.init(config, jax.random.key(0)))


def test_another_text_may_feed_the_pooled_path_alone():
    """With a style as pooled text, the pooled vector is the style's, and the attention is the prompt's."""
    network, (prompt, style) = tiny_unet(), jax.random.normal(jax.random.key(2), (2, 1, 7, 52))
    ready = lambda **told: network.prepare(network.params, Conditioning(**told)).text
    styled = ready(text=prompt, pooled=style)
    assert_same(styled.pooled, ready(text=style).pooled, 0)
    assert_same(styled.layers, ready(text=prompt).layers, 0)
    assert np.abs(styled.pooled - ready(text=prompt).pooled).max() > 1e-3


def program(network, keys, x, levels, solver, combiner, in_axes=None):
    """Returns the compiled scan of `sample`, without the preparation of prompts."""
    rows = scan._padded(scan._rows(solver, levels, jnp.float32), 0, len(levels.t), 64)
    state = jax.vmap(solver.init)(x)
    how = {"in_axes": in_axes, "solver_axes": None, "branch_batch": None}
    return scan._run(network, keys, state, rows, combiner, solver.step, None, None, **how)


def loop_shapes(jaxpr, inside=False):
    """Returns the shapes of all values that are computed inside loops."""
    for equation in jaxpr.eqns:
        if inside:
            yield from (v.aval.shape for v in equation.outvars)
        for sub in jaxprs_in_params(equation.params):
            yield from loop_shapes(sub, inside or equation.primitive.name == "scan")


def test_nothing_of_the_texts_width_is_left_in_the_loop():
    network, keys = tiny_unet(), sample.image_keys(jax.random.key(0), 1)
    levels = schedule.levels(schedule.cosine(), schedule.leading(4))
    combiner = combine.cfg(jnp.ones((7, 52)), 2.0, jnp.zeros((7, 52)))

    def widths(combiner):
        x = sample.start(keys, (8, 8, 3))
        run = lambda x: program(network, keys, x, levels, step.ddpm(), combiner)
        return {side for shape in loop_shapes(jax.make_jaxpr(run)(x).jaxpr) for side in shape}

    assert 52 in widths(combiner)
    assert 52 not in widths(sample.prepare(network, combiner))


def test_prepared_text_gives_the_same_images():
    network, keys = tiny_unet(), sample.image_keys(jax.random.key(0), 2)
    params = jax.tree.map(lambda a: a + 0.1 * jax.random.normal(jax.random.key(1), a.shape), network.params)
    network = network.bind(params)
    levels = schedule.levels(schedule.cosine(), schedule.leading(3))
    texts = jax.random.normal(jax.random.key(2), (2, 7, 52))
    each = jax.vmap(lambda t: combine.cfg(t, 2.0, jnp.zeros((7, 52))))(texts)
    x = sample.start(keys, (8, 8, 3))
    plain = Network(params, network.apply)  # has no `prepare`
    got, want = (
        sample.sample(f, keys, x, levels, combiner=each, in_axes=0, solver=step.ddim()).images for f in (network, plain)
    )
    assert np.linalg.norm(got - want) < 1e-5 * np.linalg.norm(want)


def test_sharded_over_eight_devices_without_a_collective():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = jax.NamedSharding(mesh, jax.P("data"))
    levels = schedule.levels(schedule.cosine(), schedule.leading(4))
    keys = sample.image_keys(jax.random.key(0), 8)
    x = sample.start(keys, (8, 8, 3))
    network = tiny_unet()
    texts = jax.random.normal(jax.random.key(2), (8, 7, 52))
    each = jax.vmap(lambda t: combine.cfg(t, 2.0, jnp.zeros((7, 52))))(texts)
    alone = sample.sample(network, keys, x, levels, combiner=each, in_axes=0).images
    keys, x, each = jax.device_put((keys, x, each), rows)
    images = sample.sample(network, keys, x, levels, combiner=each, in_axes=0).images
    assert images.sharding.is_equivalent_to(rows, 4)
    assert np.linalg.norm(images - alone) < 1e-5 * np.linalg.norm(alone)
    ready = sample.prepare(network, each, 0)
    run = jax.jit(lambda *args: program(*args[:3], levels, step.ddpm(), args[3], in_axes=0))
    program_text = run.lower(network, keys, x, ready).compile().as_text()
    assert not any(word in program_text for word in ("all-gather", "all-reduce", "all-to-all", "collective-permute"))


def test_keys_must_be_one_an_image():
    levels = schedule.levels(schedule.cosine(), [500])
    keys = sample.image_keys(jax.random.key(0), 2)
    with pytest.raises(ValueError, match=r"keys must have one for each of 3 images, got shape \(2,\)"):
        sample.sample(denoise(), keys, jnp.zeros((3, *SHAPE)), levels, combiner=guided(1))


# --- solvers, against the closed form for data N(0, s^2)


def exact(s2):
    """Returns the exact noise estimate for data N(0, s2), as a function of one image."""
    return lambda x, level: Prediction(level.noise * x / (level.signal**2 * s2 + level.noise**2))


def chain_variance(solver, levels, s2):
    """Returns the variance of the result. Each step is linear in x and in the noise, so two calls give its factors."""
    rows, variance = solver.table(levels), 1.0
    silent, loud = (Partial(lambda value, key, shape, dtype: jnp.full(shape, value, dtype), v) for v in (0.0, 1.0))
    for i in range(len(levels.t)):
        row = jax.tree.map(lambda a, i=i: jnp.asarray(a[i], jnp.float64), rows)
        go = lambda x, draw, row=row: solver.step.func(
            *solver.step.args[:-1], draw, None, solver.init(x), row, exact(s2)
        )
        gain = go(jnp.ones(()), silent)[0].x
        fresh = go(jnp.zeros(()), loud)[0].x
        variance = float(gain) ** 2 * variance + float(fresh) ** 2
    return variance


@pytest.mark.parametrize(
    ("solver", "want"),
    [(step.ddim(), 0.2353), (step.ddpm(step.small), 0.2188), (step.ddpm(step.large), 0.2593)],
    ids=["ddim", "small", "large"],
)
def test_gaussian_data_come_out_with_the_known_variance(solver, want, x64):
    variance = lambda n: chain_variance(solver, schedule.levels(schedule.cosine(), schedule.leading(n)), 0.25)
    assert round(variance(50), 4) == want
    errors = [abs(variance(n) - 0.25) for n in (50, 200, 1000)]
    assert errors[0] > errors[1] > errors[2] and errors[2] < 0.003


@pytest.mark.parametrize("solver", [step.ddim(), step.ddim(1.0), step.ddpm(step.small), step.ddpm(step.large)])
def test_sampled_variance_equals_the_scalar_recursion(solver, x64):
    """The whole loop with starts and noise of +-1 in all combinations, whose second moments are exact."""
    levels = schedule.levels(schedule.cosine(), schedule.leading(5))
    signs = jnp.array([[(k >> bit & 1) * 2.0 - 1 for bit in range(6)] for k in range(64)])  # start, and five steps

    def draw(key, shape, dtype):
        return jnp.broadcast_to(jax.random.key_data(key)[0].astype(dtype), shape)

    rows, total = solver.table(levels), 0.0
    for sign in signs:
        state = solver.init(sign[0])
        for i in range(5):
            row = jax.tree.map(lambda a, i=i: jnp.asarray(a[i], jnp.float64), rows)
            one = Partial(lambda value, key, shape, dtype: jnp.full(shape, value, dtype), sign[i + 1])
            state, _ = solver.step.func(*solver.step.args[:-1], one, None, state, row, exact(0.25))
        total += float(state.x) ** 2
    assert abs(total / 64 - chain_variance(solver, levels, 0.25)) < 1e-10


def test_the_order_of_a_solver_is_read_off_its_errors(x64):
    """The probability flow of N(0, 1/4) has a known end. The table leads from medium to low noise."""

    def error(solver, n):
        angle = np.linspace(1.2, 0.3, n + 1)  # signal = cos, noise = sin
        blank = np.zeros(n)
        levels = Level(np.arange(n), blank, np.cos(angle[:-1]), np.sin(angle[:-1]), np.cos(angle[1:]),
                       np.sin(angle[1:]), blank + 1, blank, blank == 0)  # fmt: skip
        rows, state = solver.table(levels), solver.init(jnp.ones(()))
        for i in range(n):
            row = jax.tree.map(lambda a, i=i: jnp.asarray(a[i], jnp.float64), rows)
            state, _ = solver.step(jax.random.key(0), state, row, exact(0.25))
        deviation = np.sqrt(np.cos(angle) ** 2 / 4 + np.sin(angle) ** 2)
        return abs(float(state.x) - deviation[-1] / deviation[0])

    order = lambda solver: np.log2(error(solver, 80) / error(solver, 160))
    assert abs(order(step.ddim()) - 1) < 0.1
    assert abs(order(step.dpmpp_2m()) - 2) < 0.2


def test_ddim_with_eta_one_is_ddpm_with_the_small_variance(x64):
    levels = schedule.levels(schedule.cosine(), schedule.leading(7))
    a, b = step.ddim(1.0).table(levels).constants, step.ddpm(step.small).table(levels).constants
    np.testing.assert_allclose(a.x0, b.x0, atol=1e-12)
    np.testing.assert_allclose(a.x, b.x, atol=1e-12)
    np.testing.assert_allclose(np.exp(a.lower) * a.noisy, np.exp(b.lower) * b.noisy, atol=1e-12)


@pytest.mark.parametrize("predicts", [step.noise, step.clean, step.velocity])
def test_every_parametrisation_means_the_same_clean_image(predicts):
    x0, eps = image(1), image(2)
    level = LEVEL._replace(signal=0.3, noise=0.7)  # as in flow models, where the two sum to 1
    told = {step.noise: eps, step.clean: x0, step.velocity: x0 - eps}[predicts]
    assert_same(predicts(told, 0.3 * x0 + 0.7 * eps, level), x0, 1e-5)


def test_learned_needs_a_variance():
    with pytest.raises(ValueError, match="variance=learned needs a network that predicts a variance"):
        step.learned(None, step.Constants(0, 0, 0, 0, 0))


def test_combiners_and_solvers_are_pytrees():
    for value in [*[make() for make in COMBINERS.values()], *SOLVERS.values()]:
        leaves, structure = jax.tree.flatten(value)
        again = jax.tree.unflatten(structure, leaves)
        assert jax.tree.structure(again) == structure
        assert isinstance(value, Combiner | step.Solver)
