"""The tasks: SDEdit, inpainting, upscaling and their relatives, on small networks; RePaint's table."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from jdiff import combine, model, sample, schedule, step, types, views
from jdiff.bulk import job
from jdiff.mnist import model as mnist_model
from jdiff.networks import unet
from jdiff.types import Conditioning, Level, Network, Prediction

L, D = 5, 32
traces = []


def network(stage):
    """A network of the stage's inputs that looks at all of them; counts how often it is traced."""

    def apply(weights, x, t, told):
        traces.append(x.shape)
        text = jnp.tanh(told.text @ weights).mean(axis=(-2, -1))[:, None, None, None]
        low = 0 if stage == 1 else 0.3 * told.low_res + 0.001 * told.noise_level[:, None, None, None]
        return Prediction(
            jnp.tanh(0.8 * x + text + low) + 0.1 * jnp.sin(t / 300)[:, None, None, None], 0.3 * jnp.cos(x)
        )

    return apply


def test_the_typed_keywords_of_tasks_are_those_that_they_pass_on():
    assert tuple(sample.How.__annotations__) == sample._How._fields


NETWORKS = {stage: network(stage) for stage in (1, 2)}


def embed(prompts):
    rows = [np.random.default_rng(list(prompt.encode())).normal(size=(L, D)) for prompt in prompts]
    return jnp.asarray(np.stack(rows), jnp.float32)


def make(stage=1, seed=0):
    config = unet.Config(
        sample_size=16 * stage,
        in_channels=3 * stage,
        class_embed_type="timestep" if stage == 2 else None,
        block_out_channels=(8, 16),
        encoder_hid_dim=D,
    )
    weights = jax.random.normal(jax.random.key(seed), (D, 3))
    defaults = model.Defaults(steps=8, guidance=2.0)
    return model.Model(
        Network(weights, NETWORKS[stage]), embed, schedule.cosine(), config, step.threshold(), defaults, "small"
    )


KEY = jax.random.key(4)
IMAGE = jnp.tanh(jax.random.normal(jax.random.key(5), (16, 16, 3)))
HALF = jnp.zeros((16, 16)).at[:, 8:].set(1)
SMALL = jnp.tanh(jax.random.normal(jax.random.key(6), (8, 8, 3)))
LARGE, LARGE_HALF = jnp.tile(IMAGE, (2, 2, 1)), jnp.zeros((32, 32)).at[:, 16:].set(1)
PROMPTS = ["a dog", "a cat"]


def anagram(prompt, view=None):
    nothing, *texts = embed(["", prompt, "a fox"])
    one, other = (combine.cfg(text, jnp.float32(2.0), nothing) for text in texts)
    return combine.mean([one, combine.view(view or views.flip(), other)])


TASKS = {
    "generate": lambda **s: sample.generate(make(), PROMPTS, KEY, **s),
    "edit": lambda **s: sample.edit(make(), IMAGE, PROMPTS, KEY, **s),
    "inpaint": lambda **s: sample.inpaint(make(), IMAGE, HALF, PROMPTS, KEY, **s),
    "inpaint with jumps": lambda **s: sample.inpaint(
        make(), IMAGE, HALF, PROMPTS, KEY, jump_length=2, resamplings=2, **s
    ),
    "inpaint, clean": lambda **s: sample.inpaint(make(), IMAGE, HALF, PROMPTS, KEY, noised=False, **s),
    "upscale": lambda **s: sample.upscale(make(2), SMALL, PROMPTS, KEY, **s),
    "edit, stage 2": lambda **s: sample.edit(make(2), LARGE, PROMPTS, KEY, low_res=SMALL, **s),
    "inpaint, stage 2": lambda **s: sample.inpaint(make(2), LARGE, LARGE_HALF, PROMPTS, KEY, low_res=SMALL, **s),
    "anagram, stage 2": lambda **s: sample.upscale(make(2), SMALL, [anagram(p) for p in PROMPTS], KEY, **s),
}


@pytest.mark.parametrize("name", TASKS)
def test_pictures_are_of_each_prompt_and_the_same_in_any_batch(name):
    two, four = TASKS[name](n=2), TASKS[name](n=4)
    side = 32 if name == "upscale" or name.endswith("stage 2") else 16
    assert two.images.shape == (2, 2, side, side, 3) and np.abs(two.images).max() <= 1
    np.testing.assert_allclose(two.images, four.images[:, :2], atol=1e-5)
    assert (
        np.abs(two.images[0] - two.images[1]).max() > 0.01 and np.abs(two.images[:, 0] - two.images[:, 1]).max() > 0.01
    )


@pytest.mark.parametrize("name", TASKS)
def test_what_is_kept_ends_with_the_picture(name):
    made = TASKS[name](keep=3)
    np.testing.assert_allclose(jnp.clip(made.way[:, :, -1], -1, 1), made.images, atol=1e-6)


def test_a_combiner_stands_where_prompts_do():
    m, texts = make(), embed(["", *PROMPTS])
    guided = [combine.cfg(text, jnp.float32(2.0), texts[0]) for text in texts[1:]]
    np.testing.assert_allclose(
        sample.generate(m, guided, KEY, n=2).images, sample.generate(m, PROMPTS, KEY, n=2).images, atol=1e-5
    )
    anagram = combine.mean([guided[0], combine.view(views.rotate_180(), guided[1])])
    assert sample.generate(m, anagram, KEY, n=3).images.shape == (1, 3, 16, 16, 3)


first = lambda tree: jax.tree.map(lambda a: a[0], tree)
GUIDED = {
    "prompts": lambda scale: make().guided(PROMPTS, scale)[0],
    "bulk": lambda scale: first(job._guided(embed(PROMPTS), embed([""])[0], scale)),
    "digits": lambda scale: first(mnist_model.guided(jnp.array([3]), scale)),
}


@pytest.mark.parametrize("name", GUIDED)
def test_guidance_1_evaluates_the_network_once(name):
    assert [combine.size(GUIDED[name](scale)) for scale in (1, 1.0, 1.5, 0.0)] == [1, 1, 2, 2]


def test_guidance_1_is_the_prediction_for_the_prompt():
    m, texts = make(), embed(PROMPTS)
    alone = [combine.conditional(text) for text in texts]
    drawn = lambda prompts, **how: np.asarray(sample.generate(m, prompts, KEY, n=2, **how).images)
    np.testing.assert_array_equal(drawn(PROMPTS, guidance=1.0), drawn(alone))
    by_two = [combine.cfg(text, 1.0, embed([""])[0]) for text in texts]
    np.testing.assert_allclose(drawn(PROMPTS, guidance=1), drawn(by_two), atol=1e-5)


def test_an_edit_from_the_top_is_a_picture_of_its_own_and_a_late_one_is_close():
    edited = lambda i: np.asarray(sample.edit(make(), IMAGE, PROMPTS, KEY, i_start=i).images)
    gap = [np.abs(edited(i) - np.asarray(IMAGE)).mean() for i in (0, 4, 7)]
    assert gap[0] > gap[1] > gap[2] and gap[2] < 0.2
    by_row, by_strength = (sample.edit(make(), IMAGE, PROMPTS, KEY, **s) for s in ({"i_start": 4}, {"strength": 0.5}))
    np.testing.assert_array_equal(by_row.images, by_strength.images)


@pytest.mark.parametrize("name", ["inpaint", "inpaint with jumps", "inpaint, clean", "inpaint, stage 2"])
def test_what_is_known_is_kept_exactly_and_the_rest_is_new(name):
    made, image = np.asarray(TASKS[name]().images[:, 0]), np.asarray(LARGE if name.endswith("2") else IMAGE)
    half = image.shape[1] // 2
    np.testing.assert_allclose(made[:, :, :half], np.broadcast_to(image[:, :half], made[:, :, :half].shape), atol=1e-6)
    assert np.abs(made[:, :, half:] - image[:, half:]).mean() > 0.05


def test_the_courses_last_step_leaves_the_noise_of_its_level_on_what_is_known():
    made = sample.inpaint(make(), IMAGE * 0.5, HALF, PROMPTS, KEY, sampler="course", steps=33, n=8).images
    off = np.asarray(made)[..., :8, :] - 0.5 * np.asarray(IMAGE)[:, :8]
    want = np.sqrt(1 - schedule.cosine()[0])
    assert 0.9 * want < off.std() < 1.1 * want


@pytest.mark.filterwarnings("ignore:the first timestep", "ignore:one step from")
def test_upscaling_shows_the_network_the_resized_and_noised_picture():
    seen = []

    def look(weights, x, t, told):
        jax.debug.callback(lambda low, level: seen.append((np.asarray(low), np.asarray(level))), told.low_res,
                           told.noise_level)  # fmt: skip
        return Prediction(x, x)

    m = make(2)._replace(network=Network(jnp.zeros(1), look))
    sample.upscale(m, SMALL, PROMPTS[:1], KEY, noise_level=0, steps=2).images.block_until_ready()
    low, level = seen[0]
    assert level.tolist() == [0.0, 0.0]
    np.testing.assert_array_equal(low[0], low[1])
    assert np.abs(low[0] - sample.resized(SMALL[None], (32, 32))[0]).std() < 0.01
    seen.clear()
    sample.upscale(m, SMALL, PROMPTS[:1], KEY, noise_level=500, steps=2).images.block_until_ready()
    assert 0.6 < (seen[0][0][0] - 0.7 * sample.resized(SMALL[None], (32, 32))[0]).std() < 0.8


@pytest.mark.filterwarnings("ignore:the first timestep", "ignore:one step from")
def test_a_view_turns_what_stage_2_enlarges_too():
    seen = []

    def look(weights, x, t, told):
        jax.debug.callback(lambda x, low: seen.append((np.asarray(x), np.asarray(low))), x, told.low_res)
        return Prediction(x, x)

    m = make(2)._replace(network=Network(jnp.zeros(1), look))
    sample.upscale(m, SMALL, anagram("a dog", views.rotate_cw()), KEY, steps=1).images.block_until_ready()
    for shown in seen[0]:  # the branches: with and without the prompt, upright and turned
        np.testing.assert_array_equal(shown[0], shown[1])
        np.testing.assert_array_equal(shown[2:], np.rot90(shown[:2], -1, axes=(1, 2)))


def test_one_picture_for_each_picture_of_each_prompt():
    many = jnp.stack([jnp.stack([SMALL, -SMALL]), jnp.stack([0.5 * SMALL, SMALL**2])])
    made = sample.upscale(make(2), many, PROMPTS, KEY, n=2).images
    for j in range(2):
        alone = sample.upscale(make(2), many[:, j], PROMPTS, KEY, n=2).images
        np.testing.assert_allclose(made[:, j], alone[:, j], atol=1e-6)


def test_resizing_is_bilinear_with_corners_on_corners():
    torch = pytest.importorskip("torch", reason="the oracle is not installed")
    x = np.random.default_rng(0).normal(size=(2, 5, 7, 3)).astype(np.float32)
    want = torch.nn.functional.interpolate(
        torch.tensor(x).movedim(-1, 1), (20, 21), mode="bilinear", align_corners=True
    ).movedim(1, -1)
    np.testing.assert_allclose(sample.resized(jnp.asarray(x), (20, 21)), want, atol=3e-6)


@pytest.mark.parametrize("shape", [(16, 24), (8, 4), (32, 16)])
def test_any_size_that_the_levels_divide(shape):
    assert sample.generate(make(), PROMPTS, KEY, size=shape).images.shape == (2, 1, *shape, 3)
    wide = jnp.ones((8, 12, 3))
    assert sample.upscale(make(2), wide, PROMPTS, KEY).images.shape == (2, 1, 32, 48, 3)


def test_nothing_is_traced_again_for_new_pictures_masks_views_and_strengths():
    TASKS["inpaint"]()
    TASKS["inpaint with jumps"]()  # a table with jumps draws noise for them, so it is a program of its own
    TASKS["edit"]()
    sample.generate(make(), anagram("a dog", views.patch_permute(0)), KEY)
    traces.clear()
    sample.inpaint(make(seed=1), -IMAGE, 1 - HALF, ["a fox", "a hen"], jax.random.key(9), steps=12, guidance=4.0)
    sample.inpaint(make(), IMAGE, HALF, PROMPTS, KEY, jump_length=3, resamplings=3)
    sample.edit(make(), -IMAGE, PROMPTS, KEY, strength=0.3)
    sample.generate(make(), anagram("a hen", views.patch_permute(5)), KEY)
    assert not traces


def test_branches_a_few_at_a_time_are_the_same():
    np.testing.assert_allclose(TASKS["upscale"](branch_batch=1).images, TASKS["upscale"]().images, atol=1e-5)


def test_conditioning_on_a_component_gives_it_and_leaves_the_rest():
    """An inverse hybrid: blurred, the result is the reference blurred; colourisation: grey, it is the reference."""
    keys = sample.image_keys(KEY, 2)
    levels = schedule.levels(schedule.cosine(), schedule.leading(8))
    text = combine.conditional(embed(["a dog"])[0])
    for part in (views.low_pass(), views.grayscale()):
        solver = step.condition(step.ddpm(), IMAGE, part)
        x = sample.start(keys, (16, 16, 3))
        made = sample.sample(make().network, keys, x, levels, combiner=text, solver=solver).images
        rest = made - jax.vmap(part)(made)
        again = made - rest
        if part.func is views.grayscale().func:  # a projection: to be kept exactly
            np.testing.assert_allclose(again, jnp.stack([part(IMAGE)] * 2), atol=1e-5)
        assert np.abs(rest[0] - rest[1]).max() > 0.01


def naive_repaint(n, jump_length, resamplings):
    """Rows in the order of the paper's appendix: t counts levels above the last call's."""
    jumps = {t: resamplings - 1 for t in range(0, n - jump_length, jump_length)}
    t, times = n, []
    while t >= 1:
        t -= 1
        times.append(t)
        if jumps.get(t, 0) > 0:
            jumps[t] -= 1
            times += range(t + 1, t + jump_length + 1)
            t += jump_length
    times.append(-1)
    return [n - 1 - a for a, b in zip(times, times[1:], strict=False) if b < a]


@pytest.mark.parametrize(
    ("n", "jump", "times"), [(33, 5, 5), (33, 10, 10), (250, 10, 10), (8, 2, 3), (7, 1, 2), (5, 4, 4)]
)
def test_repaints_table_is_the_papers(n, jump, times):
    levels = schedule.levels(schedule.cosine(), np.arange(n)[::-1] * (990 // n))
    table = schedule.resample(levels, jump, times)
    rows = naive_repaint(n, jump, times)
    np.testing.assert_array_equal(table.t, levels.t[rows])
    if n == 250:
        assert len(rows) == 2410
    # after each row the image is at the next row's level: the step and the jump together
    signal, power = table.signal_to * table.jump_scale, (table.jump_scale * table.noise_to) ** 2 + table.jump_noise**2
    np.testing.assert_allclose(signal[:-1], table.signal[1:], rtol=1e-12)
    np.testing.assert_allclose(power[:-1], table.noise[1:] ** 2, rtol=1e-9)
    assert table.signal_to[-1] == 1 and (table.jump_scale[-1], table.jump_noise[-1]) == (1, 0)
    np.testing.assert_array_equal(table.i, np.arange(len(rows)))


def test_the_courses_loop_written_out():
    """Parts 1.4 and 1.6 as the course writes them, in numpy, with the same network and noise."""
    m, text = make(), np.asarray(embed(["", "a dog"]), np.float64)
    abar, times = schedule.cosine(), list(range(990, -1, -30))
    noises = np.random.default_rng(0).normal(size=(34, 16, 16, 3))
    with jax.enable_x64(True):
        params = jnp.asarray(m.network.params, jnp.float64)

        def ask(x, t, embedding):
            told = Conditioning(jnp.asarray(embedding)[None])
            p = m.network.apply(params, jnp.asarray(x)[None], jnp.full(1, float(t)), told)
            return np.asarray(p.estimate[0]), np.asarray(p.variance[0])

        x = noises[0]
        for i, (t, to) in enumerate(zip(times, times[1:], strict=False)):
            (u, _), (c, v) = ask(x, t, text[0]), ask(x, t, text[1])
            eps = u + 7 * (c - u)
            alpha, beta = abar[t] / abar[to], 1 - abar[t] / abar[to]
            x0 = (x - np.sqrt(1 - abar[t]) * eps) / np.sqrt(abar[t])
            mean = np.sqrt(abar[to]) * beta / (1 - abar[t]) * x0 + np.sqrt(alpha) * (1 - abar[to]) / (1 - abar[t]) * x
            f, tilde = (v + 1) / 2, np.maximum((1 - abar[to]) / (1 - abar[t]) * beta, 1e-20)
            x = mean + np.exp((f * np.log(beta) + (1 - f) * np.log(tilde)) / 2) * noises[i + 1]

        how = sample.SAMPLERS["course"]
        levels = how.table(abar, 33)
        draws = iter(noises[1:])
        rows = how.solver(m).table(levels)
        state = step.ddpm().init(jnp.asarray(noises[0]))
        denoise = combine.denoiser(m.network.bind(params), combine.cfg(text[1], 7.0, text[0]))
        for i in range(33):
            row = jax.tree.map(lambda a, i=i: jnp.asarray(a[i]), rows)
            solver = step.ddpm(draw=lambda key, shape, dtype: jnp.asarray(next(draws)))
            state, _ = solver.step(None, state, row, denoise)
        assert np.abs(np.asarray(state.x) - x).max() < 1e-10 * np.abs(x).max()


def never(done, total):
    raise AssertionError("a picture was drawn before the settings of stage 2 were checked")


def test_no_guidance_of_stage_2_is_its_own(monkeypatch):
    asked = []
    guided = model.Model.guided
    monkeypatch.setattr(model.Model, "guided", lambda self, *args: (asked.append(args[1]), guided(self, *args))[1])
    second = make(2)
    for given in ({}, {"guidance": None}, {"guidance": 2.0}):
        settings = {"steps": 2, "sampler": "deepfloyd", **given}
        sample.cascade(make(), second, ["one"], KEY, steps=2, sampler="deepfloyd", stage2_settings=settings)
    assert asked[::2] == [second.defaults.guidance, second.defaults.guidance, 2.0]


@pytest.mark.parametrize(("task", "args"), [(sample.edit, (IMAGE,)), (sample.inpaint, (IMAGE, HALF))])
def test_an_unknown_argument_is_named(task, args):
    with pytest.raises(TypeError, match=rf"{task.__name__}\(\) got an unexpected argument 'foo'; it passes on keep, "):
        task(make(), *args, PROMPTS, KEY, foo=3)


def test_an_inpainting_starts_with_the_noise_of_its_table():
    """On an exploding table that is 80, not 1."""
    model = make()
    network = types.as_network(lambda x, t, told: Prediction(0 * x))
    model = model._replace(network=network)
    solver = lambda model: step.ddim(predicts=step.clean)
    exploding = sample.Sampler(lambda abar, steps: schedule.karras(steps), solver, 5)
    seen = []
    watch = lambda done, total, x: seen.append(x.std())
    text = combine.conditional(embed(["a dog"])[0])
    sample.inpaint(model, IMAGE, np.ones((16, 16)), text, KEY, sampler=exploding, watch=watch)
    sample.generate(model, text, KEY, sampler=exploding, watch=watch)
    assert seen[0] > 10 and seen[0] == pytest.approx(seen[5], rel=0.2)


@pytest.mark.parametrize("devices", [1, 2])
@pytest.mark.filterwarnings("ignore:one step from")
def test_the_progress_of_both_stages_ends_at_its_total(devices):
    told = []
    over = None if devices == 1 else jax.make_mesh((2, 1), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    sample.cascade(
        make(), make(2), PROMPTS, KEY, n=3, steps=1, sampler="deepfloyd", images_at_once=3, mesh=over,
        stage2_settings={"steps": 1, "sampler": "deepfloyd"}, progress=lambda *done: told.append(done),
    )  # fmt: skip
    assert told[-1][0] == told[-1][1] and [done for done, _ in told] == sorted(done for done, _ in told)


def test_ranking_puts_the_best_first():
    images, order = sample.rank(jnp.array([3.0, 9.0, 6.0]), lambda images: images)
    assert images.tolist() == [9.0, 6.0, 3.0] and order.tolist() == [1, 2, 0]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: sample.edit(make(), IMAGE, PROMPTS, KEY, strength=0.0),
            r"strength must be between 0.125 \(one of 8 steps\) and 1, got 0.0",
        ),
        (lambda: sample.edit(make(), IMAGE, PROMPTS, KEY, strength=1.2), "strength must be .* got 1.2"),
        (
            lambda: sample.edit(make(), IMAGE, PROMPTS, KEY, i_start=8),
            "i_start must be a whole number between 0 and 7, got 8",
        ),
        (
            lambda: sample.edit(make(), IMAGE, PROMPTS, KEY, i_start=1, strength=0.5),
            "give strength or i_start, not both, got 0.5 and 1",
        ),
        (
            lambda: sample.edit(make(), IMAGE[None, :1], PROMPTS, KEY),
            r"image must have shape .* got \[1, 1, 16, 3\]",
        ),
        (
            lambda: sample.inpaint(make(), IMAGE, HALF[:4], PROMPTS, KEY),
            r"mask must have the image's shape \[16, 16\], .* got \[4, 16\]",
        ),
        (
            lambda: sample.inpaint(make(), IMAGE, 2 * HALF, PROMPTS, KEY),
            "mask must have values from 0 .* got ",
        ),
        (
            lambda: sample.edit(make(), IMAGE[:15], PROMPTS, KEY),
            "image must have a height and a width that are multiples of 2, got 15 x 16",
        ),
        (
            lambda: sample.inpaint(make(), IMAGE, HALF, PROMPTS, KEY, jump_length=0, resamplings=2),
            "jump_length must be a whole number of at least 1, got 0",
        ),
        (  # it would jump nowhere
            lambda: sample.inpaint(make(), IMAGE, HALF, PROMPTS, KEY, steps=6, jump_length=6, resamplings=2),
            "jump_length must be a whole number between 1 and 5, got 6",
        ),
        (
            lambda: sample.inpaint(make(), IMAGE, HALF, PROMPTS, KEY, steps=1, resamplings=2),
            "resamplings must be 1 for a table of one row, got 2",
        ),
        (
            lambda: sample.cascade(make(), make(2), PROMPTS, KEY, stage2_settings={"side": 64}),
            "stage2_settings must hold only steps, guidance, sampler, noise_level, branch_batch, got 'side'",
        ),
        (
            lambda: sample.cascade(make(), make(), PROMPTS, KEY, progress=never),
            "stage2 must be a model of stage 2, got .* which is of stage 1",
        ),
        (
            lambda: sample.cascade(make(), make(2), PROMPTS, KEY, progress=never, stage2_settings={"steps": 5000}),
            "steps must be .* got 5000",
        ),
        (
            lambda: sample.cascade(
                make(), make(2), PROMPTS, KEY, progress=never, stage2_settings={"noise_level": 5000}
            ),
            "noise_level must be a whole number between 0 and 999, got 5000",
        ),
        (lambda: sample.cascade(make(), make(2), PROMPTS, KEY, steps="20"), "steps must be a whole number"),
        (lambda: sample.generate(make(2), PROMPTS, KEY), "is a model of stage 2, which needs a low_res picture"),
        (lambda: sample.upscale(make(1), SMALL, PROMPTS, KEY), "is a model of stage 1, which takes no low_res picture"),
        (
            lambda: sample.upscale(make(2), SMALL, PROMPTS, KEY, noise_level=1000),
            "noise_level must be a whole number between 0 and 999, got 1000",
        ),
        (lambda: sample.generate(make(), PROMPTS, KEY, size=(16, 15)), r"size must be .* got \(16, 15\)"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_slice_of_a_multistep_table_starts_at_first_order():
    levels = schedule.levels(schedule.cosine(), schedule.leading(8))
    part = jax.tree.map(lambda a: a[5:6], levels)
    keys, x = sample.image_keys(KEY, 1), IMAGE[None]
    told = {"combiner": combine.conditional(embed(["a dog"])[0])}
    two, one = (
        sample.sample(make().network, keys, x, part, solver=s, **told).images for s in (step.dpmpp_2m(), step.ddim())
    )
    np.testing.assert_allclose(two, one, atol=1e-5)
    assert isinstance(part, Level)
