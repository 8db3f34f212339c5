"""Ambigrams: words that read the same, or as another word, when they are turned.

Letter i of a word is one glyph that reads as another letter when it is turned. Both readings are guided at every step
of one sampler, and their predictions are averaged (Geng et al. 2024, Visual Anagrams). Many candidates of every letter
are drawn, judges read each both ways, and the best of each place are set into a word.

In the noisy steps, the gradient of another judge, the guide, pushes the clean image towards both readings. The guide is
trained on adversarial examples, because such a judge's gradient changes strokes, and not single pixels.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jdiff import checks, combine, sample, views
from jdiff.keys import as_key
from jdiff.letters import captions, judge, spelling
from jdiff.mesh import DATA
from jdiff.model import Model
from jdiff.scan import Watch
from jdiff.training.conv import fitting_conv
from jdiff.types import Array, Level, Prediction, Rule

# Candidates of each place by view. Under half a turn, the best choice of case is known. Otherwise all four are drawn.
CANDIDATES = {"rotate_180": 4, "flip": 8, "mirror": 8}
AT_ONCE = 4  # candidates in one call of the sampler, so that every word runs the same program
READABLE, HARD = 0.5, 0.15  # of the worst letter's score
VERDICTS = ("not readable", "hard", "readable")
GUIDANCE = 1.0  # no classifier-free guidance: with the guide it changes little, and doubles the network's time
PUSH = 0.8  # how far the guide moves the clean image in one step at most: root mean square over pixels in [-1, 1]
PUSHES = 5  # steps along the gradient that make one push
GUIDED = 0.3  # the guide moves it only where the noise is above this. Then the model removes what only the guide sees
OTHERS = 2**31 - 4  # folded into the key for the candidates of other ways than the first
EVEN = 0.15  # what a difference of 1 in the logarithm of the stroke's width costs in score
# Combines two readings into one.
Together = Callable[[Sequence[combine.Combiner]], combine.Combiner]


class Candidates(NamedTuple):
    """The candidates of one place."""

    pairs: list[spelling.Pair]  # [n]
    glyphs: np.ndarray  # [n 32 32 1] in [-1, 1], ink at 1
    scores: np.ndarray  # [n 2] chance of being read right, upright and turned


class Ambigram(NamedTuple):
    """A word that reads in two ways."""

    word: str
    turned: str
    view: str
    pairs: list[spelling.Pair]  # [places]
    glyphs: np.ndarray  # [places 32 32 1] in [-1, 1], ink at 1, as they stand in the upright word
    scores: np.ndarray  # [places 2]

    @property
    def verdict(self) -> str:
        """The verdict on the whole word: readable, hard or not readable. The worst letter decides."""
        worst = float(self.scores.min())
        return VERDICTS[(worst >= HARD) + (worst >= READABLE)]


def is_letters(model: Model) -> bool:
    """Whether a model has the form of the letters model, whose pictures the judges can read: grey, 32 x 32."""
    return (model.config.channels, model.config.sample_size) == (1, judge.SIZE)


@partial(jax.jit, static_argnums=0)
def turn(view: str, glyphs: np.ndarray | Array) -> Array:
    """Returns glyphs [n h w 1] as they look when they are turned."""
    return jax.vmap(views.VIEWS[view]().apply)(jnp.asarray(glyphs))


def combiner(
    model: Model,
    pair: spelling.Pair,
    view: str,
    style: captions.Style,
    guidance: float | None = GUIDANCE,
    push: float = PUSH,
    together: Together = combine.mean,
) -> combine.Combiner:
    """Returns the mean of two readings, one of them through the view, pushed by the guide unless `push` is 0.

    Args:
        model: the letters model.
        pair: what the glyph reads as.
        view: how it is turned, a key of `spelling.TURNS`.
        style: of both readings.
        guidance: guidance scale of each reading; the model's own if None.
        push: as in `draw`.
        together: combines the two readings: `combine.mean`, `combine.alternate`, or a function of your own.

    Reference:
        Geng et al. 2024 (Visual Anagrams), eq. 4; Bansal et al. 2023 (Universal Guidance), section 3.2. A guide that is
        trained on adversarial examples: Kawar et al. 2023 (Robust Classifier Guidance).
    """
    texts = [captions.caption(spelling.drawn_as(reading), style, spelled=True) for reading in pair]
    upright, turned = model.guided(texts, guidance)
    both = together([upright, combine.view(views.VIEWS[view](), turned)])
    if push == 0:
        return both
    wanted = jnp.stack([jnp.asarray(judge.accepted(spelling.drawn_as(reading))) for reading in pair])
    return combine.compose(Rule(1, (jnp.float32(push), wanted), _pushed(view, model.predicts)), [both])


@cache
def _pushed(view: str, predicts: Callable) -> Callable:
    """Returns the `join` of the guide's rule, whose parts are the push and the classes of both readings [2 classes]."""
    # XLA's own gradient of a convolution is slow in a scan
    look, params = judge.network("guide", fitting_conv())[0], judge.load_params(kind="guide")
    other = views.VIEWS[view]().apply

    def join(rule: Rule, prediction: Prediction, x: Array, level: Level) -> Prediction:
        push, wanted = rule.parts
        estimate = prediction.estimate[0]
        clean = predicts(estimate, x, level)

        def likely(clean: Array) -> Array:
            shown = clean + jax.lax.stop_gradient(jnp.clip(clean, -1, 1) - clean)  # clipping keeps the gradient
            logits = look(params, (jnp.stack([shown, other(shown)]) + 1) / 2)
            return jax.nn.logsumexp(jax.nn.log_softmax(logits), axis=-1, b=wanted).sum()

        def climb(_: int, clean: Array) -> Array:
            gradient = jax.grad(likely)(clean)
            return clean + push / PUSHES * gradient / (jnp.sqrt((gradient**2).mean()) + 1e-3)

        noisy = level.noise > GUIDED
        better = jax.lax.fori_loop(0, jnp.where(noisy, PUSHES, 0), climb, clean)
        # The clean image is an affine function of the estimate. Its slope can be 0 where there is no noise.
        slope = predicts(jnp.ones(()), jnp.zeros(()), level) - predicts(jnp.zeros(()), jnp.zeros(()), level)
        moved = jnp.where(noisy, (better - clean) / slope, 0)
        variance = None if prediction.variance is None else prediction.variance[0]
        return Prediction(estimate + moved.astype(estimate.dtype), variance)

    return join


def draw(
    model: Model,
    pairs: Sequence[spelling.Pair],
    key: Array,
    *,
    view: str = "rotate_180",
    style: captions.Style = captions.PLAIN,
    steps: int | None = None,
    guidance: float | None = GUIDANCE,
    push: float = PUSH,
    together: Together = combine.mean,
    mesh: Mesh | None = None,
    progress: Callable[[int, int], None] | None = None,
    watch: Watch | None = None,
) -> np.ndarray:
    """Draws one candidate of each pair, in groups of `AT_ONCE`, or a few more where devices share a group.

    Args:
        model: the letters model.
        pairs: what each candidate reads as; repeat a pair for more candidates of it.
        key: random key.
        view: how the glyphs are turned, a key of `spelling.TURNS`.
        style: of both readings.
        steps: steps of the sampler; the model's own if None.
        guidance: as in `combiner`.
        push: how far the guide moves the clean image in a noisy step at most, in [0, 2], as a root mean square over
            pixels in [-1, 1]; 0 for no push.
        together: as in `combiner`.
        mesh: devices to split the candidates over, as in `sample.generate`.
        progress: called with (steps done, steps in all) every few steps.
        watch: as in `sample.generate`, for the candidates of one group.

    Returns:
        Glyphs [n 32 32 1] in [-1, 1].

    Raises:
        ValueError: the model is not one of letters, there are no pairs, or there is no such view.
    """
    if not is_letters(model):
        size = f"{model.config.sample_size} x {model.config.sample_size} with {model.config.channels} channels"
        raise ValueError(f"model must be a model of letters, {judge.SIZE} x {judge.SIZE} and grey, got one of {size}")
    if view not in spelling.TURNS:
        raise ValueError(f"view must be one of {', '.join(spelling.TURNS)}, got {view!r}")
    if not pairs:
        raise ValueError("pairs must hold at least one pair, got none")
    kinds = list(dict.fromkeys(pairs))
    push = checks.number("push", push, 0, 2)
    made = {pair: combiner(model, pair, view, style, guidance, push, together) for pair in kinds}
    devices = 1 if mesh is None else mesh.shape[DATA]
    size = -(-AT_ONCE // devices) * devices
    filled = [*pairs, *[pairs[-1]] * (-len(pairs) % size)]
    seen = None if watch is None else partial(_without_fill, watch, len(pairs), size, len(filled) // size)
    how: sample.How = {"images_at_once": size, "mesh": mesh, "progress": progress, "watch": seen}
    drawn = sample.generate(model, [made[pair] for pair in filled], key, steps=steps, **how)
    return np.asarray(drawn.images[: len(pairs), 0])


def _without_fill(watch: Watch, n: int, size: int, groups: int, done: int, total: int, images: np.ndarray) -> None:
    """Calls `watch` with the candidates of a group, of n in all, without those that only fill the last group."""
    group = (done - 1) * groups // total
    watch(done, total, images[: n - group * size])


def read(
    glyphs: np.ndarray | Array, pairs: Sequence[spelling.Pair], view: str, judged: Callable[[Array], Array]
) -> np.ndarray:
    """Returns how likely glyphs [n 32 32 1] are read right, upright and turned [n 2]."""
    scores = []
    for images, readings in ((glyphs, [p.upright for p in pairs]), (turn(view, glyphs), [p.turned for p in pairs])):
        chances = np.asarray(judged(jnp.asarray(images)))
        scores.append((chances * np.stack([judge.accepted(spelling.drawn_as(one)) for one in readings])).sum(-1))
    return np.stack(scores, axis=-1)


def stroke(glyphs: np.ndarray) -> np.ndarray:
    """Returns the mean width of the strokes of glyphs [n h w 1], in pixels [n]: twice the ink's area by its outline."""
    ink = np.clip((np.asarray(glyphs)[..., 0] + 1) / 2, 0, 1)
    down, across = np.gradient(ink, axis=(1, 2))
    outline = np.hypot(down, across).sum(axis=(1, 2))
    return 2 * ink.sum(axis=(1, 2)) / np.maximum(outline, 1e-6)


def ambigram(
    model: Model,
    word: str,
    turned: str | None = None,
    *,
    key: Array,
    view: str = "rotate_180",
    style: str = "",
    n: int | None = None,
    steps: int | None = None,
    guidance: float | None = GUIDANCE,
    push: float = PUSH,
    together: Together = combine.mean,
    mesh: Mesh | None = None,
    judged: Callable[[Array], Array] | None = None,
    progress: Callable[[int, int], None] | None = None,
    watch: Watch | None = None,
) -> Ambigram:
    """Draws a word that reads as itself, or as another word, when it is turned.

    Case is free. Under half a turn, two letters are drawn in the choice of case that reads best for them, as measured
    for every pair of letters. Otherwise they are drawn in all choices. Under half a turn or in a mirror, only the first
    half of a word that reads as itself is drawn. The other half is the same glyphs turned. Two letters stand in one
    place, as "rn" for m, where the words need it, or where the verdict on the word is better with them.

    Args:
        model: the letters model, from `jdiff.load("letters")`.
        word: what it reads as upright.
        turned: what it reads as when turned; the same word if None.
        key: random key.
        view: rotate_180 (by half a turn), flip (upside down) or mirror (left to right).
        style: words such as "bold serif": see `captions.read_style`.
        n: candidates of each place; those of `CANDIDATES` if None.
        steps: steps of the sampler; the model's own if None.
        guidance: as in `combiner`.
        push: as in `draw`.
        together: as in `combiner`.
        mesh: as in `draw`.
        judged: reads glyphs, as `judge.load_judge` returns; `judge.ranker` if None.
        progress: called with (steps done, steps in all) every few steps. Other ways, once they are drawn, add steps.
        watch: as in `draw`.

    Returns:
        The word in the best way that was drawn.

    Raises:
        ValueError: a word cannot be drawn, the words do not fit, the style has an unknown word, the model is not one of
            letters, or no candidate of a place is finite.
    """
    word, turned = spelling.check(word), spelling.check(word if turned is None else turned, "WORD2")
    alignments, told = spelling.ways(word, turned, view), captions.read_style(style)
    n, key = CANDIDATES[view] if n is None else checks.whole("n", n, 1, 1024), as_key(key)
    judged = jax.jit(judge.ranker()) if judged is None else judged
    drawn: dict[spelling.Pair, Candidates] = {}
    before = rows = 0  # of the draws that are done, and with the present one

    def counted(show: Any) -> Any:  # progress or watch
        def told(done: int, total: int, *images: np.ndarray) -> None:
            nonlocal rows
            rows = before + total
            show(before + done, rows, *images)

        return show and told

    shown = {"progress": counted(progress), "watch": counted(watch)}
    how = {"guidance": guidance, "push": push, "together": together, "mesh": mesh, **shown}

    def made(way: Sequence[tuple[str, str]]) -> Ambigram:
        return _set(word, turned, view, way, drawn)

    def draw_all(some: Sequence[Sequence[tuple[str, str]]], key: Array) -> None:
        kinds = [
            kind for kind in dict.fromkeys(spelling.kind_of(pair) for way in some for pair in way) if kind not in drawn
        ]
        if not kinds:
            return
        choices = [spelling.best_cases(*kind, view) for kind in kinds]
        pairs = [[choice[i % len(choice)] for i in range(n)] for choice in choices]
        flat = [pair for of_kind in pairs for pair in of_kind]
        glyphs = draw(model, flat, key, view=view, style=told, steps=steps, **how)
        scores = np.nan_to_num(read(glyphs, flat, view, judged)).reshape(len(kinds), n, 2)
        glyphs = glyphs.reshape(len(kinds), n, *glyphs.shape[1:])
        for kind, candidates in zip(kinds, glyphs, strict=True):
            if not _finite(candidates).any():
                raise ValueError(f"no candidate of {' / '.join(kind)} is finite; try less guidance than {guidance}")
        drawn.update(zip(kinds, map(Candidates, pairs, glyphs, scores), strict=True))

    draw_all(alignments[:1], key)
    first = made(alignments[0])
    if first.verdict == "readable":
        return first
    better = HARD if first.verdict == "not readable" else READABLE
    before = rows
    hopeful = [way for way in alignments[1:] if all(_best(drawn.get(spelling.kind_of(pair))) >= better for pair in way)]
    draw_all(hopeful, jax.random.fold_in(key, OTHERS))
    return max([first, *map(made, hopeful)], key=lambda one: VERDICTS.index(one.verdict))  # the first of the best


def _best(candidates: Candidates | None) -> float:
    """Returns the score of the best candidate; 1 where none is drawn yet."""
    return 1.0 if candidates is None else float(candidates.scores.min(axis=-1).max())


def _set(
    word: str, turned: str, view: str, way: Sequence[tuple[str, str]], drawn: Mapping[spelling.Pair, Candidates]
) -> Ambigram:
    """Sets the best candidates into a word.

    Args:
        word: what it reads as upright.
        turned: what it reads as when turned.
        view: how it is turned.
        way: what each place reads as, one of `spelling.ways`.
        drawn: candidates of each kind of place.
    """
    kinds = list(dict.fromkeys(map(spelling.kind_of, way)))
    best = choose(np.stack([drawn[kind].glyphs for kind in kinds]), np.stack([drawn[kind].scores for kind in kinds]))
    chosen: list[tuple[spelling.Pair, np.ndarray, np.ndarray]] = []
    itself = spelling.TURNS[view] and word.lower() == turned.lower()
    for i, place in enumerate(way):
        if itself and i >= len(way) - i:  # the second half is the first half turned
            pair, glyph, score = chosen[len(way) - 1 - i]
            chosen.append(_turned(view, pair, glyph, score))
            continue
        found, at = drawn[spelling.kind_of(place)], best[kinds.index(spelling.kind_of(place))]
        candidate = found.pairs[at], found.glyphs[at], found.scores[at]
        same = candidate[0].upright.lower() == place[0].lower()
        chosen.append(candidate if same else _turned(view, *candidate))
    pairs, glyphs, scores = zip(*chosen, strict=True)
    return Ambigram(word, turned, view, list(pairs), np.stack(glyphs), np.stack(scores))


def _turned(
    view: str, pair: spelling.Pair, glyph: np.ndarray, score: np.ndarray
) -> tuple[spelling.Pair, np.ndarray, np.ndarray]:
    """Turns a glyph, with what it reads as and its scores."""
    return spelling.Pair(*pair[::-1]), np.asarray(turn(view, glyph[None])[0]), score[::-1]


def choose(glyphs: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Returns which candidate stands in each place [kinds]: well read both ways, and of one weight across the word.

    A candidate that is not finite is taken only if there is no other.

    Args:
        glyphs: candidates [kinds n 32 32 1].
        scores: how they are read [kinds n 2].
    """
    finite = _finite(glyphs)
    least = np.where(finite, scores.min(axis=-1), -np.inf)
    shown = np.where(finite[..., None, None, None], glyphs, 0)
    width = np.log(np.stack([stroke(some) for some in shown]))
    common = np.median(np.take_along_axis(width, least.argmax(1)[:, None], axis=1))
    return (least - EVEN * np.abs(width - common)).argmax(axis=1)


def _finite(glyphs: np.ndarray) -> np.ndarray:
    """Returns which glyphs [... h w 1] are finite."""
    return np.asarray(np.isfinite(glyphs).all(axis=(-3, -2, -1)))
