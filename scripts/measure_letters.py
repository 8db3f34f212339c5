"""Measures the letters model: its samples, its style words, and ambigrams of all pairs and of 200 English words.

    python scripts/measure_letters.py samples styles tasks --model weights/letters
    python scripts/measure_letters.py pairs words --view rotate_180

Results are added to quality.json in the model's folder. Pictures and tables are written to --out, except those of
ambigrams by other settings than the usual ones. Pairs under half a turn also write cases.json, by which words choose
their case. The judge and the second judge read samples. Three judges, the ranker, rank ambigrams and choices of case,
and the second judge measures them.
"""

import csv
import json
import time
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import tyro
from tqdm import tqdm

import jdiff
from jdiff import combine, images, mesh, sample, views
from jdiff.letters import ambigrams, captions, data, judge, page, spelling
from jdiff.parts import beside, write_text
from jdiff.types import Array, Level, Prediction, Rule

matplotlib.use("Agg")

LETTERS = "abcdefghijklmnopqrstuvwxyz"
EACH = 20  # samples of each character, and of each style
OF_PAIRS = 16  # candidates of each pair in the tables of pairs
SHOWN = 24  # words in the gallery
COLUMNS = 8  # pictures in a row of the sheet of tasks
SIGMA = 4.0  # of hybrids, in pixels at a side of 64
Together = Literal["mean", "alternate", "lagging"]
SURE = 0.5  # probability from which a letter is surely right


def judges(folder: Path) -> dict[str, Any]:
    """Returns the compiled judges that read samples, by name. They return arrays."""
    kinds = [kind for kind in ("judge", "second-judge") if (folder / kind).is_dir()]
    return {kind: jax.jit(judge.load_judge(folder / kind, kind)) for kind in kinds}


def right(chances: np.ndarray, characters: str) -> np.ndarray:
    """Returns for which glyphs the most likely class is accepted as the character, [n] bool."""
    accepted = np.stack([judge.accepted(character) for character in characters])
    return np.take_along_axis(accepted, chances.argmax(-1)[:, None], axis=1)[:, 0] > 0


def drawn(model: Any, prompts: list[str], n: int, steps: int | None, seed: int) -> np.ndarray:
    """Draws samples [p n 32 32 1]."""
    key = jax.random.key(seed)
    return np.asarray(sample.generate(model, prompts, key, n=n, steps=steps, images_at_once=40).images)


def measure_samples(model: Any, folder: Path, glyphs: Path | None, out: Path, steps: int | None) -> dict[str, Any]:
    """Measures the share of 20 samples of each character that is read right, and the nearest training glyphs."""
    prompts, looks = [captions.caption(c, spelled=True) for c in captions.CHARACTERS], judges(folder)
    began = time.monotonic()
    made = drawn(model, prompts, EACH, steps, 1)
    seconds = time.monotonic() - began
    flat, characters = made.reshape(-1, *made.shape[2:]), "".join(c * EACH for c in captions.CHARACTERS)
    found: dict[str, Any] = {"samples": len(flat), "seconds": round(seconds, 1)}
    for kind, look in looks.items():
        good = right(np.asarray(look(flat)), characters)
        each = good.reshape(-1, EACH).mean(1)
        found[f"right by the {kind}"] = round(float(good.mean()), 4)
        found[f"worst by the {kind}"] = {captions.CHARACTERS[i]: round(float(each[i]), 2) for i in each.argsort()[:6]}
    images.save(out / "samples.png", images.grid(made[:, :8].reshape(31, 16, *made.shape[2:]), cell=32))
    if glyphs is not None:
        training, _ = data.split(data.read(glyphs))
        known = training.images.astype(np.float32)[..., None] / 127.5 - 1
        rows, far = [], []
        for i in range(len(captions.CHARACTERS)):
            distance = ((made[i][:, None] - known[None, :, i]) ** 2).mean((2, 3, 4)) ** 0.5
            far += distance.min(1).tolist()
            if i % 4 == 0:
                rows.append(np.concatenate([made[i, :3], known[distance[:3].argmin(1), i]]))
        capitals = known[:, captions.CHARACTERS.index("A")]
        among = [
            np.delete(((capitals - one) ** 2).mean((1, 2, 3)), i).min(initial=np.inf) ** 0.5
            for i, one in enumerate(capitals)
        ]
        found["distance to the nearest training glyph"] = {
            "median": round(float(np.median(far)), 3), "least": round(min(far), 3),
            "median between typefaces": round(float(np.median(among)), 3),
        }  # fmt: skip
        labels = ["sample"] * 3 + ["nearest"] * 3
        images.save(out / "nearest.png", images.grid(np.stack(rows), column_labels=labels, cell=64))
    return found


def slant(glyphs: np.ndarray) -> np.ndarray:
    """Returns the angle in degrees by which glyphs [n h w 1] lean to the right, from the middles of their rows."""
    ink = np.clip((glyphs[..., 0] + 1) / 2, 0, 1)
    rows, columns = np.arange(ink.shape[1]), np.arange(ink.shape[2])
    weight = ink.sum(2)
    middle = (ink * columns).sum(2) / np.maximum(weight, 1e-6)
    y = rows - (weight * rows).sum(1, keepdims=True) / weight.sum(1, keepdims=True)
    return np.rad2deg(np.arctan(-(weight * y * middle).sum(1) / (weight * y**2).sum(1)))


def serifs(glyphs: np.ndarray) -> np.ndarray:
    """Returns which capital I [n h w 1] have serifs, which are much wider at both ends than in the middle."""
    found = []
    for ink in glyphs[..., 0] > 0:
        widths = ink.sum(1)[np.flatnonzero(ink.any(1))]
        if len(widths) < 8:
            found.append(False)
            continue
        ends = min(widths[:3].max(), widths[-3:].max())
        found.append(bool(ends > 1.6 * np.median(widths[len(widths) // 4 : -len(widths) // 4])))
    return np.array(found)


def measure_styles(model: Any, steps: int | None) -> dict[str, Any]:
    """Measures the effect of style words on a capital I: the width of its stem in pixels, its slant, its serifs."""
    styles = {word: captions.read_style(word) for word in (*captions.WEIGHTS, "italic", "serif", "sans", "typewriter")}
    made = drawn(model, [captions.caption("I", style, spelled=True) for style in styles.values()], EACH, steps, 2)
    found: dict[str, Any] = {}
    for word, glyphs in zip(styles, made, strict=True):
        widths = (glyphs[:, 12:20, :, 0] > 0).sum(2).mean(1)
        found[word] = {
            "stem in pixels": round(float(np.median(widths)), 2),
            "slant in degrees": round(float(np.median(slant(glyphs))), 1),
            "with serifs": round(float(serifs(glyphs).mean()), 2),
        }  # fmt: skip
    stems = [found[word]["stem in pixels"] for word in captions.WEIGHTS]
    found["weights in order"] = bool((np.diff(stems) > 0).all())
    return found


class Candidates(NamedTuple):
    """The candidates of a pair of letters, and how they are read."""

    pairs: list[spelling.Pair]  # [n], with their case
    glyphs: np.ndarray  # [n 32 32 1]
    chances: dict[str, np.ndarray]  # by judge [n 2]: probability of the right character, upright and turned
    right: np.ndarray  # [n] bool: the second judge's most likely character is right, upright and turned
    seconds: float


# The candidates of each pair of letters.
Pool = dict[tuple[str, str], Candidates]


def lagging(
    model: Any, view: str, readings: tuple[str, str], combiners: Sequence[combine.Combiner]
) -> combine.Combiner:
    """Returns the mean of two readings, weighted by 1 / p, where p is the guide's probability of each reading.

    The guide reads the clean image that the plain mean predicts.
    """
    wanted = jnp.stack([jnp.asarray(judge.accepted(spelling.drawn_as(reading))) for reading in readings])
    return combine.compose(Rule(2, wanted, by_lag(view, model.predicts)), combiners)


@cache
def by_lag(view: str, predicts: Any) -> Any:
    """Returns the `join` of the rule of `lagging`, whose parts are the classes of both readings [2 classes]."""
    look, params = judge.network("guide")[0], judge.load_params(kind="guide")

    def join(rule: Rule, prediction: Prediction, x: Array, level: Level) -> Prediction:
        clean = predicts(prediction.estimate.mean(0), x, level).clip(-1, 1)
        logits = look(params, (jnp.stack([clean, ambigrams.turn(view, clean[None])[0]]) + 1) / 2)
        chances = jax.nn.logsumexp(jax.nn.log_softmax(logits), axis=-1, b=rule.parts)
        estimate = jnp.tensordot(jax.nn.softmax(-chances), prediction.estimate, axes=1)
        variance = None if prediction.variance is None else prediction.variance[0]
        return Prediction(estimate.astype(prediction.estimate.dtype), variance)

    return join


def pool(
    model: Any,
    folder: Path,
    wanted: list[tuple[str, str]],
    view: str,
    n: int,
    steps: int | None,
    style: str,
    guidance: float,
    push: float,
    together: Together,
    draw: int = 0,
    all_cases: bool = False,
) -> Pool:
    """Draws candidates of each pair, in the case that reads best or in all choices of case, and reads them."""
    told, found, devices = captions.read_style(style), {}, mesh.over_devices()
    looks = {"ranker": jax.jit(judge.ranker(folder)), "second-judge": judges(folder)["second-judge"]}
    for i, kind in enumerate(tqdm(wanted, unit="pair")):
        options = spelling.cases(*kind) if all_cases else spelling.best_cases(*kind, view)
        pairs = [options[j % len(options)] for j in range(n)]
        began, key = time.monotonic(), jax.random.key(1000 * (1 + draw) + i)
        how = {"view": view, "style": told, "steps": steps, "guidance": guidance, "push": push, "mesh": devices}
        how["together"] = partial(lagging, model, view, kind) if together == "lagging" else getattr(combine, together)
        glyphs = ambigrams.draw(model, pairs, key, **how)
        chances = {name: ambigrams.read(glyphs, pairs, view, look) for name, look in looks.items()}
        seconds = time.monotonic() - began
        found[kind] = Candidates(
            pairs, glyphs, chances, right_both(looks["second-judge"], glyphs, pairs, view), seconds
        )
    return found


def right_both(look: Any, glyphs: np.ndarray, pairs: list[spelling.Pair], view: str) -> np.ndarray:
    """Returns which glyphs a judge reads right both ways, as in `right`, [n] bool."""
    upright = right(np.asarray(look(glyphs)), "".join(pair.upright for pair in pairs))
    return upright & right(np.asarray(look(ambigrams.turn(view, glyphs))), "".join(pair.turned for pair in pairs))


def kinds_of(words: list[str], view: str) -> list[tuple[str, str]]:
    """Returns the pairs of letters that words need, without duplicates."""
    return list(dict.fromkeys(spelling.kind_of(pair) for word in words for pair in spelling.places(word, word, view)))


def joined(some: Candidates, others: Candidates) -> Candidates:
    """Returns the candidates of both."""
    return Candidates(
        [*some.pairs, *others.pairs], np.concatenate([some.glyphs, others.glyphs]),
        {name: np.concatenate([some.chances[name], others.chances[name]]) for name in some.chances},
        np.concatenate([some.right, others.right]), some.seconds + others.seconds,
    )  # fmt: skip


def worst(found: Pool, kinds: Sequence[tuple[str, str]]) -> tuple[str, str]:
    """Returns the pair of a word whose best candidate is ranked the worst."""
    return min(kinds, key=lambda kind: found[kind].chances["ranker"].min(-1).max())


def with_more(found: Pool, more: Pool, kinds: Sequence[tuple[str, str]]) -> Pool:
    """Returns the candidates of a word's pairs, with more for the worst pair."""
    # The others get their own again, which changes nothing, because all have to be of one number.
    again = {kind: joined(found[kind], found[kind]._replace(seconds=0.0)) for kind in kinds}
    return again | {(least := worst(found, kinds)): joined(found[least], more[least])}


def case_scores(found: Pool) -> dict[str, float]:
    """Returns the mean score of each choice of case by the ranker, for `jdiff.letters.spelling.best_cases`."""
    scores: dict[str, float] = {}
    for (a, b), made in found.items():
        least = made.chances["ranker"].min(-1)
        for kind in dict.fromkeys(made.pairs):
            # Two equal letters in the other order are the same glyph turned.
            same = [pair == kind or (a == b and pair == kind[::-1]) for pair in made.pairs]
            scores["".join(kind)] = round(float(least[same].mean()), 3)
    return scores


def measure_pairs(found: Pool, view: str, out: Path | None) -> dict[str, Any]:
    """Measures, for each pair in its best case, the share of candidates that the second judge reads right both ways.

    If `out` is given, the table is written there, as CSV and as a picture.
    """
    table = np.full((len(LETTERS), len(LETTERS)), np.nan)
    for (a, b), made in found.items():
        each = [
            [good for good, pair in zip(made.right, made.pairs, strict=True) if pair == kind]
            for kind in set(made.pairs)
        ]
        share = max(np.mean(some) for some in each)
        table[LETTERS.index(a), LETTERS.index(b)] = table[LETTERS.index(b), LETTERS.index(a)] = share
    if out is not None:
        write_pairs(table, view, out)
    once = table[np.triu_indices(len(LETTERS))]  # the table has each pair of different letters twice
    once = once[~np.isnan(once)]
    return {"pairs": len(found), "share right both ways": round(float(once.mean()), 3),
            "pairs with a candidate right both ways": round(float((once > 0).mean()), 3)}  # fmt: skip


def write_pairs(table: np.ndarray, view: str, out: Path) -> None:
    """Writes the table of all pairs of letters [letters letters] to a folder, as CSV and as a heat map."""
    import matplotlib.pyplot as plt

    with (out / f"pairs-{view}.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["", *LETTERS])
        writer.writerows([letter, *(f"{v:.2f}" for v in row)] for letter, row in zip(LETTERS, table, strict=True))
    figure, axes = plt.subplots(figsize=(7, 6), layout="constrained")
    heat = axes.imshow(table, vmin=0, vmax=1)
    axes.set_xticks(range(len(LETTERS)), list(LETTERS))
    axes.set_yticks(range(len(LETTERS)), list(LETTERS))
    axes.set_xlabel("letter when turned")
    axes.set_ylabel("letter upright")
    figure.colorbar(heat, label="share of candidates read right both ways, in the best case")
    with beside(out / f"pairs-{view}.png") as picture:
        figure.savefig(picture, format="png", dpi=90)
    plt.close(figure)


def measure_words(
    base: Pool, words: list[str], view: str, out: Path | None, more: Pool | None = None
) -> dict[str, float]:
    """Measures words that read the same both ways: the ranker picks as in `ambigram`, and the second judge reads.

    A letter is right if its most likely character is. It is surely right if the probability of this character is at
    least `SURE`. If `out` is given, the first words are drawn into a picture there. If `more` is given, the worst
    place of each word gets its candidates too.
    """
    letters, whole, shown, seconds = [], [], [], []  # of letters and whole: whether right, and whether surely right
    for word in words:
        places = spelling.places(word, word, view)
        kinds = [spelling.kind_of(pair) for pair in places]
        good, glyphs, pairs, scores = [], [], [], []
        different = list(dict.fromkeys(kinds))
        found = with_more(base, more, different) if more else base
        of_each = [found[kind] for kind in different]
        best = ambigrams.choose(
            np.stack([made.glyphs for made in of_each]), np.stack([made.chances["ranker"] for made in of_each])
        )
        for (upright, _), kind in zip(places, kinds, strict=True):
            made, i = found[kind], int(best[different.index(kind)])
            pair, glyph, score = made.pairs[i], made.glyphs[i], made.chances["second-judge"][i]
            good.append((made.right[i], score.min() >= SURE))
            if pair.upright.lower() != upright:
                pair, score = spelling.Pair(*pair[::-1]), score[::-1]
                glyph = np.asarray(ambigrams.turn(view, glyph[None])[0])
            glyphs.append(glyph)
            pairs.append(pair)
            scores.append(score)
        letters += good
        whole.append(np.all(good, axis=0))
        seconds.append(sum(found[kind].seconds for kind in dict.fromkeys(kinds)))
        if len(shown) < SHOWN:
            shown.append(ambigrams.Ambigram(word, word, view, pairs, np.stack(glyphs), np.stack(scores)))
    if out is not None:
        images.save(out / f"words-{view}.png", gallery(shown))
    (right_letters, sure_letters), (right_words, sure_words) = np.mean(letters, 0), np.mean(whole, 0)
    shares = {"letters right both ways": right_letters, "words right as a whole": right_words,
              "letters surely right both ways": sure_letters, "words surely right as a whole": sure_words}  # fmt: skip
    return shares | {"seconds a word": float(np.mean(seconds))}


def gallery(shown: list[ambigrams.Ambigram]) -> np.ndarray:
    """Returns pages of ambigrams as one picture [h w 3], four in a row."""
    pages = [page.page(made)[::3, ::3] for made in shown]
    h, w = (max(sheet.shape[axis] for sheet in pages) for axis in (0, 1))
    sheets = [np.pad(s, ((0, h - s.shape[0]), (0, w - s.shape[1]), (0, 0)), constant_values=255) for s in pages]
    rows = [np.concatenate(sheets[i : i + 4], axis=1) for i in range(0, len(sheets), 4)]
    return np.concatenate(rows)


def strokes() -> np.ndarray:
    """Returns a capital A as a hand might draw it: three thick lines [32 32 1], the ink at 1 as in samples."""
    y, x = np.mgrid[:32, :32] + 0.5
    ink = np.zeros((32, 32), bool)
    for (x0, y0), (x1, y1) in (((16, 6), (8, 26)), ((15, 6), (25, 25)), ((10, 18), (23, 17))):
        along = np.clip(((x - x0) * (x1 - x0) + (y - y0) * (y1 - y0)) / ((x1 - x0) ** 2 + (y1 - y0) ** 2), 0, 1)
        ink |= np.hypot(x - x0 - along * (x1 - x0), y - y0 - along * (y1 - y0)) < 1.5
    return np.where(ink, 1, -1).astype(np.float32)[..., None]


def measure_tasks(model: Any, folder: Path, out: Path, steps: int | None) -> dict[str, Any]:
    """Measures edits, inpaintings and hybrids of letters by the share that the judge reads, and draws a sheet."""
    look, key, n = judges(folder)["judge"], jax.random.key(3), EACH
    of = lambda pictures, letter: round(float(right(np.asarray(look(pictures)), letter * len(pictures)).mean()), 2)
    drawing, rows, labels, found = strokes(), [], [], {}
    for style in ("a bold serif capital A", "a thin italic capital A"):
        made = np.asarray(sample.edit(model, drawing, [style], key, n=n, strength=0.75, steps=steps).images)[0]
        found[f"a drawing as {style}"] = of(made, "A")
        rows.append([drawing, *made[: COLUMNS - 1]])
        labels.append(f"a drawing, and edits: {style}")
    whole = np.asarray(sample.generate(model, ["a bold capital P"], key, steps=steps).images)[0, 0]
    below = np.zeros((32, 32), np.float32)
    below[16:] = 1
    made = np.asarray(
        sample.inpaint(
            model, whole, below, ["a bold capital R"], key, n=n, steps=steps, resamplings=3, jump_length=3
        ).images
    )[0]
    found["the lower half of a P, inpainted as R"] = of(made, "R")
    rows.append([whole, *made[: COLUMNS - 1]])
    labels.append("a P, and its lower half inpainted: a bold capital R")
    far, near = model.guided(["a heavy capital I", "a light capital O"])
    low, high = views.low_and_high(SIGMA)
    made = np.asarray(sample.generate(model, combine.components({low: far, high: near}), key, n=n, steps=steps).images)[
        0
    ]
    blurred = np.asarray(jax.vmap(low)(made))
    found["hybrids: from afar I"], found["hybrids: from near O"] = of(blurred, "I"), of(made, "O")
    rows += [list(made[:COLUMNS]), list(blurred[:COLUMNS])]
    labels += ["hybrids: I from afar, O from near", "the same, blurred"]
    shown = -np.repeat(np.stack([np.stack(row) for row in rows]), 3, -1).clip(-1, 1)  # ink on white
    images.save(out / "tasks.png", images.grid(shown, labels, cell=64))
    return found


def main(
    parts: tyro.conf.Positional[tuple[Literal["samples", "styles", "tasks", "pairs", "words"], ...]],
    model: Path = Path("weights/letters"),
    glyphs: Path | None = None,
    out: Path = Path("docs/letters"),
    view: Literal["rotate_180", "mirror"] = "rotate_180",
    n: int | None = None,
    steps: int | None = None,
    style: str = "bold",
    guidance: float = ambigrams.GUIDANCE,
    push: float = ambigrams.PUSH,
    together: Together = "mean",
    draws: int = 1,
    all_cases: bool = False,
    more_for_the_worst: bool = False,
    first: int = 200,
) -> None:
    """Measures some parts.

    Args:
        parts: what to measure.
        model: folder of the model and its judges.
        glyphs: folder of the training glyphs, to find the nearest ones; left out if not given.
        out: folder for pictures and tables.
        view: view under which pairs and words are read the second time.
        n: number of candidates of each pair; `OF_PAIRS` for pairs, and as `jdiff ambigram` for words, if not given.
        steps: steps of the sampler; the model's default if not given.
        style: style words of pairs and words.
        guidance: guidance scale of pairs and words, as in `jdiff.letters.ambigrams.draw`.
        push: how far the guide moves glyphs, as in `jdiff.letters.ambigrams.draw`.
        together: how the two readings are combined, as in `jdiff.combine`.
        draws: how often everything is drawn for words. Shares are means over the draws.
        all_cases: draw words in all choices of case, and not in the one that reads best. Pairs always are.
        more_for_the_worst: draw n more candidates for the worst place of each word.
        first: number of words, from the start of the list.
    """
    if not parts:
        raise SystemExit("PARTS must name one or more of samples, styles, tasks, pairs, words, got none")
    mesh.use_cores(ambigrams.AT_ONCE)
    out.mkdir(parents=True, exist_ok=True)
    loaded, found = jdiff.load(model), {}
    if "samples" in parts:
        found["samples"] = measure_samples(loaded, model, glyphs, out, steps)
    if "styles" in parts:
        found["styles"] = measure_styles(loaded, steps)
    if "tasks" in parts:
        found["tasks"] = {"of each": EACH, "steps": steps or loaded.defaults.steps} | measure_tasks(
            loaded, model, out, steps
        )
    if "pairs" in parts or "words" in parts:
        words = (Path(__file__).parent / "letters_words.txt").read_text().split()[:first]
        drawn_by = {"steps": steps or loaded.defaults.steps, "style": style, "guidance": guidance, "push": push,
                    "together": together}  # fmt: skip
        usual = {"style": "bold", "guidance": ambigrams.GUIDANCE, "push": ambigrams.PUSH, "together": "mean"}
        changed = "".join(f", {name} {drawn_by[name]}" for name in usual if drawn_by[name] != usual[name])
        changed += ", all cases" if all_cases else ""
        changed += ", more for the worst" if more_for_the_worst else ""
        draw_pool = partial(pool, loaded, model, view=view, steps=steps, style=style, guidance=guidance, push=push,
                            together=together)  # fmt: skip
        # The number of candidates, and what else differs from the usual settings
        counted = lambda usual: (usual, changed) if n in (None, usual) else (n, f"{changed}, {n} candidates")
        if "pairs" in parts:
            each, other = counted(OF_PAIRS)
            how = {"candidates of a pair": each} | drawn_by
            everything = [(a, b) for i, a in enumerate(LETTERS) for b in LETTERS[i:]]
            candidates = draw_pool(everything, n=each, all_cases=True)
            found[f"pairs {view}{other}"] = how | measure_pairs(candidates, view, None if other else out)
            if view == "rotate_180" and not other:  # in a mirror, words are drawn in all cases
                write_text(model / "cases.json", json.dumps({view: case_scores(candidates)}, indent=0) + "\n")
        if "words" in parts:
            each, other = counted(ambigrams.CANDIDATES[view])
            how = {"candidates of a pair": each} | drawn_by
            rows = []
            for draw in range(draws):
                some = draw_pool(kinds_of(words, view), n=each, draw=draw, all_cases=all_cases)
                more = None
                if more_for_the_worst:
                    of_each = {worst(some, kinds_of([word], view)) for word in words}
                    more = draw_pool(sorted(of_each), n=each, draw=draws + draw, all_cases=all_cases)
                rows.append(measure_words(some, words, view, out if draw == 0 and not other else None, more))
            means = {name: round(float(np.mean([row[name] for row in rows])), 3) for name in rows[0]}
            told = {"words": len(words), "draws": draws} | ({"more for the worst": each} if more_for_the_worst else {})
            found[f"words {view}{other}"] = how | told | means
    print(json.dumps(found, indent=1))
    path = model / "quality.json"
    before = json.loads(path.read_text()) if path.is_file() else {}
    write_text(path, json.dumps(before | found, indent=1) + "\n")


if __name__ == "__main__":
    tyro.cli(main)
