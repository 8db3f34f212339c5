"""The commands that draw illusions: anagram and hybrid."""

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import numpy as np
import tyro

from jdiff import images
from jdiff.cli.drawing import Drawing, File, Prompted, Shown, Size, check_stage, size_of
from jdiff.cli.errors import accepted, demand
from jdiff.cli.flags import OPTIONAL, REPEATABLE, REQUIRED, Number, PathOrNone, TextOrNone

if TYPE_CHECKING:
    import jax

    from jdiff.model import Model
    from jdiff.scan import Samples
    from jdiff.types import View

# Frames from one reading of an anagram to the next; each reading then stands still for as many.
MOVING = 20
# Pixels of a picture's side in an anagram's animation, at least.
LARGE = 192


class Places(NamedTuple):
    """Where a view, a signed permutation, shows each pixel of a square."""

    at: np.ndarray  # [side^2 2] row and column
    sign: np.ndarray  # [side^2 1]


class Seen(NamedTuple):
    """A view of an anagram."""

    view: "View"
    places: Places


@dataclasses.dataclass
class Anagram(Prompted):
    """Draws pictures that show another prompt in each view (Visual Anagrams): a row for each view."""

    name = "anagram"
    example = "jdiff anagram --view flip 'a red six' 'a red nine'"
    own = {"view": list}

    view: Annotated[
        tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="NAME", help_behavior_hint=REPEATABLE)
    ] = ()
    """The view of each prompt, in their order: flip, rotate_cw, negate, jigsaw or another. A wrong name lists them
    all. With one view fewer than prompts, the first prompt is seen as it is."""
    gif: Annotated[PathOrNone, tyro.conf.arg(metavar="FILE.gif", help_behavior_hint=OPTIONAL)] = None
    """Also write an animation in which each pixel travels from one view to the next."""

    @staticmethod
    def count(texts: Sequence[str]) -> int:
        del texts
        return 1

    def kept(self) -> int:
        return 0

    def check(self) -> None:
        super().check()
        from jdiff.views import VIEWS

        p, given = len(self.prompts), len(self.view)
        demand(p > 1, f"there must be two or more prompts, got one; for example {self.example}")
        for name in self.view:
            demand(name in VIEWS, f"--view must be one of {', '.join(VIEWS)}, got {name}")
        enough = f"--view must be given {p - 1} or {p} times for {p} prompts"
        demand(given in (p - 1, p), f"{enough}, got {given}")

    def prepare(self, model: "Model", files: dict[str, File]) -> list[Seen]:
        del files
        from jdiff.views import VIEWS

        check_stage(self, model, 1)
        side, width = size_of(self, model)
        demand(side == width, f"--size must be a square for jdiff anagram, got {self.size}")
        seen = []
        for name in ["identity"][len(self.view) + 1 - len(self.prompts) :] + list(self.view):
            view = VIEWS[name](grid=min(64, side)) if name == "pixel_permute" else VIEWS[name]()
            seen.append(Seen(view, accepted(lambda view=view: places(view, side), f"--view {name}: ")))
        return seen

    def draw(self, model: "Model", fitted: list[Seen], key: "jax.Array", **how: Any) -> "Samples":
        from jdiff import combine
        from jdiff.sample import generate

        guided = model.guided(self.prompts, how.pop("guidance"), how.pop("negative"))
        parts = [combine.view(seen.view, one) for seen, one in zip(fitted, guided, strict=True)]
        return generate(model, combine.mean(parts), key, size=size_of(self, model), **how)

    def shown(self, made: np.ndarray, fitted: list[Seen]) -> Shown:
        import jax

        return Shown(np.stack([jax.vmap(seen.view.apply)(made[0]) for seen in fitted]), self.labels(fitted))

    def moving(self, model: "Model", fitted: list[Seen]) -> tuple[list[str], Size]:
        side, _ = size_of(self, model)
        side *= math.ceil(LARGE / side)
        return [" / ".join(self.prompts)], (side, side)

    def frames(self, made: np.ndarray, way: np.ndarray | None, fitted: list[Seen]) -> list[Shown]:
        del way
        shares = (1 - np.cos(np.pi * np.arange(1, MOVING + 1) / MOVING)) / 2  # starts and arrives slowly
        label = [" / ".join(self.prompts)]
        frames = []
        for here, there in zip(fitted, [*fitted[1:], fitted[0]], strict=True):
            moving = [between(made[0], here.places, there.places, share) for share in shares]
            frames += [*moving, *[moving[-1]] * (0 if there is fitted[0] else MOVING)]  # the file holds the last one
        return [Shown(frame[None], label) for frame in frames]


@dataclasses.dataclass
class Hybrid(Drawing):
    """Draws pictures that show one prompt from afar and another from near: a row as they are, one for each part."""

    name = "hybrid"
    own = {"sigma": (int, float)}

    low: Annotated[TextOrNone, tyro.conf.arg(metavar="PROMPT", help_behavior_hint=REQUIRED)] = None
    """What is seen from afar: the low frequencies."""
    high: Annotated[TextOrNone, tyro.conf.arg(metavar="PROMPT", help_behavior_hint=REQUIRED)] = None
    """What is seen from near: the high frequencies."""
    sigma: Annotated[Number, tyro.conf.arg(metavar="FLOAT")] = 2.0
    """Standard deviation of the blur that separates the two, in pixels of a 64-pixel side: above 0 and at most 7."""

    def texts(self) -> tuple[str, ...]:
        return tuple(text for text in (self.low, self.high) if text is not None)

    def flags(self, texts: Sequence[str]) -> images.Settings:
        low, high = texts
        return {"low": low, "high": high}

    @staticmethod
    def count(texts: Sequence[str]) -> int:
        del texts
        return 1

    def check(self) -> None:
        for flag, text in (("--low", self.low), ("--high", self.high)):
            demand(text is not None, f"{flag} is missing; give a prompt, such as {flag} 'a red three'")
        demand(0 < self.sigma <= 7, f"--sigma must be above 0 and at most 7, got {self.sigma}")

    def draw(self, model: "Model", fitted: None, key: "jax.Array", **how: Any) -> "Samples":
        from jdiff import combine, views
        from jdiff.sample import generate

        guided = model.guided(self.texts(), how.pop("guidance"), how.pop("negative"))
        parts = zip(views.low_and_high(self.sigma), guided, strict=True)
        return generate(model, combine.components(list(parts)), key, size=size_of(self, model), **how)

    def labels(self, fitted: None) -> list[str]:
        return ["as it is", f"from afar: {self.low}", f"near: {self.high}"]

    def shown(self, made: np.ndarray, fitted: None) -> Shown:
        import jax

        from jdiff import views

        rows = [made[0], *(jax.vmap(part)(made[0]) for part in views.low_and_high(self.sigma))]
        return Shown(np.stack(rows), self.labels(fitted))


def places(view: "View", side: int) -> Places:
    """Returns where a view shows each pixel of a square of this side.

    Example:
        >>> from jdiff import views
        >>> places(views.flip(), 2).at.tolist()
        [[1, 0], [1, 1], [0, 0], [0, 1]]
    """
    numbers = np.arange(1, side**2 + 1, dtype=np.float32).reshape(side, side, 1)
    moved = np.asarray(view.apply(numbers)).ravel()
    order = np.argsort(np.abs(moved))
    return Places(np.stack(np.unravel_index(order, (side, side)), axis=-1), np.sign(moved)[order, None])


def between(images: np.ndarray, here: Places, there: Places, share: float) -> np.ndarray:
    """Returns enlarged images [n h' w' c] whose pixels are on their way from one view to another.

    Args:
        images: [n h w c], square.
        here: where their pixels start.
        there: where they arrive.
        share: of the way, from 0 to 1.
    """
    n, h, w, c = images.shape
    zoom = math.ceil(LARGE / h)
    place, sign = ((1 - share) * a + share * b for a, b in zip(here, there, strict=True))
    y, x = np.round(zoom * place).astype(int).T[:, :, None, None]
    page = np.ones((n, zoom * h, zoom * w, c), np.float32)
    pixels = sign * images.reshape(n, h * w, c)
    page[:, y + np.arange(zoom)[:, None], x + np.arange(zoom)] = pixels[:, :, None, None]
    return page
