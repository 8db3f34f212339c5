"""Views keep noise noise and can be undone; components add up."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdiff import views
from jdiff.types import Prediction
from jdiff.views import jigsaws

SIZES = (16, 32, 64, 256)


def make(name, size):
    return views.pixel_permute(grid=min(size, 64)) if name == "pixel_permute" else views.VIEWS[name]()


def image(*shape, seed=0):
    return jax.random.normal(jax.random.key(seed), shape)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", views.VIEWS)
def test_a_view_can_be_undone_and_keeps_noise_independent(name, size):
    view, x, v = make(name, size), image(size, size, 3), image(size, size, 3, seed=1)
    shown = view.apply(x)
    back = view.invert(Prediction(shown, jnp.abs(view.apply(v))))
    np.testing.assert_array_equal(back.estimate, x)
    np.testing.assert_array_equal(back.variance, np.abs(v))  # moved, but never negated
    # a signed permutation: every number is one of the image's, up to one sign for all, so that Gaussians stay iid
    sign = -1 if name == "negate" else 1
    np.testing.assert_array_equal(np.sort(np.ravel(shown)), np.sort(sign * np.ravel(x)))
    assert name == "identity" or np.abs(shown - x).max() > 0.1


@pytest.mark.parametrize("name", views.FAILING)
def test_the_views_that_fail_change_the_noise(name):
    """Its variance, in some channel or inside the disc, is measurably not 1: 64 x 64 x 40 numbers a channel."""
    noise = image(40, 64, 64, 3)
    shown = jax.vmap(views.FAILING[name]().apply)(noise)[:, 20:44, 20:44]
    variance = np.asarray(shown.var(axis=(0, 1, 2)))
    assert np.abs(variance - 1).max() > 0.2
    assert np.abs(np.asarray(noise[:, 20:44, 20:44].var(axis=(0, 1, 2))) - 1).max() < 0.05


def test_each_view_is_what_its_name_says():
    x = image(6, 6, 3)
    wanted = {
        "flip": x[::-1],
        "mirror": x[:, ::-1],
        "rotate_180": x[::-1, ::-1],
        "rotate_cw": np.rot90(x, -1),
        "rotate_ccw": np.rot90(x),
        "negate": -x,
        "skew": np.stack([np.roll(x[:, j], int(1.5 * j), axis=0) for j in range(6)], axis=1),
    }
    for name, want in wanted.items():
        np.testing.assert_array_equal(views.VIEWS[name]().apply(x), want, err_msg=name)
    x = image(64, 64, 3)
    turned = views.inner_circle().apply(x)
    np.testing.assert_array_equal(turned[32, 20], x[31, 43])
    np.testing.assert_array_equal(turned[2, 2], x[2, 2])
    hinged = views.square_hinge().apply(x)
    np.testing.assert_array_equal(hinged[:21, :21], np.rot90(x[:21, :21], -1))
    np.testing.assert_array_equal(hinged[:21, 21:42], np.rot90(x[:21, 21:42], 1))
    np.testing.assert_array_equal(hinged[63], x[63])


@pytest.mark.parametrize("name", ["patch_permute", "pixel_permute"])
def test_permutations_are_the_same_at_both_stages_and_drawn_from_their_seed(name):
    f = views.VIEWS[name]
    small = image(64, 64, 3)
    large = jnp.repeat(jnp.repeat(small, 4, axis=0), 4, axis=1)
    np.testing.assert_array_equal(f(5).apply(large)[::4, ::4], f(5).apply(small))
    assert np.abs(f(5).apply(small) - f(6).apply(small)).max() > 0.1


@pytest.mark.parametrize("seed", range(4))
def test_a_jigsaw_lays_whole_pieces(seed):
    size = 64
    piece = jnp.asarray(jigsaws.pieces(size), jnp.float32)[..., None]
    laid = np.asarray(views.jigsaw(seed).apply(piece))[..., 0]
    for place in range(16):
        (source,) = np.unique(laid[jigsaws.pieces(size) == place])  # what lies in a place is one piece, knobs and all
        corner, edge = ({0, 3, 12, 15}, {1, 2, 4, 7, 8, 11, 13, 14})
        kinds = [corner, edge, set(range(16)) - corner - edge]
        assert [place in k for k in kinds] == [source in k for k in kinds]


def test_a_new_seed_is_no_new_program():
    traces = []
    f = jax.jit(lambda view, x: (traces.append(1), view.apply(x))[1])
    x = image(64, 64, 3)
    made = [f(view(seed), x) for view in (views.patch_permute, views.jigsaw) for seed in range(4)]
    assert len(traces) == 2 and np.abs(made[0] - made[1]).max() > 0.1 and np.abs(made[-1] - made[-2]).max() > 0.1


@pytest.mark.parametrize("name", ["rotate_cw", "rotate_ccw", "jigsaw"])
def test_a_view_that_turns_needs_a_square(name):
    with pytest.raises(ValueError, match="the image must be a square .* got 32 x 64"):
        views.VIEWS[name]().apply(image(32, 64, 3))


def test_patches_must_divide():
    with pytest.raises(
        ValueError,
        match="the image's height and width must be multiples of 64, the number of patches per side, got 32 x 32",
    ):
        views.pixel_permute().apply(image(32, 32, 3))


@pytest.mark.parametrize("shape", [(32, 32, 3), (64, 96, 3), (256, 256, 3)])
@pytest.mark.parametrize("name", views.FACTORISATIONS)
def test_components_add_up_and_are_linear(name, shape):
    parts, x, y = views.FACTORISATIONS[name](), image(*shape), image(*shape, seed=1)
    np.testing.assert_allclose(sum(part(x) for part in parts), x, atol=5e-6)
    for part in parts:
        np.testing.assert_allclose(part(2 * x - y), 2 * part(x) - part(y), atol=2e-5)


@pytest.mark.parametrize(("size", "kernel", "sigma"), [(64, 33, 2.0), (256, 133, 8.0)])
def test_low_pass_is_a_mirrored_gaussian_of_the_published_sizes(size, kernel, sigma):
    x = np.asarray(image(size, size, 1))[..., 0]
    taps = np.exp(-0.5 * (np.arange(kernel) - kernel // 2) ** 2 / sigma**2)
    taps /= taps.sum()
    padded = np.pad(x, kernel // 2, mode="reflect")
    along = np.apply_along_axis(lambda row: np.convolve(row, taps, "valid"), 1, padded)
    want = np.apply_along_axis(lambda column: np.convolve(column, taps, "valid"), 0, along)
    got = views.low_pass()(jnp.asarray(x)[..., None])[..., 0]
    np.testing.assert_allclose(got, want, atol=2e-6)


def test_motion_is_the_mean_along_the_diagonal():
    x = image(64, 64, 3)
    padded = np.pad(x, ((4, 4), (4, 4), (0, 0)), mode="reflect")
    want = np.mean([padded[d : d + 64, d : d + 64] for d in range(9)], axis=0)
    np.testing.assert_allclose(views.motion(9)(x), want, atol=1e-6)


def test_unmasked_keeps_what_is_black():
    mask = jnp.zeros((4, 4)).at[0].set(1)
    kept = views.unmasked(mask)(jnp.ones((4, 4, 3)))
    assert kept[0].max() == 0 and kept[1:].min() == 1
