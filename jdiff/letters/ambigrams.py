"""Ambigrams: words that read the same, or as another word, when they are turned.

Letter i of a word is one glyph that reads as another letter when it is turned. Both readings are guided at every step
of one sampler, and their predictions are averaged (Geng et al. 2024, Visual Anagrams). Many candidates of every letter
are drawn, a judge reads each both ways, and the best of each place are set into a word.

In the noisy steps, the gradient of another judge, the guide, pushes the clean image towards both readings. The guide is
trained on adversarial examples, because such a judge's gradient changes strokes, and not single pixels.
"""

from collections.abc import Callable, Sequence
from functools import cache, partial
from itertools import product
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jdiff import checks, combine, sample, views
from jdiff.keys import as_key
from jdiff.letters import captions, judge
from jdiff.model import Model
from jdiff.scan import Watch
from jdiff.training.conv import fitting_conv
from jdiff.types import Array, Level, Prediction, Rule

# The ways of turning a word, and whether its letters then come in the opposite order.
TURNS = {"rotate_180": True, "flip": False, "mirror": True}
LONGEST = 20
# Two letters that one letter can replace, where one word is shorter than the other.
FOR_TWO = {"rn": "m", "vv": "w", "cl": "d", "nn": "m", "ii": "u", "lo": "b", "ol": "d"}
AT_ONCE = 16  # candidates in one call of the sampler, so that every word runs the same program
READABLE, HARD = 0.5, 0.15  # of the worst letter's score
PUSH = 0.5  # how far the guide moves the clean image in one step: root mean square over pixels in [-1, 1]
GUIDED = 0.3  # the guide moves it only where the noise is above this. Then the model removes what only the guide sees
EVEN = 0.15  # what a difference of 1 in the logarithm of the stroke's width costs in score


class Pair(NamedTuple):
    """What one glyph reads as, with its case."""

    upright: str
    turned: str


class Place(NamedTuple):
    """The candidates of one place, the best first."""

    pairs: list[Pair]  # [k]
    glyphs: np.ndarray  # [k 32 32 1] in [-1, 1], ink at 1
    scores: np.ndarray  # [k 2] chance of being read right, upright and turned


class Ambigram(NamedTuple):
    """A word that reads in two ways."""

    word: str
    turned: str
    view: str
    pairs: list[Pair]  # [places]
    glyphs: np.ndarray  # [places 32 32 1] in [-1, 1], ink at 1, as they stand in the upright word
    scores: np.ndarray  # [places 2]

    @property
    def verdict(self) -> str:
        """The verdict on the whole word: readable, hard or not readable. The worst letter decides."""
        worst = float(self.scores.min())
        return "readable" if worst >= READABLE else "hard" if worst >= HARD else "not readable"


def turn(view: str, glyphs: np.ndarray | Array) -> Array:
    """Returns glyphs [n h w 1] as they look when they are turned."""
    return jax.vmap(views.VIEWS[view]().apply)(jnp.asarray(glyphs))


def check_word(word: str, name: str = "WORD") -> str:
    """Returns a word that can be drawn.

    Raises:
        ValueError: it is empty, too long, or has characters that the model does not know.

    Example:
        >>> check_word("swims")
        'swims'
    """
    if not isinstance(word, str) or not word:
        raise ValueError(f"{name} must have at least one letter, got {word!r}")
    if bad := [character for character in word if character not in captions.CHARACTERS]:
        raise ValueError(f"{name} must have letters A-Z, a-z and digits only, got {bad[0]!r} in {word!r}")
    if len(word) > LONGEST:
        raise ValueError(f"{name} must have at most {LONGEST} letters, got {len(word)}")
    return word


def places(word: str, turned: str, view: str) -> list[tuple[str, str]]:
    """Returns what each place of the upright word reads as, upright and turned.

    Where one word is shorter, two letters of the other may stand in one place, as "rn" for m: see `FOR_TWO`.

    Raises:
        ValueError: the words cannot be brought to one length.

    Example:
        >>> places("dog", "bag", "rotate_180")
        [('d', 'g'), ('o', 'a'), ('g', 'b')]
        >>> places("corn", "abc", "flip")
        [('c', 'a'), ('o', 'b'), ('m', 'c')]
    """
    if view not in TURNS:
        raise ValueError(f"--view must be {', '.join(TURNS)}, got {view!r}")
    first, second = shorten(word, len(turned)), shorten(turned, len(word))
    if len(first) != len(second):
        pairs = ", ".join(f"{two} as {one}" for two, one in FOR_TWO.items())
        raise ValueError(
            f"the words must have equally many letters, got {word!r} with {len(word)} and {turned!r} with "
            f"{len(turned)}; two letters may stand in one place only as {pairs}"
        )
    return list(zip(first, second[::-1] if TURNS[view] else second, strict=True))


def shorten(word: str, length: int) -> str:
    """Replaces pairs of letters by one that looks like them until a word has `length` letters, as far as it goes."""
    i = 0
    while len(word) > length and i < len(word) - 1:
        if word[i : i + 2].lower() in FOR_TWO:
            word = word[:i] + FOR_TWO[word[i : i + 2].lower()] + word[i + 2 :]
        i += 1
    return word


def cases(upright: str, turned: str) -> list[Pair]:
    """Returns every choice of upper and lower case for two readings, those with equal case first.

    Example:
        >>> len(cases("a", "b")), cases("7", "L")
        (4, [Pair(upright='7', turned='l'), Pair(upright='7', turned='L')])
    """
    options = [sorted({c.upper(), c.lower()}) for c in (upright, turned)]
    return sorted((Pair(a, b) for a, b in product(*options)), key=lambda pair: pair[0].isupper() != pair[1].isupper())


def combiner(
    model: Model,
    pair: Pair,
    view: str,
    style: captions.Style,
    guidance: float | None = None,
    push: float = PUSH,
) -> combine.Combiner:
    """Returns the mean of two readings, one of them through the view, pushed by the guide unless `push` is 0.

    Args:
        model: the letters model.
        pair: what the glyph reads as.
        view: how it is turned, a key of `TURNS`.
        style: of both readings.
        guidance: guidance scale of each reading; the model's own if None.
        push: as in `draw`.

    Reference:
        Geng et al. 2024 (Visual Anagrams), eq. 4; Bansal et al. 2023 (Universal Guidance), section 3.2. A guide that is
        trained on adversarial examples: Kawar et al. 2023 (Robust Classifier Guidance).
    """
    texts = [captions.caption(character, style, spelled=True) for character in pair]
    upright, turned = model.guided(texts, guidance)
    both = combine.mean([upright, combine.view(views.VIEWS[view](), turned)])
    if push == 0:
        return both
    wanted = jnp.stack([jnp.asarray(judge.accepted(character)) for character in pair])
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

        gradient = jax.grad(likely)(clean)
        size = jnp.sqrt((gradient**2).mean())
        # The clean image is an affine function of the estimate. Its slope can be 0 where there is no noise.
        slope = predicts(jnp.ones(()), jnp.zeros(()), level) - predicts(jnp.zeros(()), jnp.zeros(()), level)
        moved = jnp.where(level.noise > GUIDED, push * gradient / ((size + 1e-3) * slope), 0)
        variance = None if prediction.variance is None else prediction.variance[0]
        return Prediction(estimate + moved.astype(estimate.dtype), variance)

    return join


def draw(
    model: Model,
    pairs: Sequence[Pair],
    key: Array,
    *,
    view: str = "rotate_180",
    style: captions.Style = captions.PLAIN,
    steps: int | None = None,
    guidance: float | None = None,
    push: float = PUSH,
    mesh: Mesh | None = None,
    progress: Callable[[int, int], None] | None = None,
    watch: Watch | None = None,
) -> np.ndarray:
    """Draws one candidate of each pair, in groups of `AT_ONCE`.

    Args:
        model: the letters model.
        pairs: what each candidate reads as; repeat a pair for more candidates of it.
        key: random key.
        view: how the glyphs are turned, a key of `TURNS`.
        style: of both readings.
        steps: steps of the sampler; the model's own if None.
        guidance: as in `combiner`.
        push: how far the guide moves the clean image in a noisy step, in [0, 2], as a root mean square over pixels in
            [-1, 1]; 0 for the plain mean.
        mesh: devices to split the candidates over, as in `sample.generate`.
        progress: called with (steps done, steps in all) every few steps.
        watch: as in `sample.generate`, for the candidates of one group.

    Returns:
        Glyphs [n 32 32 1] in [-1, 1].
    """
    kinds = list(dict.fromkeys(pairs))
    push = checks.number("push", push, 0, 2)
    made = {pair: combiner(model, pair, view, style, guidance, push) for pair in kinds}
    filled = [*pairs, *[pairs[-1]] * (-len(pairs) % AT_ONCE)]
    seen = None if watch is None else partial(_without_fill, watch, len(pairs), len(filled) // AT_ONCE)
    how: sample.How = {"images_at_once": AT_ONCE, "mesh": mesh, "progress": progress, "watch": seen}
    drawn = sample.generate(model, [made[pair] for pair in filled], key, steps=steps, **how)
    return np.asarray(drawn.images[: len(pairs), 0])


def _without_fill(watch: Watch, n: int, groups: int, done: int, total: int, images: np.ndarray) -> None:
    """Calls `watch` with the candidates of a group, of n in all, without those that only fill the last group."""
    group = (done - 1) * groups // total
    watch(done, total, images[: n - group * AT_ONCE])


def read(glyphs: np.ndarray | Array, pairs: Sequence[Pair], view: str, judged: Callable[[Array], Array]) -> np.ndarray:
    """Returns how likely glyphs [n 32 32 1] are read right, upright and turned [n 2]."""
    scores = []
    for images, characters in ((glyphs, [p.upright for p in pairs]), (turn(view, glyphs), [p.turned for p in pairs])):
        chances = np.asarray(judged(jnp.asarray(images)))
        scores.append((chances * np.stack([judge.accepted(c) for c in characters])).sum(-1))
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
    n: int = 16,
    steps: int | None = None,
    guidance: float | None = None,
    push: float = PUSH,
    mesh: Mesh | None = None,
    judged: Callable[[Array], Array] | None = None,
    progress: Callable[[int, int], None] | None = None,
    watch: Watch | None = None,
) -> Ambigram:
    """Draws a word that reads as itself, or as another word, when it is turned.

    Case is free: each letter takes the case that reads best. A word that reads as itself needs only half of its
    letters drawn, since the other half are the same glyphs turned.

    Args:
        model: the letters model, from `jdiff.load("letters")`.
        word: what it reads as upright.
        turned: what it reads as when turned; the same word if None.
        key: random key.
        view: rotate_180 (by half a turn), flip (upside down) or mirror (left to right).
        style: words such as "bold serif": see `captions.read_style`.
        n: candidates of each place, over all choices of case.
        steps: steps of the sampler; the model's own if None.
        guidance: as in `combiner`.
        push: as in `draw`.
        mesh: as in `draw`.
        judged: reads glyphs, as `judge.load_judge` returns; the shipped judge if None.
        progress: called with (steps done, steps in all) every few steps.
        watch: as in `draw`.

    Raises:
        ValueError: a word cannot be drawn, the words do not fit, or the style has an unknown word.
    """
    word, turned = check_word(word), check_word(word if turned is None else turned, "WORD2")
    wanted, told = places(word, turned, view), captions.read_style(style)
    n, key = checks.whole("n", n, 1, 1024), as_key(key)
    judged = jax.jit(judge.load_judge()) if judged is None else judged
    # a pair and the same pair turned are one glyph
    kinds = list(dict.fromkeys(tuple(sorted(map(str.lower, pair))) for pair in wanted))
    options = [cases(*kind) for kind in kinds]
    pairs = [[choice[i % len(choice)] for i in range(n)] for choice in options]
    flat = [pair for some in pairs for pair in some]
    how = {"guidance": guidance, "push": push, "mesh": mesh, "progress": progress, "watch": watch}
    glyphs = draw(model, flat, key, view=view, style=told, steps=steps, **how)
    scores = read(glyphs, flat, view, judged)
    best = choose(glyphs.reshape(len(kinds), n, *glyphs.shape[1:]), scores.reshape(len(kinds), n, 2))
    chosen: list[tuple[Pair, np.ndarray, np.ndarray]] = []
    itself = TURNS[view] and word.lower() == turned.lower()
    for i, (upright, other) in enumerate(wanted):
        if itself and i >= len(wanted) - i:  # the second half is the first half turned
            pair, glyph, score = chosen[len(wanted) - 1 - i]
            chosen.append((Pair(*pair[::-1]), np.asarray(turn(view, glyph[None])[0]), score[::-1]))
            continue
        kind = kinds.index(tuple(sorted((upright.lower(), other.lower()))))
        at = kind * n + best[kind]
        pair, glyph, score = flat[at], glyphs[at], scores[at]
        if pair.upright.lower() != upright.lower():
            pair, glyph, score = Pair(*pair[::-1]), np.asarray(turn(view, glyph[None])[0]), score[::-1]
        chosen.append((pair, glyph, score))
    pairs_found, glyphs_found, scores_found = zip(*chosen, strict=True)
    return Ambigram(word, turned, view, list(pairs_found), np.stack(glyphs_found), np.stack(scores_found))


def choose(glyphs: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Returns which candidate stands in each place [kinds]: well read both ways, and of one weight across the word.

    Args:
        glyphs: candidates [kinds n 32 32 1].
        scores: how they are read [kinds n 2].
    """
    least = scores.min(axis=-1)
    width = np.log(np.stack([stroke(some) for some in glyphs]))
    common = np.median(np.take_along_axis(width, least.argmax(1)[:, None], axis=1))
    return (least - EVEN * np.abs(width - common)).argmax(axis=1)
