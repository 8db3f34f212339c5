"""Measures the tasks on the mini model, as the digit judge reads their pictures, and writes docs/results.md.

    python scripts/measure_tasks.py
    python scripts/measure_tasks.py Hybrids    # this section anew, the others as they stand on the page

No seed is picked: seeds 0 to `--seeds` - 1 of every task, the first of them on its contact sheet.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from measure_mini import score

import jdiff
from jdiff import combine, images, sample, views
from jdiff.mnist.judge import load_judge
from jdiff.model import Model, shipped
from jdiff.types import Array, View

HYBRIDS = ((1, 8, 2.5), (3, 8, 3.5), (9, 4, 2.5))  # far, near, sigma at 64 pixels
TRIED = "1/8, 1/7, 1/4, 0/6, 3/8, 9/4 and 9/8 at sigma 2.5, 3, 3.5 and 4"  # jax.random.key(1000)
SHOWN = 10  # pictures of each task on its sheet
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


class Table(NamedTuple):
    """One section of the page."""

    title: str
    text: str
    head: tuple[str, ...]
    rows: list[tuple[str, ...]]
    picture: str = ""
    caption: str = ""


def percent(right: np.ndarray) -> str:
    found = score(np.asarray(right))
    return f"{found['percent']:.0f} % ({found['low']:.0f} to {found['high']:.0f})"


def guided(model: Model, prompts: Sequence[str]) -> list[combine.Combiner]:
    nothing, *texts = model.embed(["", *prompts])
    scale = jnp.float32(model.defaults.guidance)
    return [combine.cfg(text, scale, nothing) for text in texts]


def reader() -> Callable[[Array], np.ndarray]:
    """images [n h w 3] -> [n 2]: digit and colour, as the judge reads them."""
    judge, read = load_judge(), jax.jit(lambda judge, images: judge(images))

    def digit_and_colour(pictures: Array) -> np.ndarray:
        verdict = read(judge, pictures)
        return np.stack([verdict.digit, verdict.colour], axis=-1)

    return digit_and_colour


def digits(read: Callable, pictures: Array) -> np.ndarray:
    return read(pictures)[:, 0]


def sheet(name: str, rows: Any, labels: Sequence[str], model: Model, columns: Sequence[str] = ()) -> str:
    """Writes docs/pictures/`name`.png of rows [r c h w 3]; its path in docs/."""
    page = images.grid(np.asarray(rows), labels, column_labels=columns, cell=64)
    images.save(Path("docs/pictures") / f"{name}.png", page, {"model": model.name, "hash": model.hash})
    return f"pictures/{name}.png"


def anagrams(model: Model, read: Callable, seeds: int) -> Table:
    """Both readings of three anagrams, beside the prompts alone."""
    rows, pictures, labels = [], [], []
    cases: list[tuple[int, int, str, View]] = [
        (6, 9, "rotate_180", views.rotate_180()),
        (4, 7, "rotate_cw", views.rotate_cw()),
        (2, 5, "flip", views.flip()),
    ]
    for first, second, name, view in cases:
        one, other = guided(model, [f"a red {WORDS[first]}", f"a red {WORDS[second]}"])
        both = combine.mean([one, combine.view(view, other)])
        made = sample.generate(model, both, jax.random.key(0), n=seeds).images[0]
        turned = jax.vmap(view.apply)(made)
        right = (digits(read, made) == first, digits(read, turned) == second)
        alone = sample.generate(model, [one, other], jax.random.key(0), n=seeds).images
        single = [digits(read, alone[i]) == digit for i, digit in enumerate((first, second))]
        rows.append((f"{first} and {second}, {name}", *map(percent, (*right, right[0] & right[1], *single))))
        pictures += [made[:SHOWN], turned[:SHOWN]]
        labels += [f"a red {WORDS[first]}", f"the same, {name}: a red {WORDS[second]}"]
    return Table(
        "Anagrams",
        "`combine.mean([guided, combine.view(view, other)])`: one picture, read upright and under the view.",
        ("prompts", "upright", "under the view", "both", "first prompt alone", "second alone"),
        rows,
        sheet("anagrams", np.stack(pictures), labels, model),
        f"Seeds 0 to {SHOWN - 1}, none picked; each second row shows the pictures above it under the view.",
    )


def inpainting(model: Model, read: Callable, seeds: int) -> Table:
    """The right half of a digit made new, three ways."""
    asked = np.arange(seeds) % 10
    prompts = [f"a red {WORDS[digit]}" for digit in asked]
    key = jax.random.key(100)
    originals = sample.generate(model, prompts, key).images[:, 0]
    mask = jnp.zeros((32, 32)).at[:, 16:].set(1)
    ways: dict[str, dict[str, Any]] = {
        "noised anew (RePaint, no jumps)": {},
        "the same, jumps of 5, 5 times": {"jump_length": 5, "resamplings": 5},
        "clean throughout (diffusers' way)": {"noised": False},
    }
    rows, shown = [], [originals[:SHOWN], np.where(mask[..., None] > 0, 0.0, originals[:SHOWN])]
    for name, how in ways.items():
        made = sample.inpaint(model, originals, mask, prompts, jax.random.key(0), **how).images[:, 0]
        off = float(np.abs(np.asarray(made[:, :, :16]) - np.asarray(originals[:, :, :16])).max())
        rows.append((name, percent(digits(read, made) == asked), f"{off:.1e}"))
        shown.append(made[:SHOWN])
    rows.append(("the originals", percent(digits(read, originals) == asked), "0"))
    return Table(
        "Inpainting",
        "The right half of pictures of the mini model's own, made new with their caption (`sample.inpaint`).",
        ("way", "digit right", "known half, largest difference (1/255 is 7.8e-3)"),
        rows,
        sheet("inpainting", np.stack(shown), ["originals", "what is known", *ways], model),
        f"Seeds 0 to {SHOWN - 1}, none picked.",
    )


def colour_hybrid(model: Model, read: Callable, seeds: int) -> Table:
    """Shape from one prompt, colour from another."""
    rng = np.random.default_rng(0)
    names, places = ("red", "blue"), {"red": 0, "blue": 2}  # as bright as green is: the grey fits both
    made, shapes, tints = [], [], []
    for i in range(seeds):
        shape, colour = int(rng.integers(10)), names[rng.integers(2)]
        grey, tint = guided(model, [f"a green {WORDS[shape]}", f"a {colour} {WORDS[shape]}"])
        hybrid = combine.components([(views.grayscale(), grey), (views.color(), tint)])
        made.append(sample.generate(model, hybrid, jax.random.key(i)).images[0, 0])
        shapes.append(shape)
        tints.append(places[colour])
    found = read(jnp.stack(made))
    rows = [("grey of \"a green N\", colour of a red or a blue one", percent(found[:, 0] == shapes),
             percent(found[:, 1] == tints))]  # fmt: skip
    return Table(
        "Colour hybrids",
        "`combine.components`: the mean of the channels from one prompt, the rest from another.",
        ("components", "digit right", "colour right"),
        rows,
        sheet("colour-hybrids", np.stack(made[:SHOWN])[None], ["grey and colour"], model),
        f"Seeds 0 to {SHOWN - 1}, none picked; faint where the strokes of the two prompts do not meet.",
    )


def hybrids(model: Model, read: Callable, seeds: int) -> Table:
    """Low frequencies from one prompt, high ones from another, read by a judge that was trained on both."""
    del read
    see = jax.jit(lambda judge, images: judge(images).digit)
    judge = load_judge(shipped("judge-of-hybrids"))
    rows, shown, labels = [], [], []
    for far, near, sigma in HYBRIDS:
        low, high = views.low_and_high(sigma)
        prompts = [f"a white {WORDS[digit]}" for digit in (far, near)]
        one, other = guided(model, prompts)
        made = sample.generate(model, combine.components({low: one, high: other}), jax.random.key(0), n=seeds).images[0]
        alone = sample.generate(model, prompts, jax.random.key(0), n=seeds).images
        seen = lambda part, pictures, digit: np.asarray(see(judge, jax.vmap(part)(pictures))) == digit
        right = seen(low, made, far), seen(high, made, near)
        single = seen(low, alone[0], far), seen(high, alone[1], near)
        name = f"{far} from afar, {near} from near, sigma {sigma:g}"
        rows.append((name, *map(percent, (*right, right[0] & right[1], *single))))
        both = np.full_like(made[:SHOWN], np.nan)
        found = np.asarray(made)[right[0] & right[1]][:SHOWN]
        both[: len(found)] = found
        shown += [part for pictures in (made[:SHOWN], both) for part in (pictures, jax.vmap(low)(pictures))]
        labels += [f"{far} and {near}", "from afar", "those read as both", "from afar"]
    return Table(
        "Hybrids",
        "`combine.components`: low frequencies of one white digit, high ones of another, both parts read by "
        "`weights/judge-of-hybrids`; sigma at 64 pixels. With a small sigma the prompt from afar draws the whole "
        "picture, with a large one that from near; what leaves room for both differs from pair to pair. These three "
        f"are among those read as both most often of {TRIED}, on eight pictures of another key each.",
        ("hybrid", "from afar", "from near", "both", "the first alone, from afar", "the second alone, from near"),
        rows,
        sheet("hybrids", np.stack(shown), labels, model),
        f"Of each hybrid first seeds 0 to {SHOWN - 1}, none picked, then those of all {seeds} that are read as both.",
    )


def edits(model: Model, read: Callable, seeds: int) -> Table:
    """SDEdit's ladder: how far from the original each start lands."""
    prompts = [f"a red {WORDS[i % 10]}" for i in range(seeds)]
    originals = np.asarray(sample.generate(model, prompts, jax.random.key(100)).images[:, 0])
    wanted = [f"a blue {WORDS[(i + 5) % 10]}" for i in range(seeds)]
    rows, shown, starts = [], [originals[:SHOWN]], (1, 3, 5, 7, 10, 20)
    for i_start in starts:
        made = sample.edit(model, originals, wanted, jax.random.key(0), i_start=i_start, steps=33, sampler="deepfloyd")
        pictures = np.asarray(made.images[:, 0])
        off = np.sqrt(((pictures - originals) ** 2).mean(axis=(1, 2, 3)))
        found = read(jnp.asarray(pictures))
        rows.append((str(i_start), f"{off.mean():.3f} ± {1.96 * off.std(ddof=1) / seeds**0.5:.3f}",
                     percent(found[:, 0] == np.arange(seeds) % 10),
                     percent(found[:, 0] == (np.arange(seeds) + 5) % 10)))  # fmt: skip
        shown.append(pictures[:SHOWN])
    return Table(
        "Edits",
        "SDEdit (`sample.edit`) of red digits towards a blue one five further on, from row `i_start` of 33.",
        ("i_start", "root mean square distance to the original, in [-1, 1]", "still the old digit", "the new digit"),
        rows,
        sheet("edits", np.stack(shown), ["originals", *(f"i_start {i}" for i in starts)], model),
        f"Seeds 0 to {SHOWN - 1}, none picked.",
    )


def markdown(table: Table) -> str:
    lines = [f"## {table.title}", table.text, ""]
    if table.rows:
        lines += [f"| {' | '.join(row)} |" for row in (table.head, ["---"] * len(table.head), *table.rows)] + [""]
    if table.picture:
        lines += [f"![{table.title}]({table.picture})", "", f"*{table.caption}*", ""]
    return "\n".join(lines)


def sections(page: str) -> dict[str, str]:
    """Title and Markdown of each section of a page.

    >>> sections("# Page\\n\\n## A\\none\\n## B\\ntwo\\n")["B"]
    '## B\\ntwo\\n'
    """
    return {part.splitlines()[0]: f"## {part}" for part in f"\n{page}".split("\n## ")[1:]}


SECTIONS: dict[str, Callable[[Model, Callable, int], Table]] = {
    "Anagrams": anagrams,
    "Inpainting": inpainting,
    "Colour hybrids": colour_hybrid,
    "Hybrids": hybrids,
    "Edits": edits,
}


def main(
    which: tyro.conf.Positional[tuple[str, ...]] = tuple(SECTIONS),
    seeds: int = 32,
    machine: str = "a virtual machine with two cores (AMD EPYC)",
) -> None:
    """Writes docs/results.md and its pictures.

    Args:
        which: titles of the sections to measure; the others stay as they are on the page.
        seeds: of each task.
        machine: what the page says it was measured on.
    """
    if unknown := [name for name in which if name not in SECTIONS]:
        raise SystemExit(f"unknown: {', '.join(unknown)}; accepted are {', '.join(SECTIONS)}")
    model, read, page = jdiff.load("mini"), reader(), Path("docs/results.md")
    before = sections(page.read_text()) if page.exists() else {}
    for name in which:
        before[name] = markdown(SECTIONS[name](model, read, seeds))
        print(before[name], flush=True)
    how = model.defaults
    top = f"""# What the tasks make of the mini model

{seeds} seeds of every task, none picked, by the model's default sampler ({how.sampler}, {how.steps} calls, guidance
{how.guidance:g}) unless said, read by the digit judge (`weights/judge`): shares with their 95 % intervals. Measured by
`python scripts/measure_tasks.py` on {machine}.

"""
    page.write_text(top + "\n".join(before[name].strip() + "\n" for name in SECTIONS if name in before))


if __name__ == "__main__":
    tyro.cli(main)
