"""Results as HTML: pictures, their way from noise, moving illusions, downloads. `studio.css` and `studio.js` serve it.

Pictures are in the page itself, as data URLs, so that no file on the server holds what somebody drew.
"""

import base64
import io
import json
from collections.abc import Iterable
from html import escape

import numpy as np
from PIL import Image

from jdiff import images
from jdiff.cli.commands import Edit, Inpaint
from jdiff.cli.drawing import Drawing
from jdiff.cli.illusions import Anagram, Hybrid
from jdiff.cli.mnist import Sample as Digits
from jdiff.studio.results import Result
from jdiff.studio.runs import Step

# Views that the browser turns as a whole. In all others each pixel travels.
RIGID = ("identity", "flip", "mirror", "rotate_cw", "rotate_ccw", "rotate_180", "negate")
# How a page calls the views.
NAMES = {
    "identity": "as it is", "flip": "upside down", "mirror": "left to right", "rotate_cw": "turned right",
    "rotate_ccw": "turned left", "rotate_180": "half a turn", "negate": "negative", "skew": "skewed",
    "patch_permute": "patches mixed", "pixel_permute": "pixels mixed", "jigsaw": "jigsaw",
    "inner_circle": "inner circle turned", "square_hinge": "hinged",
}  # fmt: skip
# Quality of the pictures that are shown while drawing; the finished ones are PNG.
QUALITY = 80
# Pixels below which a page enlarges a finished picture by whole pixels.
SMALL = 128


def empty(text: str) -> str:
    """Returns what stands in the place of a result before there is one."""
    return f'<div class="jd-empty">{escape(text)}</div>'


def trouble(text: str) -> str:
    """Returns an error's line."""
    return f'<div class="jd-trouble" role="alert">{escape(text)}</div>'


def starting(others: int = 0) -> str:
    """Returns what is shown until the first step.

    Args:
        others: runs of other people that come first.
    """
    text = "The first run of a kind compiles for some seconds."
    if others:
        text = "Waiting: somebody else's pictures are being drawn first."
    return f'<div class="jd-result"><div class="jd-bar"><progress></progress><span>{escape(text)}</span></div></div>'


def step(at: Step, columns: int) -> str:
    """Returns pictures as they are being denoised, with how far they are."""
    bar = (
        f'<div class="jd-bar"><progress value="{at.done}" max="{at.total}"></progress>'
        f"<span>step {at.done} of {at.total}</span></div>"
    )
    if at.images is None:
        return f'<div class="jd-result">{bar}</div>'
    pictures = images.to_uint8(np.clip(np.nan_to_num(at.images), -1, 1))
    cards = [
        f'<figure class="jd-card">{_still(_webp(picture), "a picture being denoised")}</figure>' for picture in pictures
    ]
    rows = [cards[i : i + columns] for i in range(0, len(cards), columns)]
    return f'<div class="jd-result jd-live">{bar}{"".join(_row("", row) for row in rows)}</div>'


def result(made: Result, same: bool | None = None) -> str:
    """Returns a finished result.

    Args:
        made: what was drawn.
        same: whether it was drawn again and equals what it was before; None where it was not drawn again.
    """
    command = made.task.command
    if made.word is not None:
        body = _word(made)
    elif isinstance(command, Anagram):
        body = _anagrams(made, command)
    elif isinstance(command, Hybrid):
        body = _hybrids(made, command)
    else:
        body = "".join(_originals(made)) + "".join(_rows(made))
    said = {None: "", True: "Drawn again: the same picture, pixel for pixel.", False: (
        "Drawn again: the picture differs. Was the model changed?"
    )}[same]  # fmt: skip
    note = f'<p class="jd-note">{said}</p>' if said else ""
    return f'<div class="jd-result">{_slider(made)}{note}{body}{_downloads(made)}</div>'


def seen(image: np.ndarray | None, side: int, mask: np.ndarray | None = None) -> str:
    """Returns what the network sees of a picture [side side 3], and its mask [side side]."""
    if image is None:
        return ""
    cards = [_card(image, f"what the network sees: {side} x {side} pixels")]
    if mask is not None:
        kept = np.where(mask[..., None] > 0.5, 0.0, image).astype(np.float32)
        cards.append(_card(kept, "what is kept of it; grey is redrawn"))
    return f'<div class="jd-result jd-seen">{_row("", cards)}</div>'


def name(made: Result) -> str:
    """Returns the name of a result's file, without its ending."""
    command = made.task.command
    told = command.name if isinstance(command, Drawing) else "ambigram" if made.word is not None else "digits"
    return f"jdiff-{told}-{made.settings.get('seed', 0)}"


def _url(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _webp(pixels: np.ndarray) -> str:
    """A picture [h w c] uint8 as a small data URL."""
    file = io.BytesIO()
    Image.fromarray(np.broadcast_to(pixels, (*pixels.shape[:2], 3))).save(file, "WEBP", quality=QUALITY)
    return _url(file.getvalue(), "webp")


def _still(url: str, alt: str, small: bool = True) -> str:
    return f'<img class="{"jd-pixels" if small else ""}" src="{url}" alt="{escape(alt)}">'


def _card(image: np.ndarray, caption: str, *, sprite: str = "", link: str = "") -> str:
    """A picture [h w c] in [-1, 1] with its caption."""
    picture = _still(_url(images.png(image), "png"), caption or "a picture", image.shape[0] < SMALL)
    told = f"<figcaption>{escape(caption)} {link}</figcaption>" if caption or link else ""
    return f'<figure class="jd-card"><div class="jd-stage">{picture}{sprite}</div>{told}</figure>'


def _row(label: str, cards: Iterable[str], kind: str = "") -> str:
    head = f'<div class="jd-label">{escape(label)}</div>' if label else ""
    return f'<div class="jd-row">{head}<div class="jd-cards {kind}">{"".join(cards)}</div></div>'


def _sprite(made: Result, i: int, j: int) -> str:
    """The way of a picture, one frame below the other, which a slider moves."""
    if made.way is None:
        return ""
    frames = made.way[:, i, j]
    m, h, w, c = frames.shape
    url = _webp(frames.reshape(m * h, w, c))
    return f'<span class="jd-way" style="background-image:url({url});background-size:100% {100 * m}%"></span>'


def _slider(made: Result) -> str:
    if made.way is None:
        return ""
    last = len(made.way) - 1
    return (
        f'<div class="jd-bar"><button type="button" class="jd-button" data-jd="way">Play</button>'
        f'<input type="range" data-jd="step" min="0" max="{last}" value="{last}" aria-label="from noise to picture">'
        "<span>from noise to picture</span></div>"
    )


def _alone(made: Result, i: int, j: int, text: str = "PNG") -> str:
    """The download of one picture."""
    if made.task.strengths or not isinstance(made.task.command, Drawing):
        settings = None  # no single command draws it alone
    else:
        settings = made.settings | {"image": [i, j]}
    return _link(_url(images.png(made.images[i, j], settings), "png"), f"{name(made)}-{i}-{j}.png", text)


def _link(url: str, file: str, text: str) -> str:
    return f'<a class="jd-link" download="{escape(file)}" href="{url}">{escape(text)}</a>'


def _rows(made: Result) -> Iterable[str]:
    if isinstance(made.task.command, Digits):  # a row has each digit once
        for j in range(made.images.shape[1]):
            yield _row("", [_picture(made, i, j, label) for i, label in enumerate(made.labels)], "jd-five")
        return
    if made.images.shape[1] == 1:
        yield _row("", [_picture(made, i, 0, label) for i, label in enumerate(made.labels)])
        return
    for i, label in enumerate(made.labels):
        yield _row(label, [_picture(made, i, j, "") for j in range(made.images.shape[1])])


def _picture(made: Result, i: int, j: int, caption: str) -> str:
    """The card of one picture; nothing for one that is not finite."""
    if not np.isfinite(made.images[i, j]).all():
        return ""
    return _card(made.images[i, j], caption, sprite=_sprite(made, i, j), link=_alone(made, i, j))


def _originals(made: Result) -> Iterable[str]:
    """The picture that an edit starts from, and what an inpainting keeps."""
    command = made.task.command
    if isinstance(command, Inpaint):
        image, mask = made.fitted
        yield _row("", [_card(image, "original"), _card(image * (1 - mask[..., None]), "what is kept")])
    elif isinstance(command, Edit):
        yield _row("", [_card(made.fitted, "original")])


def _anagrams(made: Result, command: Anagram) -> str:
    """Pictures that turn from one reading to the next, the best first."""
    names = ["identity"][len(command.view) + 1 - len(command.prompts) :] + list(command.view)
    order = np.arange(made.images.shape[1])
    if made.chances is not None:
        order = np.argsort(-made.chances.min(axis=0), kind="stable")
    travel = {
        view: (seen.places.at @ np.array([made.images.shape[2], 1])).tolist()
        for view, seen in zip(names, made.fitted, strict=True)
        if view not in RIGID
    }
    chips = "".join(
        f'<button type="button" class="jd-button{" jd-on" if i == 0 else ""}" data-jd="view" data-view="{view}">'
        f"{escape(text)} <small>{NAMES.get(view, view)}</small></button>"
        for i, (view, text) in enumerate(zip(names, command.prompts, strict=True))
    )
    play = '<button type="button" class="jd-button jd-play" data-jd="turn">Turn</button>'
    cards = []
    for rank, j in enumerate(order.tolist()):
        told = f"picture {j}"
        if made.chances is not None:
            told = f"{rank + 1}. " + " / ".join(f"{chance:.0%}" for chance in made.chances[:, j])
        cards.append(_picture(made, 0, j, told))
    ranked = "" if made.chances is None else (
        '<p class="jd-note">Best first: the judge\'s chance of reading each prompt in its view.</p>'
    )  # fmt: skip
    data = escape(json.dumps(travel))
    first = names[0] if names[0] in RIGID else "identity"
    return (
        f'<div class="jd-turning" data-travel="{data}" data-now="{first}"><div class="jd-bar">{play}{chips}</div>'
        f'{ranked}<div class="jd-cards jd-wide">{"".join(cards)}</div></div>'
    )


def _hybrids(made: Result, command: Hybrid) -> str:
    cards = [_picture(made, 0, j, f"picture {j}") for j in range(made.images.shape[1])]
    return (
        '<div class="jd-hybrids"><div class="jd-bar"><span>near</span>'
        '<input type="range" data-jd="distance" min="0" max="100" value="0" aria-label="viewing distance">'
        f'<span>far</span></div><p class="jd-note">Near: {escape(command.high or "")}. '
        f"From afar: {escape(command.low or '')}. Move the slider, or step back from the screen.</p>"
        f'<div class="jd-cards jd-wide">{"".join(cards)}</div></div>'
    )


def _word(made: Result) -> str:
    from jdiff.letters import page

    word = made.word
    assert word is not None
    ink, _ = page.strip(word.glyphs)
    colours = [page.colour(made.settings[name], f"--{name}") for name in ("paper", "ink")]
    strip = _url(images.png(page.painted(ink, *colours)), "png")
    letters = " ".join(
        f"{pair.upright}/{pair.turned} {low:.0%}" for pair, low in zip(word.pairs, word.scores.min(1), strict=True)
    )
    buttons = "".join(
        f'<button type="button" class="jd-button{" jd-on" if view == "identity" else ""}" data-jd="view" '
        f'data-view="{view}">{escape(text)} <small>{NAMES[view]}</small></button>'
        for view, text in (("identity", word.word), (word.view, word.turned))
    )
    return (
        f'<div class="jd-turning" data-travel="{{}}" data-now="identity"><div class="jd-bar">'
        f'<button type="button" class="jd-button jd-play" data-jd="turn">Turn</button>{buttons}</div>'
        f'<figure class="jd-card jd-strip"><div class="jd-stage"><img src="{strip}" alt="{escape(word.word)}"></div>'
        f"<figcaption>{escape(word.verdict)}. Chance of each letter's worse reading: {escape(letters)}</figcaption>"
        "</figure></div>"
    )


def _downloads(made: Result) -> str:
    links = [_link(_url(images.png(made.sheet, made.settings), "png"), f"{name(made)}.png", "all as one PNG")]
    links += [_link(_url(data, "png"), file, file) for file, data in made.task.data.items()]
    note = "The PNG holds its settings"
    if isinstance(made.task.command, Drawing) and not made.task.strengths:
        note += f": jdiff {made.task.command.name} --like {name(made)}.png draws it again"
    beside = " The command and the Python read the other files." if made.task.data else ""
    return f'<p class="jd-note">Download {", ".join(links)}. {escape(note)}.{beside}</p>'
