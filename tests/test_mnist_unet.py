"""Part B's networks: the course's parameter counts, and each layer equal to a PyTorch module of the course's spec."""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

from jdiff.mnist import unet
from jdiff.mnist.recipes import recipes
from jdiff.networks import unet as if_unet
from jdiff.training.conv import conv_by_patches
from jdiff.types import Conditioning

CONFIGS = {
    "denoise": unet.Config(time=False, classes=False),
    "time": unet.Config(classes=False),
    "class": unet.Config(),
    "flow-time": unet.Config(classes=False, multiply=True),
    "flow-class": unet.Config(multiply=True),
}


@pytest.mark.parametrize(
    ("width", "kind", "parameters"),
    [
        (64, "denoise", 1_975_361), (64, "time", 1_996_417), (64, "class", 2_019_201),
        (128, "denoise", 7_891_073), (128, "time", 7_974_145), (128, "class", 8_060_673),
        (64, "flow-time", 1_996_417), (64, "flow-class", 2_019_201),
    ],
)  # fmt: skip
def test_the_counts_are_the_courses(width, kind, parameters):
    abstract = recipes()[kind, "spec"].network(width, lax.conv_general_dilated).params
    assert sum(a.size for a in jax.tree.leaves(abstract["params"])) == parameters


def test_what_is_initialised_is_what_is_abstract():
    for (kind, name), recipe in recipes().items():
        width = 16 if name == "best" else 2
        shapes = jax.tree.map(lambda a: (a.shape, a.dtype.name), recipe.network(width, lax.conv_general_dilated).params)
        made = jax.eval_shape(lambda key, recipe=recipe, width=width: recipe.init(width, key), jax.random.key(0))
        assert jax.tree.map(lambda a: (a.shape, a.dtype.name), made) == shapes, kind


def _oracle(config):
    torch = pytest.importorskip("torch", reason="the oracle needs the extra `torch`")
    sys.path.append(str(Path(__file__).resolve().parents[1] / "scripts"))
    from parity_mnist import Course  # pyright: ignore[reportMissingImports]

    return torch, Course(config).double()


def _copied(torch, oracle, params):
    """The oracle with our parameters, randomised so that no scale is 1 and no bias 0."""
    random = np.random.default_rng(0)
    shaken = lambda a: np.asarray(a, np.float64) + 0.1 * random.standard_normal(a.shape)
    params = jax.tree.map(shaken, params)
    params["statistics"] = jax.tree.map(np.abs, params["statistics"])
    groups = {"first": 2, "down_1": 3, "down_2": 3, "up_1": 3, "up_2": 3, "last": 2}
    put = lambda tensor, array: tensor.data.copy_(torch.tensor(array))

    def one(layer, norm, ours, statistics):
        kernel = ours["kernel"]
        turned = kernel[::-1, ::-1].transpose(2, 3, 0, 1) if isinstance(layer, torch.nn.ConvTranspose2d) else None
        put(layer.weight, (kernel.transpose(3, 2, 0, 1) if turned is None else turned).copy())
        put(layer.bias, ours["bias"])
        if norm is not None:
            put(norm.weight, ours["norm"]["scale"])
            put(norm.bias, ours["norm"]["bias"])
            put(norm.running_mean, statistics["norm"]["mean"])
            put(norm.running_var, statistics["norm"]["var"])

    for name, n in groups.items():
        for i in range(n):
            layer = getattr(oracle, name)[i]
            one(layer[0], layer[1], params["params"][name][i], params["statistics"][name][i])
    one(oracle.unflatten[0], oracle.unflatten[1], params["params"]["unflatten"], params["statistics"]["unflatten"])
    one(oracle.out, None, params["params"]["out"], None)
    for name in ("time_1", "time_2", "class_1", "class_2"):
        if hasattr(oracle, name):
            for i, ours in ((0, "linear_1"), (2, "linear_2")):
                put(getattr(oracle, name)[i].weight, params["params"][name][ours]["kernel"].T.copy())
                put(getattr(oracle, name)[i].bias, params["params"][name][ours]["bias"])
    return params


def _inputs(n=5):
    keys = jax.random.split(jax.random.key(1), 3)
    classes = jax.nn.one_hot(jnp.arange(n) - 1, 10, dtype=jnp.float64)[:, None]  # the first has none
    x = jax.random.normal(keys[0], (n, 28, 28, 1), jnp.float64)
    return x, jax.random.uniform(keys[1], (n,), jnp.float64), Conditioning(classes)


@pytest.mark.parametrize(
    ("kind", "conv"),
    [*((kind, lax.conv_general_dilated) for kind in CONFIGS), ("class", conv_by_patches)],
    ids=[*CONFIGS, "class by patches"],
)
def test_it_is_the_courses_network(kind, conv, x64):
    config = unet.Config(3, *[getattr(CONFIGS[kind], name) for name in ("time", "classes", "multiply")])
    torch, oracle = _oracle(config)
    params = _copied(torch, oracle, unet.init(config, jax.random.key(0)))
    apply, train = unet.unet(config, conv).apply, unet.training(config, conv)
    x, t, told = _inputs()
    theirs = (torch.tensor(np.array(a)) for a in (x.transpose(0, 3, 1, 2), t, told.text[:, 0]))
    theirs = list(theirs)

    with torch.no_grad():
        want = oracle.eval()(*theirs).permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(jax.jit(apply)(params, x, t, told).estimate, want, atol=1e-12 * np.abs(want).max())

    want = oracle.train()(*theirs)
    (want**2).mean().backward()

    def loss(params):
        prediction, pull = train(params, x, t, told)
        return (prediction.estimate**2).mean() + pull, prediction.estimate

    gradient, seen = jax.jit(jax.grad(loss, has_aux=True))(params)
    want = want.detach().permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(seen, want, atol=1e-12 * np.abs(want).max())

    taught = optax.apply_updates(params, jax.tree.map(lambda g: -unet.MOMENTUM * g, gradient))["statistics"]
    for name in ("down_1", "up_2"):
        norm = getattr(oracle, name)[0][1]
        np.testing.assert_allclose(taught[name][0]["norm"]["mean"], norm.running_mean.numpy(), atol=1e-12)
        np.testing.assert_allclose(taught[name][0]["norm"]["var"], norm.running_var.numpy(), atol=1e-12)
    grads = gradient["params"]
    for ours, want in (
        (grads["first"][0]["kernel"].transpose(3, 2, 0, 1), oracle.first[0][0].weight),
        (grads["down_2"][0]["kernel"].transpose(3, 2, 0, 1), oracle.down_2[0][0].weight),
        (grads["up_1"][0]["kernel"][::-1, ::-1].transpose(2, 3, 0, 1), oracle.up_1[0][0].weight),
        (grads["unflatten"]["norm"]["scale"], oracle.unflatten[1].weight),
    ):
        want = want.grad.numpy()
        np.testing.assert_allclose(ours, want, atol=1e-11 * np.abs(want).max())


def test_another_size_is_refused():
    made = unet.unet(unet.Config(2))
    apply, abstract = made.apply, made.params
    params = jax.tree.map(lambda a: jnp.zeros(a.shape), abstract)
    with pytest.raises(ValueError, match=r"x must have shape \[n 28 28 1\], got \(1, 32, 32, 1\)"):
        apply(params, jnp.zeros((1, 32, 32, 1)), jnp.zeros(1), Conditioning(jnp.zeros((1, 1, 10))))


def test_squares_are_a_permutation():
    x = jax.random.normal(jax.random.key(0), (3, 6, 4, 2))
    folded = if_unet.fold(x, 2)
    assert folded.shape == (3, 3, 2, 8)
    np.testing.assert_array_equal(if_unet.unfold(folded, 2), x)
    np.testing.assert_array_equal(folded[:, 0, 0].reshape(3, 2, 2, 2), x[:, :2, :2])
