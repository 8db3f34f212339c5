"""Measures the tasks with the mini model and the digit judge, and writes docs/results.md.

    python scripts/measure_tasks.py
    python scripts/measure_tasks.py Hybrids    # only this section; the others on the page do not change

Every task is measured with seeds 0 to `--seeds` - 1. Its contact sheet shows the first of them. None is picked.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro

import jdiff
from jdiff import combine, images, sample, views
from jdiff.mnist.captions import DIGITS
from jdiff.mnist.judge import load_judge
from jdiff.model import Model, shipped
from jdiff.parts import write_text
from jdiff.results import machine as this_machine
from jdiff.results import percent, share, table
from jdiff.types import Array, View

HYBRIDS = ((1, 8, 2.5), (3, 8, 3.5), (9, 4, 2.5))  # far digit, near digit, sigma at 64 pixels
TRIED = "1/8, 1/7, 1/4, 0/6, 3/8, 9/4 and 9/8 at sigma 2.5, 3, 3.5 and 4"  # with jax.random.key(1000)
SHOWN = 10  # pictures of each task on its sheet

Reader = Callable[[Array], np.ndarray]  # images [n h w 3] -> [n 2], the digit and the colour


class Section(NamedTuple):
    """One section of the page."""

    title: str
    text: str
    head: tuple[str, ...]
    rows: list[tuple[str, ...]]
    picture: str  # its path in docs/
    caption: str


def shares(*right: np.ndarray) -> tuple[str, ...]:
    """Returns the share of True in each array [n], with its interval, as text."""
    return tuple(percent(share(np.asarray(a)), 0) for a in right)


def reader() -> Reader:
    """Returns a function that reads digit and colour with the judge."""
    judge, read = load_judge(), jax.jit(lambda judge, images: judge(images))

    def digit_and_colour(pictures: Array) -> np.ndarray:
        verdict = read(judge, pictures)
        return np.stack([verdict.digit, verdict.colour], axis=-1)

    return digit_and_colour


def sheet(name: str, rows: Any, labels: Sequence[str], model: Model) -> str:
    """Writes docs/pictures/`name`.png of rows [r c h w 3], and returns its path in docs/."""
    page = images.grid(np.asarray(rows), labels, cell=64)
    images.save(Path("docs/pictures") / f"{name}.png", page, {"model": model.name, "hash": model.hash})
    return f"pictures/{name}.png"


def anagrams(model: Model, read: Reader, seeds: int) -> Section:
    """Measures both readings of three anagrams, and each prompt alone."""
    rows, pictures, labels = [], [], []
    cases: list[tuple[int, int, str, View]] = [
        (6, 9, "rotate_180", views.rotate_180()),
        (4, 7, "rotate_cw", views.rotate_cw()),
        (2, 5, "flip", views.flip()),
    ]
    for first, second, name, view in cases:
        one, other = model.guided([f"a red {DIGITS[first]}", f"a red {DIGITS[second]}"])
        both = combine.mean([one, combine.view(view, other)])
        made = sample.generate(model, both, jax.random.key(0), n=seeds).images[0]
        turned = jax.vmap(view.apply)(made)
        right = (read(made)[:, 0] == first, read(turned)[:, 0] == second)
        alone = sample.generate(model, [one, other], jax.random.key(0), n=seeds).images
        single = [read(alone[i])[:, 0] == digit for i, digit in enumerate((first, second))]
        rows.append((f"{first} and {second}, {name}", *shares(*right, right[0] & right[1], *single)))
        pictures += [made[:SHOWN], turned[:SHOWN]]
        labels += [f"a red {DIGITS[first]}", f"the same, {name}: a red {DIGITS[second]}"]
    return Section(
        "Anagrams",
        "The judge reads a picture upright and under a view: `combine.mean([upright, combine.view(view, other)])`.",
        ("prompts", "upright", "under the view", "both", "first prompt alone", "second prompt alone"),
        rows,
        sheet("anagrams", np.stack(pictures), labels, model),
        f"Seeds 0 to {SHOWN - 1}, none picked. Every second row shows the pictures above it under the view.",
    )


def inpainting(model: Model, read: Reader, seeds: int) -> Section:
    """Inpaints the right half of digits in three ways."""
    asked = np.arange(seeds) % 10
    prompts = [f"a red {DIGITS[digit]}" for digit in asked]
    originals = sample.generate(model, prompts, jax.random.key(100)).images[:, 0]
    mask = jnp.zeros((32, 32)).at[:, 16:].set(1)
    ways: dict[str, dict[str, Any]] = {
        "known half noised to each level (RePaint without jumps)": {},
        "the same with jumps: 5 rows, walked 5 times": {"jump_length": 5, "resamplings": 5},
        "known half kept clean (as in diffusers)": {"noised": False},
    }
    rows, shown = [], [originals[:SHOWN], np.where(mask[..., None] > 0, 0.0, originals[:SHOWN])]
    for name, how in ways.items():
        made = sample.inpaint(model, originals, mask, prompts, jax.random.key(0), **how).images[:, 0]
        off = float(np.abs(np.asarray(made[:, :, :16]) - np.asarray(originals[:, :, :16])).max())
        rows.append((name, *shares(read(made)[:, 0] == asked), f"{off:.1e}"))
        shown.append(made[:SHOWN])
    rows.append(("the originals", *shares(read(originals)[:, 0] == asked), "0"))
    return Section(
        "Inpainting",
        "The mini model draws pictures, and `sample.inpaint` inpaints their right half with the same caption.",
        ("method", "digit right", "largest difference in the known half (1/255 is 7.8e-3)"),
        rows,
        sheet("inpainting", np.stack(shown), ["originals", "known half", *ways], model),
        f"Seeds 0 to {SHOWN - 1}, none picked.",
    )


def colour_hybrids(model: Model, read: Reader, seeds: int) -> Section:
    """Takes the shape from one prompt and the colour from another."""
    rng = np.random.default_rng(0)
    names, places = ("red", "blue"), {"red": 0, "blue": 2}  # as bright as green, so that the grey parts agree
    combiners, shapes, tints = [], [], []
    for _ in range(seeds):
        shape, colour = int(rng.integers(10)), names[rng.integers(2)]
        grey, tint = model.guided([f"a green {DIGITS[shape]}", f"a {colour} {DIGITS[shape]}"])
        combiners.append(combine.components([(views.grayscale(), grey), (views.color(), tint)]))
        shapes.append(shape)
        tints.append(places[colour])
    made = sample.generate(model, combiners, jax.random.key(0)).images[:, 0]
    found = read(made)
    rows = [("grey of \"a green N\", colour of \"a red N\" or \"a blue N\"",
             *shares(found[:, 0] == shapes, found[:, 1] == tints))]  # fmt: skip
    return Section(
        "Colour hybrids",
        "`combine.components` takes the mean of the channels from one prompt and the rest from another.",
        ("components", "digit right", "colour right"),
        rows,
        sheet("colour-hybrids", np.asarray(made[:SHOWN])[None], ["grey and colour"], model),
        f"Seeds 0 to {SHOWN - 1}, none picked. A picture is faint where the strokes of its two prompts do not meet.",
    )


def hybrids(model: Model, read: Reader, seeds: int) -> Section:
    """Measures hybrids by the judge of hybrids, which was trained on low and on high frequencies."""
    del read
    see = jax.jit(lambda judge, images: judge(images).digit)
    judge = load_judge(shipped("judge-of-hybrids"))
    rows, shown, labels = [], [], []
    for far, near, sigma in HYBRIDS:
        low, high = views.low_and_high(sigma)
        one, other = model.guided([f"a white {DIGITS[digit]}" for digit in (far, near)])
        hybrid = combine.components({low: one, high: other})
        made = sample.generate(model, hybrid, jax.random.key(0), n=seeds).images[0]
        alone = sample.generate(model, [one, other], jax.random.key(0), n=seeds).images
        seen = lambda part, pictures, digit: np.asarray(see(judge, jax.vmap(part)(pictures))) == digit
        right = seen(low, made, far), seen(high, made, near)
        single = seen(low, alone[0], far), seen(high, alone[1], near)
        name = f"{far} from afar, {near} from near, sigma {sigma:g}"
        rows.append((name, *shares(*right, right[0] & right[1], *single)))
        both = np.full_like(made[:SHOWN], np.nan)
        found = np.asarray(made)[right[0] & right[1]][:SHOWN]
        both[: len(found)] = found
        shown += [part for pictures in (made[:SHOWN], both) for part in (pictures, jax.vmap(low)(pictures))]
        labels += [f"{far} and {near}", "from afar", "read as both", "from afar"]
    return Section(
        "Hybrids",
        "`combine.components` takes low frequencies (seen from afar) from one white digit and high frequencies (seen "
        "from near) from another. `weights/judge-of-hybrids` reads both parts. Sigma is the standard deviation of the "
        "blur at 64 pixels. With a small sigma, the first prompt decides the whole picture; with a large one, the "
        "second. The best sigma depends on the pair of digits. These three hybrids were often read as both digits, "
        f"among {TRIED}. They were chosen on eight pictures each, with another key.",
        ("hybrid", "from afar", "from near", "both", "first prompt alone, from afar", "second prompt alone, from near"),
        rows,
        sheet("hybrids", np.stack(shown), labels, model),
        f"For each hybrid: seeds 0 to {SHOWN - 1}, none picked. Below them: up to {SHOWN} of all {seeds} pictures "
        "that are read as both.",
    )


def edits(model: Model, read: Reader, seeds: int) -> Section:
    """Edits digits from several rows of the table, and measures the distance of the results to the originals."""
    prompts = [f"a red {DIGITS[i % 10]}" for i in range(seeds)]
    originals = np.asarray(sample.generate(model, prompts, jax.random.key(100)).images[:, 0])
    wanted = [f"a blue {DIGITS[(i + 5) % 10]}" for i in range(seeds)]
    rows, shown, starts = [], [originals[:SHOWN]], (1, 3, 5, 7, 10, 20)
    for i_start in starts:
        made = sample.edit(model, originals, wanted, jax.random.key(0), i_start=i_start, steps=33, sampler="deepfloyd")
        pictures = np.asarray(made.images[:, 0])
        off = np.sqrt(((pictures - originals) ** 2).mean(axis=(1, 2, 3)))
        digit = read(jnp.asarray(pictures))[:, 0]
        distance = f"{off.mean():.3f} ± {1.96 * off.std(ddof=1) / seeds**0.5:.3f}"
        rows.append((str(i_start), distance,
                     *shares(digit == np.arange(seeds) % 10, digit == (np.arange(seeds) + 5) % 10)))  # fmt: skip
        shown.append(pictures[:SHOWN])
    return Section(
        "Edits",
        "`sample.edit` (SDEdit) turns a red digit d into a blue digit d + 5 (modulo 10), from row `i_start` of 33.",
        ("i_start", "root mean square distance to the original, in [-1, 1]", "still the old digit", "the new digit"),
        rows,
        sheet("edits", np.stack(shown), ["originals", *(f"i_start {i}" for i in starts)], model),
        f"Seeds 0 to {SHOWN - 1}, none picked.",
    )


def markdown(section: Section) -> str:
    """Returns a section as Markdown."""
    picture = f"![{section.title}]({section.picture})\n\n*{section.caption}*"
    return "\n\n".join([f"## {section.title}", section.text, table(section.head, section.rows), picture]) + "\n"


def sections(page: str) -> dict[str, str]:
    """Returns the title and the Markdown of each section of a page.

    >>> sections("# Page\\n\\n## A\\none\\n## B\\ntwo\\n")["B"]
    '## B\\ntwo\\n'
    """
    return {part.splitlines()[0]: f"## {part}" for part in f"\n{page}".split("\n## ")[1:]}


SECTIONS: dict[str, Callable[[Model, Reader, int], Section]] = {
    "Anagrams": anagrams,
    "Inpainting": inpainting,
    "Colour hybrids": colour_hybrids,
    "Hybrids": hybrids,
    "Edits": edits,
}
TOP = """# How well the tasks work with the mini model

Every task is measured with {seeds} seeds, none picked. Unless a section says otherwise, it uses the model's default
sampler ({sampler}, {steps} steps, guidance scale {guidance:g}). A classifier, the digit judge
(`weights/judge`), reads the pictures. The tables show shares, with 95 % intervals in brackets. Measured by
`python scripts/measure_tasks.py` on {machine}.

"""


def main(which: tyro.conf.Positional[tuple[str, ...]] = tuple(SECTIONS), seeds: int = 32, machine: str = "") -> None:
    """Writes docs/results.md and its pictures.

    Args:
        which: titles of the sections to measure. The others on the page do not change.
        seeds: number of pictures for each task.
        machine: description of the machine for the page; detected if not given.
    """
    if unknown := [name for name in which if name not in SECTIONS]:
        raise SystemExit(f"WHICH must be one or more of {', '.join(SECTIONS)}, got {unknown[0]!r}")
    model, read, page = jdiff.load("mini"), reader(), Path("docs/results.md")
    found = sections(page.read_text()) if page.exists() else {}
    for name in which:
        found[name] = markdown(SECTIONS[name](model, read, seeds))
        print(found[name], flush=True)
    how = model.defaults
    top = TOP.format(
        seeds=seeds, sampler=how.sampler, steps=how.steps, guidance=how.guidance, machine=machine or this_machine()
    )
    write_text(page, top + "\n".join(found[name].strip() + "\n" for name in SECTIONS if name in found))


if __name__ == "__main__":
    tyro.cli(main)
