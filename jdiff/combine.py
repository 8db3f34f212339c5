"""Combiners: how several noise estimates of one image become one, and the algebra that nests them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from jdiff.types import Array, Combiner, Conditioning, Level, Prediction, View, as_partial


def size(combiner: Combiner) -> int:
    """k, the number of network evaluations of one image in one step."""
    return jax.tree.leaves(combiner.branches)[0].shape[0]


def conditional(text: Array, *, noise_level: Any = None, pooled: Array | None = None) -> Combiner:
    """The estimate for one prompt embedding [l d] as it is; the identity of `compose`.

    >>> size(conditional(jnp.zeros((77, 8))))
    1
    """
    branch = Conditioning(text, noise_level=noise_level, pooled=pooled)
    return Combiner(jax.tree.map(lambda a: jnp.asarray(a)[None], branch), Partial(_repeat, None), Partial(_only))


def cfg(text: Array, scale: Any, negative: Array, *, noise_level: Any = None, rescale: Any = None) -> Combiner:
    """Classifier-free guidance: negative + scale (text - negative), k = 2; the variance is the text's.

    `text` and `negative` are prompt embeddings [l d]; `scale` is a number, or a function of the level (`between`).
    scale 1 is `conditional(text)`, 0 the negative prompt alone. With `rescale` in [0, 1] the estimate is brought that
    part of the way back to the standard deviation of the text's own (Lin et al. 2024, eq. 15 and 16).

    >>> guided = cfg(jnp.ones((77, 8)), 7.0, jnp.zeros((77, 8)))
    >>> two = Prediction(jnp.array([1.0, 2.0]), jnp.array([0.5, 0.25]))  # of the negative prompt, of the text
    >>> [float(a) for a in guided.gather(two, None, None)]
    [8.0, 0.25]

    Source: Ho and Salimans 2022, eq. 6; course 1.6.
    """
    branches = _concatenate([conditional(a, noise_level=noise_level).branches for a in (negative, text)])
    scale = as_partial(scale) if callable(scale) else jnp.asarray(scale)
    gather = Partial(_guide, scale)
    if rescale is not None:
        gather = Partial(_rescale, jnp.asarray(rescale), gather)
    return Combiner(branches, Partial(_repeat, None, None), gather)


def between(scale: Any, low: float, high: float) -> Partial:
    """A guidance scale for `cfg`: `scale` at timesteps from `low` to `high`, 1 (no guidance) elsewhere.

    >>> between(7.0, 200, 800)(Level(0, 500.0, 1, 1, 1, 1, 1, True)).item()
    7.0

    Source: Kynkaanniemi et al. 2024, guidance in a limited interval.
    """
    return Partial(_between, *map(jnp.asarray, (scale, low, high)))


def conjunction(texts: Sequence[Array], scales: Any, negative: Array, *, noise_level: Any = None) -> Combiner:
    """negative + sum of scales[i] (texts[i] - negative): every prompt at once; k = len(texts) + 1.

    The variance is the first text's. A scale below 0 leads away from its prompt. deep-floyd's style mixing is
    `conjunction([prompt, style], [g (1 - m), g m], negative)` with m from 0.25 to 0.5.

    >>> both = conjunction([jnp.ones((77, 8)), jnp.ones((77, 8))], [3.0, 2.0], jnp.zeros((77, 8)))
    >>> float(both.gather(Prediction(jnp.array([1.0, 2.0, 0.0])), None, None).estimate)
    2.0

    Source: Liu et al. 2022 (Composable Diffusion), eq. 11; deep-floyd/IF, `style_transfer`.
    """
    scales = jnp.asarray(scales)
    if scales.shape != (len(texts),):
        raise ValueError(f"scales has shape {scales.shape}, accepted is one number for each of {len(texts)} texts")
    branches = _concatenate([conditional(a, noise_level=noise_level).branches for a in (negative, *texts)])
    return Combiner(branches, Partial(_repeat, *[None] * (len(texts) + 1)), Partial(_conjoin, scales))


def mixture(inners: Sequence[Combiner], weights: Any = None) -> Combiner:
    """The weighted mean of what `inners` say, variances likewise; k is the sum of theirs.

    `weights` [len(inners)] are divided by their sum; without them all count alike.

    >>> half = mixture([conditional(jnp.zeros((77, 8))), conditional(jnp.ones((77, 8)))], [3.0, 1.0])
    >>> float(half.gather(Prediction(jnp.array([0.0, 1.0])), jnp.zeros(()), None).estimate)
    0.25

    Source: the "scale" factorisation of Geng et al. 2024 (Factorized Diffusion).
    """
    weights = jnp.ones(len(inners)) if weights is None else jnp.asarray(weights)
    if weights.shape != (len(inners),):
        raise ValueError(f"weights has shape {weights.shape}, accepted is one number for each of {len(inners)} inners")
    return _over(inners, Partial(_mean, weights))


def mean(inners: Sequence[Combiner]) -> Combiner:
    """The mean of what `inners` say, variances likewise: an anagram, where each is a `view`.

    >>> from jdiff import views
    >>> prompts = [conditional(jnp.zeros((77, 8))), conditional(jnp.ones((77, 8)))]
    >>> size(mean([prompts[0], view(views.flip(), prompts[1])]))
    2

    Source: Geng et al. 2024 (Visual Anagrams), eq. 4; course 1.8.
    """
    return mixture(inners)


def alternate(inners: Sequence[Combiner]) -> Combiner:
    """One of `inners` a step, in turn by the level's number.

    Source: Tancik 2023 (Illusion Diffusion), whose reduction Visual Anagrams compares with the mean.
    """
    return _over(inners, Partial(_take_turns))


def view(view: View, inner: Combiner) -> Combiner:
    """What `inner` says of the image as `view` shows it, turned back; k and the variance's rule are `inner`'s.

    >>> from jdiff import views
    >>> upside_down = view(views.flip(), conditional(jnp.zeros((77, 8))))
    >>> upside_down.spread(jnp.array([[[1.0]], [[2.0]]]), None, None)[0].ravel().tolist()
    [2.0, 1.0]

    Source: Geng et al. 2024 (Visual Anagrams), section 3.2.
    """
    first = jax.tree.map(lambda a: a[:1], inner.branches)
    return compose(Combiner(first, Partial(_look, view.apply), Partial(_turn_back, view.invert)), [inner])


def components(parts: Mapping[Callable, Combiner] | Sequence[tuple[Callable, Combiner]]) -> Combiner:
    """The sum of each component of what its own combiner says: a hybrid; the variance is the mean, unfiltered.

    `parts` maps components of one factorisation, maps [h w c] -> [h w c] that add up to the identity, to combiners.

    >>> from jdiff import views
    >>> far, near = conditional(jnp.zeros((77, 8))), conditional(jnp.ones((77, 8)))
    >>> size(components({views.low_pass(): far, views.high_pass(): near}))
    2

    Source: Geng et al. 2024 (Factorized Diffusion), eq. 5; course 1.9.
    """
    pairs = list(parts.items() if isinstance(parts, Mapping) else parts)
    return _over([inner for _, inner in pairs], Partial(_add_up, tuple(as_partial(part) for part, _ in pairs)))


def compose(outer: Combiner, inners: Sequence[Combiner]) -> Combiner:
    """`inners[i]` inside branch i of `outer`; k is the sum of theirs, and what the branches are told is theirs too.

    Associative, with `conditional` as identity on either side.

    >>> a, b = jnp.zeros((77, 8)), jnp.ones((77, 8))
    >>> size(compose(mixture([conditional(a), conditional(b)]), [cfg(a, 7.0, b), conditional(b)]))
    3
    """
    if len(inners) != size(outer):
        raise ValueError(f"inners has {len(inners)} combiners, accepted is one for each of {size(outer)} branches")
    inners = tuple(inners)
    branches = _concatenate([inner.branches for inner in inners])
    return Combiner(branches, Partial(_spread_inside, outer.spread, inners), Partial(_gather_inside, outer, inners))


def denoiser(
    network: Callable, combiner: Combiner | Callable, low_res: Array | None = None, branch_batch: int | None = None
) -> Callable[[Array, Level], Prediction]:
    """(x [h w c], level) -> Prediction: one image's estimate, all k branches in one call of `network`.

    A plain function `(denoise, x, level) -> Prediction` is as good as a Combiner: its `denoise(x [h w c], t,
    Conditioning)` is the network on one image. `branch_batch` branches at a time bound the memory.
    """
    if not isinstance(combiner, Combiner):

        def one(x, t, conditioning):
            batch = jax.tree.map(lambda a: jnp.asarray(a)[None], (x, jnp.asarray(t, x.dtype), conditioning))
            return jax.tree.map(lambda a: a[0], network(*batch))

        return lambda x, level: combiner(one, x, level)

    def denoise(x, level):
        xs, low = combiner.spread(x, low_res, level)
        conditioning = combiner.branches if low_res is None else combiner.branches._replace(low_res=low)
        inputs = xs, jnp.full(xs.shape[:1], level.t, x.dtype), conditioning
        if branch_batch is None or branch_batch >= xs.shape[0]:
            prediction = network(*inputs)
        else:
            one = lambda a: jax.tree.map(lambda b: b[0], network(*jax.tree.map(lambda b: b[None], a)))
            prediction = jax.lax.map(one, inputs, batch_size=branch_batch)
        return combiner.gather(prediction, x, level)

    return denoise


def _over(inners: Sequence[Combiner], gather: Partial) -> Combiner:
    """All of `inners` on the same image, their answers brought together by `gather`."""
    if not inners:
        raise ValueError("inners is empty, accepted is one combiner or more")
    first = _concatenate([jax.tree.map(lambda a: a[:1], inner.branches) for inner in inners])
    return compose(Combiner(first, Partial(_repeat, *[None] * len(inners)), gather), inners)


def _concatenate(branches: Sequence[Conditioning]) -> Conditioning:
    if any(branch.pooled is not None for branch in branches):  # where it is silent, the pooled text is the text
        branches = [b if b.pooled is not None else b._replace(pooled=b.text) for b in branches]
    return jax.tree.map(lambda *arrays: jnp.concatenate(arrays), *branches)


def _repeat(*args: Any) -> Any:
    *branches, x, low_res, level = args
    del level
    return jax.tree.map(lambda a: jnp.broadcast_to(a, (len(branches), *a.shape)), (x, low_res))


def _only(prediction: Prediction, x: Array, level: Level) -> Prediction:
    del x, level
    return jax.tree.map(lambda a: a[0], prediction)


def _guide(scale: Any, prediction: Prediction, x: Array, level: Level) -> Prediction:
    del x
    scale = scale(level) if callable(scale) else scale
    negative, text = prediction.estimate
    variance = None if prediction.variance is None else prediction.variance[1]
    return Prediction(negative + jnp.asarray(scale, text.dtype) * (text - negative), variance)


def _rescale(share: Array, guide: Partial, prediction: Prediction, x: Array, level: Level) -> Prediction:
    guided, text = guide(prediction, x, level), prediction.estimate[1]
    factor = share * text.std() / guided.estimate.std() + 1 - share
    return guided._replace(estimate=factor.astype(text.dtype) * guided.estimate)


def _between(scale: Array, low: Array, high: Array, level: Level) -> Array:
    return jnp.where((level.t >= low) & (level.t <= high), scale, 1.0)


def _conjoin(scales: Array, prediction: Prediction, x: Array, level: Level) -> Prediction:
    del x, level
    negative, texts = prediction.estimate[0], prediction.estimate[1:]
    variance = None if prediction.variance is None else prediction.variance[1]
    return Prediction(negative + jnp.tensordot(scales.astype(texts.dtype), texts - negative[None], 1), variance)


def _take_turns(prediction: Prediction, x: Array, level: Level) -> Prediction:
    del x
    return jax.tree.map(lambda a: jnp.take(a, jnp.asarray(level.i) % a.shape[0], axis=0), prediction)


def _look(apply: Partial, x: Array, low_res: Any, level: Level) -> Any:
    del level
    return jax.tree.map(lambda a: apply(a)[None], (x, low_res))


def _turn_back(invert: Partial, prediction: Prediction, x: Array, level: Level) -> Prediction:
    return invert(_only(prediction, x, level))


def _add_up(parts: tuple[Partial, ...], prediction: Prediction, x: Array, level: Level) -> Prediction:
    del x, level
    estimate = sum(part(prediction.estimate[i]) for i, part in enumerate(parts))
    variance = None if prediction.variance is None else prediction.variance.mean(axis=0)
    return Prediction(estimate, variance)


def _mean(weights: Array, prediction: Prediction, x: Array, level: Level) -> Prediction:
    del x, level
    return jax.tree.map(lambda a: jnp.tensordot((weights / weights.sum()).astype(a.dtype), a, 1), prediction)


def _spread_inside(outer: Partial, inners: tuple[Combiner, ...], x: Array, low_res: Any, level: Level) -> Any:
    outside = outer(x, low_res, level)
    inside = [inner.spread(*jax.tree.map(lambda a, i=i: a[i], outside), level) for i, inner in enumerate(inners)]
    return jax.tree.map(lambda *arrays: jnp.concatenate(arrays), *inside)


def _gather_inside(
    outer: Combiner, inners: tuple[Combiner, ...], prediction: Prediction, x: Array, level: Level
) -> Prediction:
    xs, _ = outer.spread(x, None, level)
    gathered, start = [], 0
    for i, inner in enumerate(inners):
        rows = slice(start, start + size(inner))
        gathered.append(inner.gather(jax.tree.map(lambda a, rows=rows: a[rows], prediction), xs[i], level))
        start = rows.stop
    return outer.gather(jax.tree.map(lambda *arrays: jnp.stack(arrays), *gathered), x, level)
