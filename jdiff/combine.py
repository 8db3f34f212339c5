"""Combiners: how several predictions for one image become one.

A `Rule` defines what each of its k branches sees of the image, and how the k predictions become one. A `Combiner` is a
rule with the prompts of its branches. `compose` nests rules, so an anagram of hybrids, each with its own guidance, is
one Combiner, and the network is still called once per step.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Float

from jdiff import checks
from jdiff.types import (
    Array,
    Axes,
    Combiner,
    Conditioning,
    Image,
    Level,
    Network,
    Prediction,
    Rule,
    Shown,
    Text,
    View,
    as_network,
    as_partial,
    same_image,
)  # fmt: skip

# A number, or a 0-d array, which may be traced.
Number = float | int | Array
# A guidance scale: a number, or a function of the level.
Scale = Number | Callable[[Level], Number]


def size(combiner: Combiner) -> int:
    """Returns k, the number of network evaluations for one image in one step.

    Args:
        combiner: any Combiner.

    Example:
        >>> size(cfg(jnp.ones((77, 8)), 7.0, jnp.zeros((77, 8))))
        2
    """
    return combiner.rule.k


def conditional(text: Text, *, pooled: Text | None = None) -> Combiner:
    """Returns the combiner of one prompt, whose prediction is used unchanged.

    Args:
        text: prompt embedding [l d].
        pooled: embedding [l d] for the network's pooled text; `text` if None.

    Example:
        >>> size(conditional(jnp.zeros((77, 8))))
        1
    """
    conditioning = Conditioning(jnp.asarray(text)[None], pooled=None if pooled is None else jnp.asarray(pooled)[None])
    return Combiner(identity_rule(), conditioning)


def cfg(text: Text, scale: Scale, negative: Text, *, rescale: Number | None = None) -> Combiner:
    """Returns classifier-free guidance: negative + scale (text - negative), k = 2.

    The learned variance is the text's. Scale 1 gives the prediction for the text, and 0 that for the negative prompt.

    Args:
        text: prompt embedding [l d].
        scale: guidance scale, or a function of the level such as `between`.
        negative: embedding [l d] of the prompt to lead away from, usually the empty one.
        rescale: in [0, 1]: share of the result that is rescaled to the standard deviation of the text's prediction.

    Raises:
        ValueError: `scale` or `rescale` is not a finite number.

    Example:
        >>> guided = cfg(jnp.ones((77, 8)), 7.0, jnp.zeros((77, 8)))
        >>> two = Prediction(jnp.array([1.0, 2.0]), jnp.array([0.5, 0.25]))  # for the negative prompt, for the text
        >>> [float(a) for a in guided.rule.gather(two, None, None)]
        [8.0, 0.25]

    Reference:
        Ho and Salimans 2022, eq. 6; the course's 1.6. `rescale`: Lin et al. 2024, eq. 15 and 16.
    """
    return compose(guidance_rule(scale, rescale=rescale), [conditional(negative), conditional(text)])


def guided(text: Text, scale: Scale, negative: Text) -> Combiner:
    """Returns `cfg`, or `conditional` if the scale is the number 1, which evaluates the network once and not twice.

    Args:
        text: as in `cfg`.
        scale: as in `cfg`.
        negative: as in `cfg`.

    Raises:
        ValueError: `scale` is not a finite number.

    Example:
        >>> text, nothing = jnp.ones((77, 8)), jnp.zeros((77, 8))
        >>> size(guided(text, 7.0, nothing)), size(guided(text, 1.0, nothing))
        (2, 1)
    """
    alone = not isinstance(scale, Array) and not callable(scale) and scale == 1
    return conditional(text) if alone else cfg(text, scale, negative)


def between(scale: Number, low: Number, high: Number) -> Partial:
    """Returns a guidance scale for `cfg` that is 1 (no guidance) outside an interval of timesteps.

    Steps outside the interval evaluate the network for the text alone, so they take half the time.

    Args:
        scale: guidance scale inside the interval.
        low: smallest timestep of the interval, in the unit of `Level.t`.
        high: largest timestep of the interval.

    Raises:
        ValueError: an argument is not a finite number.

    Example:
        >>> level = Level(0, 500.0, 1, 1, 1, 1, 1, 0, True)
        >>> between(7.0, 200, 800)(level).item(), between(7.0, 200, 400)(level).item()
        (7.0, 1.0)

    Reference:
        Kynkaanniemi et al. 2024, guidance in a limited interval.
    """
    if not isinstance(low, Array) and not isinstance(high, Array) and low > high:
        raise ValueError(f"low must be at most high, got {low} and {high}; t falls from 999 to 0 in sampling")
    numbers = {"scale": scale, "low": low, "high": high}
    return Partial(_between, *(_number(name, value) for name, value in numbers.items()))


def conjunction(texts: Sequence[Text], scales: Sequence[Number] | Float[Array, " k"], negative: Text) -> Combiner:
    """Returns guidance towards several prompts at once: negative + sum over i of scales[i] (texts[i] - negative).

    The learned variance is the first text's; k = len(texts) + 1. A scale below 0 leads away from its prompt.
    deep-floyd's style mixing is `conjunction([prompt, style], [g (1 - m), g m], negative)` with m from 0.25 to 0.5.

    Args:
        texts: prompt embeddings, each [l d].
        scales: one guidance scale for each text.
        negative: embedding [l d] of the prompt to lead away from.

    Raises:
        ValueError: the number of scales is not the number of texts.

    Example:
        >>> both = conjunction([jnp.ones((77, 8)), jnp.ones((77, 8))], [3.0, 2.0], jnp.zeros((77, 8)))
        >>> float(both.rule.gather(Prediction(jnp.array([1.0, 2.0, 0.0])), None, None).estimate)
        2.0

    Reference:
        Liu et al. 2022 (Composable Diffusion), eq. 11; deep-floyd/IF, `style_transfer`.
    """
    rule = Rule(len(texts) + 1, _numbers("scales", scales, len(texts)), _conjoin)
    return compose(rule, [conditional(text) for text in (negative, *texts)])


def mixture(combiners: Sequence[Combiner], weights: Sequence[Number] | Float[Array, " k"] | None = None) -> Combiner:
    """Returns the weighted mean of the predictions of several combiners, learned variances included.

    Args:
        combiners: one or more.
        weights: one for each combiner; they are divided by their sum. If None, all are equal.

    Raises:
        ValueError: there are no combiners, or their number is not that of the weights.

    Example:
        >>> half = mixture([conditional(jnp.zeros((77, 8))), conditional(jnp.ones((77, 8)))], [3.0, 1.0])
        >>> float(half.rule.gather(Prediction(jnp.array([0.0, 1.0])), jnp.zeros(()), None).estimate)
        0.25

    Reference:
        The "scale" factorisation of Geng et al. 2024 (Factorized Diffusion).
    """
    return compose(mean_rule(len(combiners), weights), combiners)


def mean(combiners: Sequence[Combiner]) -> Combiner:
    """Returns the mean of the predictions of several combiners. With a `view` in each, it is an anagram.

    Args:
        combiners: one or more.

    Raises:
        ValueError: there are no combiners.

    Example:
        >>> from jdiff import views
        >>> prompts = [conditional(jnp.zeros((77, 8))), conditional(jnp.ones((77, 8)))]
        >>> size(mean([prompts[0], view(views.flip(), prompts[1])]))
        2

    Reference:
        Geng et al. 2024 (Visual Anagrams), eq. 4; the course's 1.8.
    """
    return mixture(combiners)


def alternate(combiners: Sequence[Combiner]) -> Combiner:
    """Returns the combiner that uses one of n combiners at each step, in turn: combiner i mod n in row i.

    The network evaluates all of them at every step.

    Args:
        combiners: one or more.

    Raises:
        ValueError: there are no combiners.

    Example:
        >>> both = alternate([conditional(jnp.zeros((77, 8))), conditional(jnp.ones((77, 8)))])
        >>> level = Level(3, 500.0, 1, 1, 1, 1, 1, 0, True)  # row 3
        >>> float(both.rule.gather(Prediction(jnp.array([5.0, 7.0])), jnp.zeros(()), level).estimate)
        7.0

    Reference:
        Tancik 2023 (Illusion Diffusion), which Visual Anagrams compares with the mean.
    """
    return compose(Rule(_at_least_one(len(combiners)), None, _take_turns), combiners)


def view(view: View, combiner: Combiner) -> Combiner:
    """Returns the combiner that predicts for the image under a view, and undoes the view on the prediction.

    Args:
        view: from `jdiff.views`.
        combiner: makes the prediction. It also decides k and the variance.

    Example:
        >>> from jdiff import views
        >>> upside_down = view(views.flip(), conditional(jnp.zeros((77, 8))))
        >>> upside_down.rule.spread(jnp.array([[[1.0]], [[2.0]]]), None, None)[0].ravel().tolist()
        [2.0, 1.0]

    Reference:
        Geng et al. 2024 (Visual Anagrams), section 3.2.
    """
    return compose(Rule(1, view, _turn_back, _look), [combiner])


def components(parts: Mapping[Callable, Combiner] | Sequence[tuple[Callable, Combiner]]) -> Combiner:
    """Returns a hybrid: each component is applied to the prediction of its own combiner, and the results are added.

    The learned variance is the mean of the combiners' variances, not filtered.

    Args:
        parts: pairs of a component, which is a linear map [h w c] -> [h w c], and a combiner. The components add up to
            the identity, like those of `views.FACTORISATIONS`.

    Raises:
        ValueError: there are no parts.

    Example:
        >>> from jdiff import views
        >>> far, near = conditional(jnp.zeros((77, 8))), conditional(jnp.ones((77, 8)))
        >>> size(components({views.low_pass(): far, views.high_pass(): near}))
        2

    Reference:
        Geng et al. 2024 (Factorized Diffusion), eq. 5; the course's 1.9.
    """
    pairs = list(parts.items() if isinstance(parts, Mapping) else parts)
    rule = Rule(_at_least_one(len(pairs)), tuple(as_partial(part) for part, _ in pairs), _add_up)
    return compose(rule, [combiner for _, combiner in pairs])


def identity_rule() -> Rule:
    """Returns the rule of one branch whose prediction is used unchanged: the identity of `compose`.

    Example:
        >>> identity_rule().k
        1
    """
    return Rule(1, None, _only)


def guidance_rule(scale: Scale, *, rescale: Number | None = None) -> Rule:
    """Returns the rule of `cfg`: branch 0 is the negative prompt, branch 1 the text.

    Args:
        scale: as in `cfg`.
        rescale: as in `cfg`.

    Raises:
        ValueError: as `cfg`.

    Example:
        >>> float(guidance_rule(3.0).gather(Prediction(jnp.array([1.0, 2.0])), None, None).estimate)
        4.0
    """
    parts = as_partial(scale) if callable(scale) else _number("scale", scale)
    idle, stand_ins = None, None
    if isinstance(parts, Partial) and parts.func is _between:  # at scale 1 the text's prediction is the result
        idle, stand_ins = Partial(_outside, *parts.args[1:]), (1, 1)
    if rescale is None:
        return Rule(2, parts, _guide, idle=idle, stand_ins=stand_ins)
    return Rule(2, (parts, _number("rescale", rescale, 0, 1)), _guide_and_rescale, idle=idle, stand_ins=stand_ins)


def mean_rule(k: int, weights: Sequence[Number] | Float[Array, " k"] | None = None) -> Rule:
    """Returns the rule of `mixture`: the weighted mean of k branches that see the same image.

    Args:
        k: number of branches.
        weights: as in `mixture`.

    Raises:
        ValueError: `k` is below 1, or not the number of weights.

    Example:
        >>> float(mean_rule(2).gather(Prediction(jnp.array([1.0, 2.0])), None, None).estimate)
        1.5
    """
    k = _at_least_one(k)
    numbers = jnp.ones(k) if weights is None else _numbers("weights", weights, k)
    return Rule(k, numbers, _mean)


def compose(rule: Rule, combiners: Sequence[Combiner]) -> Combiner:
    """Returns the combiner in which `combiners[i]` predicts for branch i of a rule.

    Its k is the sum of their k, and its conditioning is the concatenation of theirs. Composition is associative, and
    `conditional` is its identity.

    Args:
        rule: how the predictions of the combiners become one.
        combiners: one for each branch of the rule.

    Raises:
        ValueError: the number of combiners is not that of the branches, or an argument has another type.

    Example:
        >>> a, b = jnp.zeros((77, 8)), jnp.ones((77, 8))
        >>> nested = compose(mean_rule(2), [cfg(a, 7.0, b), conditional(b)])
        >>> size(nested), nested.conditioning.text.shape
        (3, (3, 77, 8))
    """
    if not isinstance(rule, Rule):
        raise ValueError(f"rule must be a Rule, got a {type(rule).__name__}; for a combiner, pass combiner.rule")
    for combiner in combiners:
        if not isinstance(combiner, Combiner):
            raise ValueError(f"combiners must hold Combiners, got a {type(combiner).__name__}")
    if len(combiners) != rule.k:
        raise ValueError(f"combiners must have one for each of the rule's {rule.k} branches, got {len(combiners)}")
    conditioning = _concatenate([combiner.conditioning for combiner in combiners])
    rules = tuple(combiner.rule for combiner in combiners)
    if all(map(_is_identity, rules)):
        return Combiner(rule, conditioning)
    if _is_identity(rule):
        return combiners[0]
    k = sum(inner.k for inner in rules)
    return Combiner(Rule(k, (rule, rules), _gather_inside, _spread_inside, *_resting(rules)), conditioning)


def denoiser(
    network: Network | Callable,
    combiner: Combiner | Callable,
    low_res: Image | None = None,
    *,
    noise_level: Number | None = None,
    branch_batch: int | None = None,
    idle: bool = False,
) -> Callable[[Array, Level], Prediction]:
    """Returns the function that predicts for one image. It evaluates all k branches in one call of the network.

    Args:
        network: a Network, or a function `(x [n h w c], t [n], Conditioning [n ...]) -> Prediction [n ...]`.
        combiner: a Combiner, or a function `(denoise, x, level) -> Prediction` for one image. It can call
            `denoise(x [h w c], t, Conditioning)`, which is the network for one image.
        low_res: stage 2: the resized and noised image [h w c] to enlarge. Every branch sees it under its own view.
        noise_level: stage 2: the timestep to which `low_res` is noised.
        branch_batch: how many branches the network evaluates at a time, to bound memory; all of them if None.
        idle: whether the rule is idle at every level that the function is called with. The network then evaluates only
            the branches that are needed.

    Returns:
        `(x [h w c], level) -> Prediction`.

    Raises:
        ValueError: `branch_batch` is given with a function as combiner, which evaluates its branches itself.

    Example:
        >>> double = lambda x, t, told: Prediction(2 * x)
        >>> level = Level(0, 500.0, 1, 1, 1, 1, 1, 0, True)
        >>> denoiser(double, conditional(jnp.zeros((77, 8))))(jnp.ones((1, 1, 1)), level).estimate.item()
        2.0
    """
    network = as_network(network)
    if not isinstance(combiner, Combiner):
        if branch_batch is not None:
            raise ValueError(
                f"branch_batch must be None with a function as combiner, got {branch_batch}; the function itself "
                "decides how many branches it evaluates at a time"
            )
        return lambda x, level: combiner(_for_one_image(network, low_res, noise_level), x, level)

    def denoise(x: Array, level: Level) -> Prediction:
        xs, low = combiner.rule.spread(x, low_res, level)
        conditioning = _with_low_res(combiner.conditioning, low, noise_level, xs.shape[:1])
        times = jnp.full(xs.shape[:1], level.t, x.dtype)
        stand_ins = combiner.rule.stand_ins if idle else None
        if stand_ins is not None:
            needed = sorted(set(stand_ins))
            xs, times, conditioning = jax.tree.map(lambda a: a[np.array(needed)], (xs, times, conditioning))
        if branch_batch is None or branch_batch >= xs.shape[0]:
            prediction = network(xs, times, conditioning)
        else:
            one = lambda a: jax.tree.map(lambda b: b[0], network(*jax.tree.map(lambda b: b[None], a)))
            prediction = jax.lax.map(one, (xs, times, conditioning), batch_size=branch_batch)
        if stand_ins is not None:
            places = np.array([needed.index(branch) for branch in stand_ins])
            prediction = jax.tree.map(lambda a: a[places], prediction)
        return combiner.rule.gather(prediction, x, level)

    return denoise


def is_idle(combiner: Combiner | Callable, level: Level, in_axes: Axes = None) -> Array | None:
    """Returns whether a combiner's rule is idle at a level, for all images; None if it is never idle.

    Args:
        combiner: a Combiner, or a function, which is never idle.
        level: one level.
        in_axes: which leaves of the combiner are per image, as for `jax.vmap`.

    Example:
        >>> text, level = jnp.zeros((77, 8)), Level(0, 500.0, 1, 1, 1, 1, 1, 0, True)
        >>> bool(is_idle(cfg(text, between(7.0, 0, 200), text), level))
        True
    """
    if not isinstance(combiner, Combiner) or combiner.rule.idle is None:
        return None
    of = lambda combiner: combiner.rule.idle(level)
    return of(combiner) if in_axes is None else jax.vmap(of, in_axes=(in_axes,))(combiner).all()


def _for_one_image(network: Network, low_res: Array | None, noise_level: Number | None) -> Callable:
    """Returns the network as a function of one image. If a conditioning has no low-res image, it gets `low_res`."""

    def denoise(x: Array, t: Number, conditioning: Conditioning) -> Prediction:
        if conditioning.low_res is None:
            conditioning = _with_low_res(conditioning, low_res, noise_level, ())
        batch = jax.tree.map(lambda a: jnp.asarray(a)[None], (x, jnp.asarray(t, x.dtype), conditioning))
        return jax.tree.map(lambda a: a[0], network(*batch))

    return denoise


def _with_low_res(
    conditioning: Conditioning, low_res: Array | None, noise_level: Number | None, shape: tuple[int, ...]
) -> Conditioning:
    if low_res is None:
        return conditioning
    told = None if noise_level is None else jnp.full(shape, noise_level, low_res.dtype)
    return conditioning._replace(low_res=low_res, noise_level=told)


def _number(name: str, value: Number, least: float = -math.inf, most: float = math.inf) -> Array:
    """Returns a number as a strongly typed array, so that 3, 3.0 and float32(3) are one compiled program."""
    if not isinstance(value, Array):
        value = checks.number(name, value, least, most)
    return jnp.asarray(value, float)


def _numbers(name: str, values: Sequence[Number] | Array, k: int) -> Array:
    numbers = jnp.asarray(values, float)
    if numbers.shape != (k,):
        raise ValueError(f"{name} must have {k} numbers, got shape {numbers.shape}")
    return numbers


def _at_least_one(k: int) -> int:
    if k < 1:
        raise ValueError("there must be at least one combiner, got none")
    return k


def _concatenate(conditionings: Sequence[Conditioning]) -> Conditioning:
    if any(c.pooled is not None for c in conditionings):  # a branch without `pooled` uses its `text`
        conditionings = [c if c.pooled is not None else c._replace(pooled=c.text) for c in conditionings]
    return jax.tree.map(lambda *arrays: jnp.concatenate(arrays), *conditionings)


def _is_identity(rule: Rule) -> bool:
    return rule.join is _only and rule.show is same_image


def _only(rule: Rule, prediction: Prediction, x: Array, level: Level) -> Prediction:
    del rule, x, level
    return jax.tree.map(lambda a: a[0], prediction)


def _guide(rule: Rule, prediction: Prediction, x: Array, level: Level) -> Prediction:
    del x
    return _guided(rule.parts, prediction, level)


def _guide_and_rescale(rule: Rule, prediction: Prediction, x: Array, level: Level) -> Prediction:
    del x
    scale, share = rule.parts
    guided, text = _guided(scale, prediction, level), prediction.estimate[1]
    factor = share * text.std() / guided.estimate.std() + 1 - share
    return guided._replace(estimate=factor.astype(text.dtype) * guided.estimate)


def _guided(scale: Array | Partial, prediction: Prediction, level: Level) -> Prediction:
    s = scale(level) if callable(scale) else scale
    negative, text = prediction.estimate
    variance = None if prediction.variance is None else prediction.variance[1]
    return Prediction(negative + jnp.asarray(s, text.dtype) * (text - negative), variance)


def _between(scale: Array, low: Array, high: Array, level: Level) -> Array:
    return jnp.where((level.t >= low) & (level.t <= high), scale, 1.0)


def _outside(low: Array, high: Array, level: Level) -> Array:
    return (level.t < low) | (level.t > high)


def _resting(rules: Sequence[Rule]) -> tuple[Partial | None, tuple[int, ...] | None]:
    """Returns `idle` and `stand_ins` of nested rules. They are idle where every rule with an `idle` is idle."""
    idle = tuple(rule.idle for rule in rules if rule.idle is not None)
    if not idle:
        return None, None
    stand_ins: list[int] = []
    for rule in rules:
        first = len(stand_ins)
        stand_ins += [first + i for i in (rule.stand_ins or range(rule.k))]
    return Partial(_all, idle), tuple(stand_ins)


def _all(conditions: Sequence[Partial], level: Level) -> Array:
    return functools.reduce(jnp.logical_and, [condition(level) for condition in conditions])


def _conjoin(rule: Rule, prediction: Prediction, x: Array, level: Level) -> Prediction:
    del x, level
    negative, texts = prediction.estimate[0], prediction.estimate[1:]
    variance = None if prediction.variance is None else prediction.variance[1]
    return Prediction(negative + _weigh(rule.parts, texts - negative[None]), variance)


def _take_turns(rule: Rule, prediction: Prediction, x: Array, level: Level) -> Prediction:
    del x
    return jax.tree.map(lambda a: jnp.take(a, jnp.asarray(level.i) % rule.k, axis=0), prediction)


def _look(rule: Rule, x: Array, low_res: Array | None, level: Level) -> Shown:
    del level
    return jax.tree.map(lambda a: rule.parts.apply(a)[None], (x, low_res))


def _turn_back(rule: Rule, prediction: Prediction, x: Array, level: Level) -> Prediction:
    return rule.parts.invert(_only(rule, prediction, x, level))


def _add_up(rule: Rule, prediction: Prediction, x: Array, level: Level) -> Prediction:
    del x, level
    estimate = functools.reduce(jnp.add, [part(prediction.estimate[i]) for i, part in enumerate(rule.parts)])
    variance = None if prediction.variance is None else prediction.variance.mean(axis=0)
    return Prediction(estimate, variance)


def _mean(rule: Rule, prediction: Prediction, x: Array, level: Level) -> Prediction:
    del x, level
    return jax.tree.map(lambda a: _weigh(rule.parts / rule.parts.sum(), a), prediction)


def _weigh(weights: Array, images: Array) -> Array:
    return jnp.tensordot(weights.astype(images.dtype), images, 1, precision=jax.lax.Precision.HIGHEST)


def _spread_inside(rule: Rule, x: Array, low_res: Array | None, level: Level) -> Shown:
    outer, inners = rule.parts
    outside = outer.spread(x, low_res, level)
    inside = [inner.spread(*jax.tree.map(lambda a, i=i: a[i], outside), level) for i, inner in enumerate(inners)]
    return jax.tree.map(lambda *arrays: jnp.concatenate(arrays), *inside)


def _gather_inside(rule: Rule, prediction: Prediction, x: Array, level: Level) -> Prediction:
    outer, inners = rule.parts
    xs, _ = outer.spread(x, None, level)
    gathered, start = [], 0
    for i, inner in enumerate(inners):
        rows = slice(start, start + inner.k)
        gathered.append(inner.gather(jax.tree.map(lambda a, rows=rows: a[rows], prediction), xs[i], level))
        start = rows.stop
    return outer.gather(jax.tree.map(lambda *arrays: jnp.stack(arrays), *gathered), x, level)
