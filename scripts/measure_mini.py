"""Measures the mini model: how often its pictures show the digit, the colour and the background of their captions.

    python scripts/measure_mini.py

The captions are drawn once from the grammar, and are always the same. For each seed, one picture of each caption is
drawn and read by the digit judge. The results are written as JSON, and printed by digit, colour and background.
"""

import json
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
from jdiff.parts import write_text
from jdiff.results import share
from jdiff.sample import find_sampler, generate

CAPTION_SEED = 0  # of NumPy's generator, which draws the captions without replacement
WHAT = ("digit", "colour", "background", "all")


def choose(n: int) -> list[Caption]:
    """Returns n captions of the grammar, which are always the same."""
    rows = captions()
    return [rows[i] for i in np.random.default_rng(CAPTION_SEED).choice(len(rows), n, replace=False)]


def table(rows: Sequence[Caption], verdict: Verdict) -> dict[str, Any]:
    """Compares what the judge reads with what the captions ask for.

    Args:
        rows: the captions [n].
        verdict: the judge's verdict on their pictures [n].

    Returns:
        Shares of right pictures, as JSON: in all, by digit, by colour and by background.
    """
    asked = np.array([(row.digit, row.colour, row.background) for row in rows])
    seen = np.stack([np.asarray(a) for a in (verdict.digit, verdict.colour, verdict.background)], axis=-1)
    right = np.concatenate([asked == seen, (asked == seen).all(-1, keepdims=True)], axis=-1)

    def by(column: int, names: Iterable[str]) -> dict[str, Any]:
        return {
            name: {what: share(right[asked[:, column] == i, j]) for j, what in enumerate(WHAT)}
            for i, name in enumerate(names)
        }

    return {
        "right": {what: share(right[:, j]) for j, what in enumerate(WHAT)},
        "no_named_colour": share(seen[:, 1] < 0),
        "neither_background": share(seen[:, 2] < 0),
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
    """Returns the result of `table` as text."""
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
    """Draws and reads one picture of each caption for each seed.

    Args:
        out: file for the results.
        model: name or folder of the model.
        prompts: number of captions, of the grammar's 600.
        seeds: number of pictures of each caption.
        batch: pictures that are drawn at once.
        steps: steps of the sampler; the default of the sampler, or of the model, if not given.
        guidance: guidance scale; the model's default if not given.
        sampler: a name in `jdiff.sample.SAMPLERS`; the model's default if not given.
    """
    loaded = jdiff.load(model)
    if steps is None:
        steps = loaded.defaults.steps if sampler is None else find_sampler(sampler).steps
    sampler = loaded.defaults.sampler if sampler is None else sampler
    guidance = loaded.defaults.guidance if guidance is None else guidance
    rows, judge, verdicts = choose(prompts), load_judge(), []
    look = jax.jit(lambda judge, images: judge(images))
    texts = [row.text for row in rows]
    began = time.monotonic()
    for seed in tqdm(range(seeds), unit="seed"):
        made = generate(
            loaded, texts, jax.random.key(seed), steps=steps, guidance=guidance, sampler=sampler, images_at_once=batch
        )
        verdicts.append(jax.device_get(look(judge, made.images[:, 0])))
    seconds = time.monotonic() - began

    found = {
        "model": model,
        "hash": loaded.hash,
        "sampler": sampler,
        "steps": steps,
        "guidance": guidance,
        "captions": {"n": prompts, "numpy_seed": CAPTION_SEED, "of": len(captions())},
        "seeds": seeds,
        "images": seeds * prompts,
        "seconds": round(seconds, 1),
        "platform": jax.default_backend(),
    } | table(rows * seeds, jax.tree.map(lambda *a: np.concatenate(a), *verdicts))
    print(show(found))
    out.parent.mkdir(parents=True, exist_ok=True)
    write_text(out, json.dumps(found, indent=1) + "\n")
    print(f"\n{seconds:.0f} s; written to {out}")


if __name__ == "__main__":
    tyro.cli(main)
