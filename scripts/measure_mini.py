"""Measures the mini model: how often its pictures show the digit, the colour and the background they were asked for.

    python scripts/measure_mini.py

One picture by each of `--seeds` seeds for `--prompts` captions, drawn once from the grammar; the digit judge looks.
Writes JSON; a table by digit and by colour is printed too.
"""

import json
import math
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro
from tqdm import tqdm

import jdiff
from jdiff.mnist.captions import BACKGROUNDS, COLOURS, DIGITS, Caption, captions
from jdiff.mnist.judge import Verdict, load_judge
from jdiff.sample import find_sampler, generate

CAPTION_SEED = 0  # of numpy's default_rng, which draws the captions without replacement
WHAT = ("digit", "colour", "background", "all")


def choose(n: int) -> list[Caption]:
    """n captions of the grammar, always the same."""
    rows = captions()
    return [rows[i] for i in np.random.default_rng(CAPTION_SEED).choice(len(rows), n, replace=False)]


def wilson(right: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """95 % interval, in per cent, of a frequency seen `right` times in n (Wilson 1927)."""
    if n == 0:
        return 0.0, 100.0
    p, centre = right / n, (right + z * z / 2) / (n + z * z)
    half = z / (n + z * z) * math.sqrt(n * p * (1 - p) + z * z / 4)
    return 100 * max(0.0, centre - half), 100 * min(1.0, centre + half)


def score(right: np.ndarray) -> dict[str, Any]:
    """Per cent of `right` [n] bool, with its interval."""
    n, k = len(right), int(right.sum())
    low, high = wilson(k, n)
    return {"percent": round(100 * k / max(n, 1), 2), "low": round(low, 2), "high": round(high, 2), "n": n}


def table(rows: Sequence[Caption], verdict: Verdict) -> dict[str, Any]:
    """What `verdict` [n] finds right of what the captions `rows` [n] ask for; in all, by digit, colour, background."""
    asked = np.array([(row.digit, row.colour, row.background) for row in rows])
    seen = np.stack([np.asarray(a) for a in (verdict.digit, verdict.colour, verdict.background)], axis=-1)
    right = np.concatenate([asked == seen, (asked == seen).all(-1, keepdims=True)], axis=-1)

    def by(column: int, names: Iterable[str]) -> dict[str, Any]:
        return {
            name: {what: score(right[asked[:, column] == i, j]) for j, what in enumerate(WHAT)}
            for i, name in enumerate(names)
        }

    return {
        "right": {what: score(right[:, j]) for j, what in enumerate(WHAT)},
        "no_named_colour": score(seen[:, 1] < 0),
        "neither_background": score(seen[:, 2] < 0),
        "judge_probability_mean": round(float(np.mean(np.asarray(verdict.probability))), 4),
        "colour_distance_median": round(float(np.median(np.asarray(verdict.colour_distance))), 4),
        "by_digit": by(0, map(str, range(len(DIGITS)))),
        "by_colour": by(1, COLOURS),
        "by_background": by(2, ("black", *(name.removeprefix(" on ") for name in list(BACKGROUNDS)[1:]))),
        "digits_seen": np.stack(
            [np.bincount(seen[asked[:, 0] == i, 0], minlength=len(DIGITS)) for i in range(len(DIGITS))]
        ).tolist(),  # [asked seen]
    }


def show(found: dict[str, Any]) -> str:
    """The tables of `found`, as text."""
    lines = []
    for what, s in found["right"].items():
        lines.append(f"{what:>10} right {s['percent']:6.2f} %  ({s['low']:.2f} to {s['high']:.2f}, n = {s['n']})")
    for name in ("by_digit", "by_colour", "by_background"):
        lines += ["", f"{name.replace('_', ' '):>14}{'n':>6}" + "".join(f"{what:>12}" for what in WHAT)]
        for key, s in found[name].items():
            lines.append(f"{key:>14}{s['all']['n']:>6}" + "".join(f"{s[what]['percent']:>12.1f}" for what in WHAT))
    return "\n".join(lines)


def main(
    out: Path = Path("weights/mini/quality.json"),
    model: str = "mini",
    prompts: int = 100,
    seeds: int = 7,
    batch: int = 50,
    steps: int | None = None,
    guidance: float | None = None,
    sampler: str | None = None,
) -> None:
    """Measures `seeds` pictures for each of `prompts` captions.

    Args:
        out: file for the figures.
        model: name or folder of the model.
        prompts: how many captions of the grammar's 600.
        seeds: how many pictures of each.
        batch: prompts a call.
        steps: of the sampler; if not given, the model's own, or those of the sampler that is given.
        guidance: scale of classifier-free guidance; the model's own if not given.
        sampler: a name in `jdiff.sample.SAMPLERS`; the model's own if not given.
    """
    loaded = jdiff.load(model)
    if steps is None:
        steps = loaded.defaults.steps if sampler is None else find_sampler(sampler).steps
    sampler = loaded.defaults.sampler if sampler is None else sampler
    guidance = loaded.defaults.guidance if guidance is None else guidance
    rows = choose(prompts)
    judge = jax.jit(lambda judge, images: judge(images))
    judged, verdicts, asked = load_judge(), [], []
    began = time.monotonic()
    with tqdm(total=seeds * prompts, unit="picture") as bar:
        for seed in range(seeds):
            for i in range(0, prompts, batch):
                part = rows[i : i + batch]
                key = jax.random.fold_in(jax.random.key(seed), i)  # so that no two captions share their noise
                texts = [row.text for row in part]
                images = generate(loaded, texts, key, n=1, steps=steps, guidance=guidance, sampler=sampler).images
                verdicts.append(jax.device_get(judge(judged, images[:, 0])))
                asked += part
                bar.update(len(part))
    seconds = time.monotonic() - began

    found = {
        "model": model,
        "hash": getattr(loaded, "hash", None),
        "sampler": sampler,
        "steps": steps,
        "guidance": guidance,
        "captions": {"n": prompts, "numpy_seed": CAPTION_SEED, "of": len(captions())},
        "seeds": seeds,
        "images": len(asked),
        "seconds": round(seconds, 1),
        "platform": jax.default_backend(),
    } | table(asked, jax.tree.map(lambda *a: np.concatenate(a), *verdicts))
    print(show(found))
    out.parent.mkdir(parents=True, exist_ok=True)
    beside = out.with_name(out.name + ".part")
    beside.write_text(json.dumps(found, indent=1) + "\n")
    beside.replace(out)
    print(f"\n{seconds:.0f} s; written to {out}")


if __name__ == "__main__":
    tyro.cli(main)
