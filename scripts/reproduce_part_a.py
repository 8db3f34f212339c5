"""Makes every figure of part A of the course's assignment with one model, on one HTML page and one Markdown page.

    python scripts/reproduce_part_a.py --out docs

The mini model needs nothing else. With IF's own weights, give `--model FOLDER --stage2 FOLDER` and pictures of your
own, `--image A.png --image B.png`; the prompts, steps and masks are then the course's. `--prompts FILE` puts others in
their place, by the names of `Edition`: {"neutral": "a photo of a tower", "hybrids": [["far", "near"], ...]}.
"""

import base64
import html
import json
import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from PIL import Image, ImageDraw

import jdiff
from jdiff import combine, images, sample, schedule, step, views
from jdiff.model import Model
from jdiff.types import Array, Combiner

STARTS = (1, 3, 5, 7, 10, 20)  # rows of the course's table where edits come in
NOISY = (250, 500, 750)  # timesteps that part 1.1 to 1.3 shows
SHOWN = 4  # seeds of each illusion, all of them shown


class Edition(NamedTuple):
    """What the figures ask of a model: the course's prompts for IF, fitting ones for the mini model."""

    sampling: tuple[str, ...]  # part 0
    neutral: str  # where a picture has no prompt of its own
    pictures: tuple[tuple[str, str], ...]  # name and prompt of pictures that stand in for photos, drawn by the model
    drawings: tuple[str, ...]  # prompts of the two drawings
    edits: tuple[str, ...]  # part 1.7.3, one a picture
    boxes: tuple[tuple[int, int, int, int], ...]  # part 1.7.2: top, bottom, left, right of 64, made new
    anagrams: tuple[tuple[str, str, str], ...]  # view, upright prompt, the other one
    hybrids: tuple[tuple[str, str], ...]  # far, near
    sigmas: tuple[float, ...]  # of the blur of each hybrid, at 64 pixels
    guidance: float | None  # None is the model's own


ASKED = ("sampling", "neutral", "pictures", "drawings", "edits", "anagrams", "hybrids")  # what --prompts may replace
COURSE_BOX = (2, 20, 24, 42)  # the tip of the tower in the course's picture
IF = Edition(
    ("an oil painting of a snowy mountain village", "a man wearing a hat", "a rocket ship"),
    "a high quality photo",
    (("a picture", "a photo of a dog"), ("another", "a lithograph of waterfalls"),
     ("a third", "an oil painting of an old man")),
    ("a high quality photo", "a high quality photo"),
    ("a rocket ship", "a pencil", "a photo of a hipster barista"),
    (COURSE_BOX, (16, 48, 16, 48), (32, 64, 0, 64)),
    (("flip", "an oil painting of an old man", "an oil painting of people around a campfire"),
     ("rotate_180", "a lithograph of waterfalls", "a photo of a dog"),
     ("negate", "a lithograph of a skull", "a man wearing a hat")),
    (("a lithograph of a skull", "a lithograph of waterfalls"),
     ("an oil painting of an old man", "an oil painting of a snowy mountain village"),
     ("a photo of a dog", "a rocket ship")),
    (2.0, 2.0, 2.0),
    7.0,
)  # fmt: skip
MINI = Edition(
    ("a red three", "the digit 8 in cyan", "a blue five on white"),
    "a red three",
    (("a picture", "a red three"), ("another", "a yellow eight"), ("a third", "a blue five on white")),
    ("a magenta four", "a green zero"),
    ("a blue eight", "a green two", "a red nine on white"),
    ((0, 64, 32, 64), (32, 64, 0, 64), (16, 48, 16, 48)),
    (("rotate_180", "a red six", "a red nine"), ("flip", "a green two", "a green five"),
     ("negate", "a yellow three", "a blue three on white")),
    (("a white one", "a white eight"), ("a yellow three", "a yellow eight"), ("a cyan nine", "a cyan four")),
    (2.5, 3.5, 2.5),  # those of docs/results.md
    None,
)  # fmt: skip
DRAWN = (
    ((190, 20, 190), [[(36, 8), (14, 38), (50, 38)], [(40, 22), (38, 56)]]),  # a four of three strokes
    ((20, 160, 40), [[(30, 10), (18, 22), (16, 40), (28, 54), (42, 50), (48, 32), (42, 14), (30, 10)]]),
)  # colour and strokes, of 64 pixels


class Picture(NamedTuple):
    name: str
    pixels: Array  # [h w 3]
    prompt: str


class Figure(NamedTuple):
    """A figure of the write-up: its part, what it shows, rows of pictures, what made them."""

    part: str
    title: str
    text: str
    rows: Any  # [r c h w 3]
    labels: Sequence[str]
    columns: Sequence[str]
    settings: dict[str, Any]


class Studio(NamedTuple):
    """What the figures are made with."""

    model: Model
    stage2: Model | None
    edition: Edition
    key: Array
    photos: list[Picture]
    sketches: list[Picture]
    masks: list[Array]  # [h w] each, 1 is made new

    def how(self, **more: Any) -> dict[str, Any]:
        """The course's sampler with the edition's guidance."""
        return {"sampler": "course", "steps": 33, "guidance": self.guidance} | more

    @property
    def guidance(self) -> float:
        return self.model.defaults.guidance if self.edition.guidance is None else self.edition.guidance

    def text(self, prompt: str) -> Array:
        return self.model.embed([prompt])[0]

    def guided(self, prompt: str) -> Combiner:
        nothing, text = self.model.embed(["", prompt])
        return combine.cfg(text, jnp.float32(self.guidance), nothing)


def sampling(s: Studio) -> Iterator[Figure]:
    """Part 0: three prompts through both stages, at several numbers of steps."""
    prompts, key = list(s.edition.sampling), s.key
    default = s.model.defaults.sampler
    for steps in (10, 20, 100):
        how = {"steps": steps, "sampler": default, "guidance": s.guidance}
        small = sample.generate(s.model, prompts, key, **how).images
        yield Figure("0", f"Sampling, {steps} steps", "Three prompts at one seed.", small.swapaxes(0, 1), [""],
                     prompts, how)  # fmt: skip
    if s.stage2 is not None:
        large = upscaled(s, small[:, 0], prompts)
        text = "The last three, drawn anew by stage 2 (below)."
        before = np.stack([magnified(image, large.shape[1]) for image in np.asarray(small[:, 0])])
        yield Figure(
            "0", "Both stages", text, np.stack([before, large]), ["stage 1", "stage 2"], prompts, {"steps": 30}
        )


def upscaled(s: Studio, pictures: Any, prompts: Sequence[str]) -> np.ndarray:
    """Pictures [p h w 3] by stage 2, reduced before where they are larger than what it enlarges."""
    assert s.stage2 is not None
    default, small = s.stage2.defaults, np.asarray(pictures)
    if small.shape[1] > default.low_res:
        small = np.stack([images.square(image, default.low_res, Image.Resampling.BOX) for image in small])
    side = max(s.stage2.config.sample_size, default.factor * small.shape[1])
    how = {"steps": 30, "sampler": default.sampler, "side": side}
    return np.asarray(sample.upscale(s.stage2, small, prompts, jax.random.fold_in(s.key, 2), **how).images[:, 0])


def magnified(image: np.ndarray, side: int) -> np.ndarray:
    """Image [side side 3] of [h w 3], pixel by pixel."""
    at = np.arange(side) * len(image) // side
    return image[at][:, at]


def denoising(s: Studio) -> Iterator[Figure]:
    """Parts 1.1 to 1.4: noise put on, and taken away three ways."""
    photo = s.photos[0]
    keys, one = sample.image_keys(s.key, 1), photo.pixels[None]
    at = {t: sample.one(schedule.levels(s.model.schedule, [t]), 0) for t in (*NOISY, 690)}
    noisy = {t: sample.forward(keys, one, level) for t, level in at.items()}
    columns = [f"t = {t}" for t in NOISY]
    top = [one[0]] * 3
    rows = lambda *more: np.stack([np.stack([a[0] for a in row]) for row in more])
    yield Figure("1.1", "Forward process", f"{photo.name}, noised.", rows([one, *(noisy[t] for t in NOISY)]), [""],
                 ["original", *columns], {"t": NOISY})  # fmt: skip

    blur = {t: jax.vmap(views.low_pass(sigma=2, kernel=5))(x) for t, x in noisy.items()}
    shown = rows([noisy[t] for t in NOISY], [blur[t] for t in NOISY])
    yield Figure("1.2", "Classical denoising", "Gaussian blur, kernel 5 and sigma 2 at 64 pixels.", shown,
                 ["noisy", "blurred"], columns, {"kernel": 5, "sigma": 2})  # fmt: skip

    alone = combine.conditional(s.text(photo.prompt))
    once = {t: sample.denoise_once(s.model.network, x, at[t], combiner=alone) for t, x in noisy.items()}
    shown = np.concatenate([np.stack(top)[None], rows([noisy[t] for t in NOISY], [once[t] for t in NOISY])])
    yield Figure("1.3", "One-step denoising", f"One network call, prompt {photo.prompt!r}, no guidance.", shown,
                 ["original", "noisy", "one step"], columns, {"prompt": photo.prompt})  # fmt: skip

    levels = schedule.levels(s.model.schedule, schedule.course(), float(s.model.schedule[0]))
    solver, how = step.ddpm(), {"combiner": alone, "keep_every": 1, "i_start": 10}
    made = sample.iterative_denoise(s.model.network, keys, noisy[690], levels, solver=solver, **how)
    assert made.way is not None
    loop = [noisy[690][0], *(made.way[0, i] for i in range(4, 22, 5))]
    yield Figure("1.4", "Iterative denoising", "Every fifth image of the course's loop from i_start = 10, t = 690.",
                 np.stack(loop)[None], [""], [f"t = {t}" for t in range(690, 0, -150)], {"i_start": 10})  # fmt: skip
    shown = rows([one, noisy[690], made.images, once[690], blur[690]])
    columns = ["original", "t = 690", "iterative", "one step", "blurred"]
    yield Figure("1.4", "Three ways beside each other", "All from the same noisy image.", shown, [""], columns,
                 {"i_start": 10})  # fmt: skip


def generation(s: Studio) -> Iterator[Figure]:
    """Parts 1.5 and 1.6: from pure noise, without and with guidance."""
    prompt = s.edition.neutral
    for part, title, guidance in (("1.5", "Sampling", 1.0), ("1.6", "Classifier-free guidance", s.guidance)):
        how = s.how(guidance=guidance)
        made = sample.generate(s.model, [prompt], s.key, n=5, **how).images
        text = f"Five images from pure noise, {prompt!r}, guidance {guidance:g}."
        yield Figure(part, title, text, made, [""], [], how | {"prompt": prompt})


def ladder(s: Studio, pictures: list[Picture], prompts: Sequence[str]) -> np.ndarray:
    """Edits [p 7 h w 3] of pictures from every start, the original last."""
    pixels = jnp.stack([picture.pixels for picture in pictures])
    made = [sample.edit(s.model, pixels, prompts, s.key, i_start=i, **s.how()).images[:, 0] for i in STARTS]
    return np.stack([*made, pixels], axis=1)


def edits(s: Studio) -> Iterator[Figure]:
    """Parts 1.7, 1.7.1 and 1.7.3: SDEdit."""
    columns = [*(f"i_start {i}" for i in STARTS), "original"]
    for part, title, found in (("1.7", "Edits", s.photos), ("1.7.1", "Edits of drawings", s.sketches)):
        prompts = [picture.prompt for picture in found]
        labels = [f"{picture.name}: {picture.prompt}" for picture in found]
        text = "Noised to row i_start of the table and denoised again (SDEdit)."
        yield Figure(part, title, text, ladder(s, found, prompts), labels, columns, s.how(i_start=STARTS))
    prompts = [s.edition.edits[i % len(s.edition.edits)] for i in range(len(s.photos))]
    text = "The same with a prompt that asks for something else."
    yield Figure("1.7.3", "Text-conditional edits", text, ladder(s, s.photos, prompts), prompts, columns,
                 s.how(i_start=STARTS))  # fmt: skip


def inpaintings(s: Studio) -> Iterator[Figure]:
    """Part 1.7.2: what a mask shows white is made new."""
    pixels = jnp.stack([picture.pixels for picture in s.photos])
    masks = jnp.stack([s.masks[i % len(s.masks)] for i in range(len(s.photos))])
    prompts = [picture.prompt for picture in s.photos]
    made = sample.inpaint(s.model, pixels, masks, prompts, s.key, n=SHOWN, **s.how()).images
    white = jnp.broadcast_to(2 * masks[..., None] - 1, pixels.shape)
    shown = np.concatenate([np.stack([pixels, white, pixels * (1 - masks[..., None])], axis=1), made], axis=1)
    columns = ["original", "mask", "kept", *(f"image {i}" for i in range(SHOWN))]
    yield Figure("1.7.2", "Inpainting", "White is made new; what is known is put in, noised, after every step.",
                 shown, prompts, columns, s.how())  # fmt: skip


def anagrams(s: Studio) -> Iterator[Figure]:
    """Part 1.8: one picture, two readings."""
    for name, first, second in s.edition.anagrams:
        view = views.VIEWS[name]()
        both = combine.mean([s.guided(first), combine.view(view, s.guided(second))])
        made = sample.generate(s.model, both, s.key, n=SHOWN, **s.how()).images[0]
        rows = np.stack([made, jax.vmap(view.apply)(made)])
        text = f"The mean of two estimates, one made under `{name}`."
        yield Figure("1.8", f"Anagram, {name}", text, rows, [first, f"{name}: {second}"], [], s.how(view=name))


def hybrids(s: Studio) -> Iterator[Figure]:
    """Part 1.9: one thing from afar, another from near."""
    for (far, near), sigma in zip(s.edition.hybrids, s.edition.sigmas, strict=True):
        low, high = views.low_and_high(sigma)
        hybrid = combine.components({low: s.guided(far), high: s.guided(near)})
        made = sample.generate(s.model, hybrid, s.key, n=SHOWN, **s.how()).images[0]
        rows = np.stack([made, jax.vmap(low)(made), jnp.clip(jax.vmap(high)(made), -1, 1)])
        labels, text = ["as it is", f"from afar: {far}", f"near: {near}"], f"Gaussian of sigma {sigma:g} at 64 pixels."
        yield Figure("1.9", f"Hybrid of {far!r} and {near!r}", text, rows, labels, [], s.how(sigma=sigma))


def enlargements(s: Studio) -> Iterator[Figure]:
    """Upsampling: the pictures by stage 2."""
    if s.stage2 is None:
        return
    before = np.stack([picture.pixels for picture in s.photos])
    made = upscaled(s, before, [picture.prompt for picture in s.photos])
    shown = np.stack([np.stack([magnified(image, made.shape[1]) for image in before]), made])
    text = f"{before.shape[1]} to {made.shape[1]} pixels, 30 steps, the same prompts."
    names = [picture.name for picture in s.photos]
    yield Figure("Upsampling", "Stage 2", text, shown, ["before", "after"], names, {"steps": 30})


PARTS: tuple[Callable[[Studio], Iterator[Figure]], ...] = (
    sampling, denoising, generation, edits, inpaintings, anagrams, hybrids, enlargements,
)  # fmt: skip


def drawn(colour: tuple[int, int, int], strokes: list, side: int, paper: int) -> Array:
    """A drawing [side side 3] in [-1, 1]: thick lines on paper."""
    page = Image.new("RGB", (256, 256), (paper,) * 3)
    draw = ImageDraw.Draw(page)
    for stroke in strokes:
        draw.line([(4 * x, 4 * y) for x, y in stroke], fill=colour, width=22, joint="curve")
    return jnp.asarray(images.square(np.asarray(page, np.float32) / 127.5 - 1, side, Image.Resampling.BOX))


def photographs(model: Model, edition: Edition, files: Sequence[Path], key: Array) -> list[Picture]:
    """The user's pictures, and the model's own in place of those that are missing of three."""
    side = model.config.sample_size
    found = [Picture(path.stem, jnp.asarray(images.square(images.load(path), side)), edition.neutral) for path in files]
    missing = edition.pictures[len(found) :]
    if missing:
        made = sample.generate(model, [prompt for _, prompt in missing], jax.random.fold_in(key, 1)).images[:, 0]
        found += [Picture(name, pixels, prompt) for (name, prompt), pixels in zip(missing, made, strict=True)]
    return found


def sketches(model: Model, edition: Edition, files: Sequence[Path], paper: int) -> list[Picture]:
    """The user's drawings, or two of three strokes."""
    side = model.config.sample_size
    if files:
        return [Picture(p.stem, jnp.asarray(images.square(images.load(p), side)), edition.neutral) for p in files]
    return [
        Picture("a drawing", drawn(*what, side, paper), prompt)
        for what, prompt in zip(DRAWN, edition.drawings, strict=True)
    ]


def boxes(edition: Edition, side: int) -> list[Array]:
    masks = []
    for box in edition.boxes:
        top, bottom, left, right = (n * side // 64 for n in box)
        masks.append(jnp.zeros((side, side)).at[top:bottom, left:right].set(1))
    return masks


def read_mask(path: Path, side: int) -> Array:
    """[side side] in {0, 1} of a picture, white is 1; raises ValueError where it is all of one."""
    mask = (images.square(images.load(path), side).mean(-1) > 0).astype(np.float32)
    if mask.min() == mask.max():
        raise ValueError(f"mask is {path}, all {'white' if mask.max() else 'black'}; accepted is some of both")
    return jnp.asarray(mask)


def read_prompts(path: Path, edition: Edition) -> Edition:
    """`edition` with what a JSON object says of its prompts, as many as there were.

    Raises ValueError where the file is no JSON object, and for names, numbers of prompts and views that are not known.
    """
    try:
        told = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"prompts is {path}, no readable JSON: {error}") from error
    if not isinstance(told, dict):
        raise ValueError(f"prompts is {path}, which holds a {type(told).__name__}, accepted is an object")
    for name, prompts in told.items():
        if name not in ASKED:
            raise ValueError(f"{path} has {name!r}, accepted are {', '.join(ASKED)}")
        before = getattr(edition, name)
        told[name] = as_tuples(prompts)
        shape, strings = jax.tree.structure(told[name]), all(isinstance(a, str) for a in jax.tree.leaves(told[name]))
        if not strings or shape != jax.tree.structure(before):
            raise ValueError(
                f"{path} has {name} {json.dumps(prompts)}, accepted is in the form of {json.dumps(before)}"
            )
    edition = edition._replace(**told)
    if unknown := {view for view, *_ in edition.anagrams} - views.VIEWS.keys():
        raise ValueError(f"{path} has the views {', '.join(sorted(unknown))}, accepted are {', '.join(views.VIEWS)}")
    return edition


def as_tuples(value: Any) -> Any:
    """`value` with tuples in the place of lists, all the way down."""
    return tuple(map(as_tuples, value)) if isinstance(value, list) else value


def write(out: Path, title: str, intro: str, figures: list[tuple[Figure, np.ndarray]], facts: dict) -> None:
    """Writes part_a.md, part_a.html and part_a/*.png under `out`."""
    folder = out / "part_a"
    folder.mkdir(parents=True, exist_ok=True)
    lines, body, part = [f"# {title}", "", intro, ""], [], None
    for i, (figure, page) in enumerate(figures):
        name = f"{i:02}-{''.join(c if c.isalnum() else '-' for c in figure.title.lower()).strip('-')}.png"
        settings = facts | {key: str(value) for key, value in figure.settings.items()}
        images.save(folder / name, page, settings)
        told = ", ".join(f"{key} {value}" for key, value in figure.settings.items())
        if figure.part != part:
            lines += [f"## {figure.part}", ""]
            body.append(f"<h2>{html.escape(figure.part)}</h2>")
            part = figure.part
        lines += [f"**{figure.title}.** {figure.text}", "", f"![{figure.title}](part_a/{name})", "", f"*{told}*", ""]
        file = BytesIO()
        Image.fromarray(page).save(file, "PNG", optimize=True)
        data = base64.b64encode(file.getvalue()).decode()
        body.append(
            f"<p><b>{html.escape(figure.title)}.</b> {html.escape(figure.text)}</p>"
            f'<img alt="{html.escape(figure.title)}" src="data:image/png;base64,{data}">'
            f"<p><i>{html.escape(told)}</i></p>"
        )
    style = "body{max-width:60rem;margin:2rem auto;padding:0 1rem;font:16px/1.5 sans-serif}img{max-width:100%}"
    head = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>'
    top = f"{head}<style>{style}</style><h1>{html.escape(title)}</h1><p>{html.escape(intro)}</p>"
    for name, text in (("part_a.md", "\n".join(lines)), ("part_a.html", top + "\n".join(body) + "</html>\n")):
        with images.beside(out / name) as file:
            file.write(text.encode())


def main(
    model: str = "mini",
    stage2: str | None = "mini-upscaler",
    image: tyro.conf.UseAppendAction[tuple[Path, ...]] = (),
    drawing: tyro.conf.UseAppendAction[tuple[Path, ...]] = (),
    mask: Path | None = None,
    prompts: Path | None = None,
    seed: int = 180,
    out: Path = Path("part-a"),
    machine: str = f"{platform.machine()}, {os.cpu_count()} cores, {jax.default_backend()}",
) -> None:
    """Writes `out`/part_a.html (one file, pictures within), `out`/part_a.md and its pictures.

    Args:
        model: name or folder of stage 1.
        stage2: name or folder of stage 2; None leaves its figures out.
        image: photos, the first of them the test image; the model draws those that are missing of three.
        drawing: drawings of your own for part 1.7.1.
        mask: for part 1.7.2, white is made new.
        prompts: a JSON object of prompts in the place of the model's, by the names of Edition.
        seed: the one seed of every figure.
        out: folder to write to.
        machine: what the page says it was made on.
    """
    began = time.monotonic()
    loaded, second = jdiff.load(model), jdiff.load(stage2) if stage2 else None
    mini = loaded.config.sample_size < 64
    edition, key, side = MINI if mini else IF, jax.random.key(seed), loaded.config.sample_size
    edition = read_prompts(prompts, edition) if prompts else edition
    studio = Studio(
        loaded,
        second,
        edition,
        key,
        photographs(loaded, edition, image, key),
        sketches(loaded, edition, drawing, 0 if mini else 255),
        [read_mask(mask, side)] if mask else boxes(edition, side),
    )
    figures = []
    for part in PARTS:
        for figure in part(studio):
            page = images.grid(figure.rows, figure.labels if any(figure.labels) else (), column_labels=figure.columns,
                               cell=80)  # fmt: skip
            figures.append((figure, page))
            print(f"{time.monotonic() - began:5.0f} s  {figure.part}  {figure.title}", flush=True)
    facts = {"model": loaded.name, "hash": loaded.hash, "seed": seed, "versions": f"jdiff {jdiff.__version__}"}
    stages = f"{loaded.name}" + (f" and {second.name}" if second else "")
    seconds = time.monotonic() - began
    intro = (
        f"Every figure of part A of CS180's project 5, made by `python scripts/reproduce_part_a.py` with {stages} at "
        f"seed {seed}, none picked, in {seconds:.0f} s on {machine}."
    )
    write(out, "Part A", intro, figures, facts)
    print(f"{len(figures)} figures in {seconds:.0f} s: {out / 'part_a.html'}, {out / 'part_a.md'}")


if __name__ == "__main__":
    tyro.cli(main)
