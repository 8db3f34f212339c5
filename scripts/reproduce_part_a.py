"""Draws every figure of part A of the course's assignment with one model, and writes them to one HTML page.

    python scripts/reproduce_part_a.py

With IF's own weights, give `--model FOLDER --stage2 FOLDER`, and pictures of your own by `--image A.png --image B.png`.
Prompts, steps and masks are then the course's. `--prompts FILE` replaces some of the prompts. The file is a JSON object
whose keys are fields of `Edition`, such as {"neutral": "a photo of a tower", "hybrids": [["far", "near"], ...]}.
"""

import base64
import html
import time
from collections.abc import Callable, Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from part_a_editions import DRAWN, IF, MINI, Edition, boxes, read_mask, read_prompts
from PIL import Image, ImageDraw

import jdiff
from jdiff import combine, images, sample, schedule, step, views
from jdiff.model import Model
from jdiff.parts import write_text
from jdiff.results import machine as this_machine
from jdiff.types import Array, Combiner

STARTS = (1, 3, 5, 7, 10, 20)  # rows of the course's table that edits start from
NOISY = (250, 500, 750)  # timesteps of parts 1.1 to 1.3
SHOWN = 4  # pictures of each illusion
STAGE2_STEPS = 30
COURSE: dict[str, Any] = {"sampler": "course", "steps": 33}


class Picture(NamedTuple):
    """A photo or drawing that the figures start from."""

    name: str
    pixels: Array  # [h w 3]
    prompt: str


class Figure(NamedTuple):
    """A figure of the write-up."""

    part: str  # of the assignment
    title: str
    text: str
    rows: Any  # pictures [r c h w 3]
    labels: Sequence[str]  # of the rows
    columns: Sequence[str]  # labels of the columns
    settings: dict[str, Any]  # with which it was made


class Studio(NamedTuple):
    """The models, prompts and pictures of all figures."""

    model: Model
    stage2: Model | None
    edition: Edition
    key: Array
    photos: list[Picture]
    sketches: list[Picture]
    masks: list[Array]  # [h w] each, 1 is made new

    def how(self, **more: Any) -> dict[str, Any]:
        """Returns settings of a task: the course's sampler and the edition's guidance scale, and more."""
        return COURSE | {"guidance": self.guidance} | more

    @property
    def guidance(self) -> float:
        """The guidance scale."""
        return self.model.defaults.guidance if self.edition.guidance is None else self.edition.guidance

    def guided(self, *prompts: str) -> list[Combiner]:
        """Returns the classifier-free guidance of each prompt."""
        return self.model.guided(prompts, self.guidance)


def sampling(s: Studio) -> Iterator[Figure]:
    """Draws part 0: three prompts with several numbers of steps, and by both stages."""
    prompts = list(s.edition.sampling)
    for steps in (10, 20, 100):
        how: dict[str, Any] = {"steps": steps, "sampler": s.model.defaults.sampler, "guidance": s.guidance}
        small = sample.generate(s.model, prompts, s.key, **how).images
        yield Figure("0", f"Sampling, {steps} steps", "Three prompts at one seed.", small.swapaxes(0, 1), [""],
                     prompts, how)  # fmt: skip
    if s.stage2 is not None:
        large = {"steps": STAGE2_STEPS}
        both = sample.cascade(s.model, s.stage2, prompts, s.key, stage2_settings=large, **how)
        first, second = (made.images[:, 0] for made in both)
        rows = np.stack([magnified(first, second.shape[1]), np.asarray(second)])
        yield Figure("0", "Both stages", "The pictures with 100 steps, enlarged by stage 2 (below).", rows,
                     ["stage 1", "stage 2"], prompts, large)  # fmt: skip


def magnified(pictures: Any, side: int) -> np.ndarray:
    """Repeats the pixels of pictures [n h w 3] to [n side side 3]."""
    at = np.arange(side) * np.shape(pictures)[1] // side
    return np.asarray(pictures)[:, at][:, :, at]


def denoising(s: Studio) -> Iterator[Figure]:
    """Draws parts 1.1 to 1.4: a noised picture, denoised in three ways."""
    photo = s.photos[0]
    keys, one = sample.image_keys(s.key, 1), photo.pixels[None]
    at = {t: sample.one(schedule.levels(s.model.schedule, [t]), 0) for t in (*NOISY, 690)}
    noisy = {t: sample.forward(keys, one, level) for t, level in at.items()}
    columns = [f"t = {t}" for t in NOISY]
    top = [one[0]] * 3
    rows = lambda *more: np.stack([np.stack([a[0] for a in row]) for row in more])
    yield Figure("1.1", "Forward process", f"{photo.name} with noise.", rows([one, *(noisy[t] for t in NOISY)]), [""],
                 ["original", *columns], {"t": NOISY})  # fmt: skip

    blur = {t: jax.vmap(views.low_pass(sigma=2, kernel=5))(x) for t, x in noisy.items()}
    shown = rows([noisy[t] for t in NOISY], [blur[t] for t in NOISY])
    yield Figure("1.2", "Classical denoising", "Gaussian blur with a kernel of 5 and sigma = 2 at 64 pixels.", shown,
                 ["noisy", "blurred"], columns, {"kernel": 5, "sigma": 2})  # fmt: skip

    alone = combine.conditional(s.model.embed([photo.prompt])[0])
    once = {t: sample.denoise_once(s.model.network, x, at[t], combiner=alone) for t, x in noisy.items()}
    shown = np.concatenate([np.stack(top)[None], rows([noisy[t] for t in NOISY], [once[t] for t in NOISY])])
    text = f"One network call with the prompt {photo.prompt!r}, without guidance."
    yield Figure("1.3", "One-step denoising", text, shown, ["original", "noisy", "one step"], columns,
                 {"prompt": photo.prompt})  # fmt: skip

    levels = schedule.levels(s.model.schedule, schedule.course(), float(s.model.schedule[0]))
    solver, how = step.ddpm(), {"combiner": alone, "keep_every": 1, "i_start": 10}
    made = sample.iterative_denoise(s.model.network, keys, noisy[690], levels, solver=solver, **how)
    assert made.way is not None
    loop = [noisy[690][0], *(made.way[0, i] for i in range(4, 22, 5))]
    yield Figure("1.4", "Iterative denoising", "Every fifth image of the course's loop, from i_start = 10 (t = 690).",
                 np.stack(loop)[None], [""], [f"t = {t}" for t in range(690, 0, -150)], {"i_start": 10})  # fmt: skip
    shown = rows([one, noisy[690], made.images, once[690], blur[690]])
    columns = ["original", "t = 690", "iterative", "one step", "blurred"]
    yield Figure("1.4", "Three ways to denoise", "All start from the same noisy image.", shown, [""], columns,
                 {"i_start": 10})  # fmt: skip


def generation(s: Studio) -> Iterator[Figure]:
    """Draws parts 1.5 and 1.6: pictures from pure noise, without and with guidance."""
    prompt = s.edition.neutral
    for part, title, guidance in (("1.5", "Sampling", 1.0), ("1.6", "Classifier-free guidance", s.guidance)):
        how = s.how(guidance=guidance)
        made = sample.generate(s.model, [prompt], s.key, n=5, **how).images
        text = f"Five images from pure noise with the prompt {prompt!r} and guidance scale {guidance:g}."
        yield Figure(part, title, text, made, [""], [], how | {"prompt": prompt})


def ladder(s: Studio, pictures: list[Picture], prompts: Sequence[str]) -> np.ndarray:
    """Returns edits [p 7 h w 3] of pictures, from every row in `STARTS`, and the originals."""
    pixels = jnp.stack([picture.pixels for picture in pictures])
    made = [sample.edit(s.model, pixels, prompts, s.key, i_start=i, **s.how()).images[:, 0] for i in STARTS]
    return np.stack([*made, pixels], axis=1)


def edits(s: Studio) -> Iterator[Figure]:
    """Draws parts 1.7, 1.7.1 and 1.7.3: edits by SDEdit."""
    columns = [*(f"i_start {i}" for i in STARTS), "original"]
    for part, title, found in (("1.7", "Edits", s.photos), ("1.7.1", "Edits of drawings", s.sketches)):
        prompts = [picture.prompt for picture in found]
        labels = [f"{picture.name}: {picture.prompt}" for picture in found]
        text = "Each picture is noised to row i_start of the table and denoised again (SDEdit)."
        yield Figure(part, title, text, ladder(s, found, prompts), labels, columns, s.how(i_start=STARTS))
    prompts = [s.edition.edits[i % len(s.edition.edits)] for i in range(len(s.photos))]
    text = "The same with a prompt for something else."
    yield Figure("1.7.3", "Text-conditional edits", text, ladder(s, s.photos, prompts), prompts, columns,
                 s.how(i_start=STARTS))  # fmt: skip


def inpaintings(s: Studio) -> Iterator[Figure]:
    """Draws part 1.7.2: inpainting."""
    pixels = jnp.stack([picture.pixels for picture in s.photos])
    masks = jnp.stack([s.masks[i % len(s.masks)] for i in range(len(s.photos))])
    prompts = [picture.prompt for picture in s.photos]
    made = sample.inpaint(s.model, pixels, masks, prompts, s.key, n=SHOWN, **s.how()).images
    white = jnp.broadcast_to(2 * masks[..., None] - 1, pixels.shape)
    shown = np.concatenate([np.stack([pixels, white, pixels * (1 - masks[..., None])], axis=1), made], axis=1)
    columns = ["original", "mask", "kept", *(f"image {i}" for i in range(SHOWN))]
    text = "The white part is made new. After every step, the rest is replaced by the noised original."
    yield Figure("1.7.2", "Inpainting", text, shown, prompts, columns, s.how())


def anagrams(s: Studio) -> Iterator[Figure]:
    """Draws part 1.8: anagrams."""
    for name, first, second in s.edition.anagrams:
        view = views.VIEWS[name]()
        upright, other = s.guided(first, second)
        both = combine.mean([upright, combine.view(view, other)])
        made = sample.generate(s.model, both, s.key, n=SHOWN, **COURSE).images[0]
        rows = np.stack([made, jax.vmap(view.apply)(made)])
        text = f"The mean of two noise estimates, one of them under the view `{name}`."
        yield Figure("1.8", f"Anagram, {name}", text, rows, [first, f"{name}: {second}"], [], s.how(view=name))


def hybrids(s: Studio) -> Iterator[Figure]:
    """Draws part 1.9: hybrids."""
    for (far, near), sigma in zip(s.edition.hybrids, s.edition.sigmas, strict=True):
        low, high = views.low_and_high(sigma)
        one, other = s.guided(far, near)
        hybrid = combine.components({low: one, high: other})
        made = sample.generate(s.model, hybrid, s.key, n=SHOWN, **COURSE).images[0]
        rows = np.stack([made, jax.vmap(low)(made), jnp.clip(jax.vmap(high)(made), -1, 1)])
        labels = ["the picture", f"from afar: {far}", f"from near: {near}"]
        text = f"Low and high frequencies, split by a Gaussian blur with sigma = {sigma:g} at 64 pixels."
        yield Figure("1.9", f"Hybrid of {far!r} and {near!r}", text, rows, labels, [], s.how(sigma=sigma))


def enlargements(s: Studio) -> Iterator[Figure]:
    """Draws the bonus part: photos, enlarged by stage 2."""
    if s.stage2 is None:
        return
    before, default = np.stack([picture.pixels for picture in s.photos]), s.stage2.defaults
    small = before
    if small.shape[1] > default.low_res:
        small = np.stack([images.square(image, default.low_res, Image.Resampling.BOX) for image in before])
    side, key = max(s.stage2.config.sample_size, default.factor * small.shape[1]), jax.random.fold_in(s.key, 2)
    prompts = [picture.prompt for picture in s.photos]
    made = np.asarray(sample.upscale(s.stage2, small, prompts, key, steps=STAGE2_STEPS, side=side).images[:, 0])
    text = f"{small.shape[1]} to {made.shape[1]} pixels, {STAGE2_STEPS} steps, the same prompts."
    names = [picture.name for picture in s.photos]
    yield Figure("Upsampling", "Stage 2", text, np.stack([magnified(before, made.shape[1]), made]),
                 ["before", "after"], names, {"steps": STAGE2_STEPS})  # fmt: skip


PARTS: tuple[Callable[[Studio], Iterator[Figure]], ...] = (
    sampling, denoising, generation, edits, inpaintings, anagrams, hybrids, enlargements,
)  # fmt: skip


def drawn(colour: tuple[int, int, int], strokes: list, side: int, paper: int) -> Array:
    """Returns a drawing [side side 3] in [-1, 1] of thick lines, on a background with a brightness of 0 to 255."""
    page = Image.new("RGB", (256, 256), (paper,) * 3)
    draw = ImageDraw.Draw(page)
    for stroke in strokes:
        draw.line([(4 * x, 4 * y) for x, y in stroke], fill=colour, width=22, joint="curve")
    return jnp.asarray(images.square(np.asarray(page, np.float32) / 127.5 - 1, side, Image.Resampling.BOX))


def photographs(model: Model, edition: Edition, files: Sequence[Path], key: Array) -> list[Picture]:
    """Returns the user's pictures. If there are fewer than three, the model draws the others."""
    side = model.config.sample_size
    found = [Picture(path.stem, jnp.asarray(images.square(images.load(path), side)), edition.neutral) for path in files]
    missing = edition.pictures[len(found) :]
    if missing:
        made = sample.generate(model, [prompt for _, prompt in missing], jax.random.fold_in(key, 1)).images[:, 0]
        found += [Picture(name, pixels, prompt) for (name, prompt), pixels in zip(missing, made, strict=True)]
    return found


def sketches(model: Model, edition: Edition, files: Sequence[Path], on_black: bool) -> list[Picture]:
    """Returns the user's drawings, or two that ship with this script."""
    side = model.config.sample_size
    if files:
        return [Picture(p.stem, jnp.asarray(images.square(images.load(p), side)), edition.neutral) for p in files]
    return [
        Picture("a drawing", drawn(*what, side, 0 if on_black else 255), prompt)
        for what, prompt in zip(DRAWN, edition.drawings, strict=True)
    ]


def write(out: Path, title: str, intro: str, figures: list[tuple[Figure, np.ndarray]], facts: dict) -> None:
    """Writes part_a.md, part_a.html and part_a/*.png into the folder `out`.

    Args:
        out: the folder.
        title: of both pages.
        intro: first paragraph.
        figures: each with its picture [h w 3] uint8.
        facts: settings that every picture's file carries.
    """
    folder = out / "part_a"
    folder.mkdir(parents=True, exist_ok=True)
    lines, body, part = [f"# {title}", "", intro, ""], [], None
    for i, (figure, page) in enumerate(figures):
        name = f"{i:02}-{''.join(c if c.isalnum() else '-' for c in figure.title.lower()).strip('-')}.png"
        settings = facts | {key: str(value) for key, value in figure.settings.items()}
        images.save(folder / name, page, settings)
        shown = ", ".join(f"{key} {value}" for key, value in figure.settings.items())
        if figure.part != part:
            lines += [f"## {figure.part}", ""]
            body.append(f"<h2>{html.escape(figure.part)}</h2>")
            part = figure.part
        lines += [f"**{figure.title}.** {figure.text}", "", f"![{figure.title}](part_a/{name})", "", f"*{shown}*", ""]
        file = BytesIO()
        Image.fromarray(page).save(file, "PNG", optimize=True)
        data = base64.b64encode(file.getvalue()).decode()
        body.append(
            f"<p><b>{html.escape(figure.title)}.</b> {html.escape(figure.text)}</p>"
            f'<img alt="{html.escape(figure.title)}" src="data:image/png;base64,{data}">'
            f"<p><i>{html.escape(shown)}</i></p>"
        )
    style = "body{max-width:60rem;margin:2rem auto;padding:0 1rem;font:16px/1.5 sans-serif}img{max-width:100%}"
    head = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>'
    top = f"{head}<style>{style}</style><h1>{html.escape(title)}</h1><p>{html.escape(intro)}</p>"
    for name, text in (("part_a.md", "\n".join(lines)), ("part_a.html", top + "\n".join(body) + "</html>\n")):
        write_text(out / name, text)


def main(
    model: str = "mini",
    stage2: str | None = "mini-upscaler",
    image: tyro.conf.UseAppendAction[tuple[Path, ...]] = (),
    drawing: tyro.conf.UseAppendAction[tuple[Path, ...]] = (),
    mask: Path | None = None,
    prompts: Path | None = None,
    seed: int = 180,
    out: Path = Path("part-a"),
    machine: str = "",
) -> None:
    """Writes `out`/part_a.html (one file that contains its pictures), `out`/part_a.md and its pictures.

    Args:
        model: name or folder of stage 1.
        stage2: name or folder of stage 2; None leaves its figures out.
        image: photos; the first one is the test image. If there are fewer than three, the model draws the others.
        drawing: drawings of your own for part 1.7.1.
        mask: mask for part 1.7.2; the white part is inpainted.
        prompts: JSON file with prompts in the place of the default ones.
        seed: seed of every figure.
        out: folder to write to.
        machine: description of the machine for the page; detected if not given.
    """
    began = time.monotonic()
    loaded, second = jdiff.load(model), jdiff.load(stage2) if stage2 else None
    mini = loaded.config.sample_size < 64
    edition, key, side = MINI if mini else IF, jax.random.key(seed), loaded.config.sample_size
    try:
        edition = read_prompts(prompts, edition) if prompts else edition
        masks = [read_mask(mask, side)] if mask else boxes(edition, side)
        photos, drawings = photographs(loaded, edition, image, key), sketches(loaded, edition, drawing, mini)
    except (ValueError, OSError) as error:
        raise SystemExit(f"reproduce_part_a: {error}") from error
    studio = Studio(loaded, second, edition, key, photos, drawings, masks)
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
        f"These are all figures of part A of CS180's project 5, drawn by `python scripts/reproduce_part_a.py` with "
        f"{stages} at seed {seed}, none picked, in {seconds:.0f} s on {machine or this_machine()}."
    )
    write(out, "Part A", intro, figures, facts)
    print(f"{len(figures)} figures in {seconds:.0f} s: {out / 'part_a.html'}, {out / 'part_a.md'}")


if __name__ == "__main__":
    tyro.cli(main)
