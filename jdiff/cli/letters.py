"""`jdiff ambigram`: its flags, what it checks and writes. JAX is imported late."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro

import jdiff
from jdiff import images as pictures
from jdiff.cli.commands import BadInput, accepted, check_output, demand

SETTINGS: dict[str, Any] = {
    "words": [], "view": "rotate_180", "style": "bold", "n": 16, "model": "letters", "steps": 12, "guidance": None,
    "seed": 0, "paper": "white", "ink": "black",
}  # fmt: skip
LARGEST_SEED = 2**32 - 1


def _default(name: str) -> Any:  # what tyro takes besides a type
    return tyro.conf.arg(help_behavior_hint=f"(default: {SETTINGS[name] if SETTINGS[name] is not None else 'its own'})")


@dataclasses.dataclass
class Ambigram:
    """Draws a word that reads as itself, or as another word, when it is turned."""

    words: tyro.conf.Positional[Annotated[tuple[str, ...], tyro.conf.arg(metavar="WORD [WORD2]")]] = ()
    """The word, and what it reads as when it is turned; the same word unless given."""
    view: Annotated[Literal["rotate_180", "flip", "mirror"] | None, _default("view")] = None
    """By half a turn, upside down, or left to right."""
    style: Annotated[str | None, _default("style")] = None
    """Words of thin, light, regular, bold, heavy; italic; serif, sans, typewriter."""
    n: Annotated[int | None, tyro.conf.arg(aliases=["-n"], help_behavior_hint="(default: 16)")] = None
    """Candidates of each letter, of which the best is set."""
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("ambigram.png")
    """PNG of the word both ways, with how well each letter is read."""
    gif: Path | None = None
    """Also write a GIF in which the word turns."""
    svg: Path | None = None
    """Also write the word's outlines (needs the extra svg)."""
    npz: Path | None = None
    """Also write the letters as arrays."""
    like: Path | None = None
    """A PNG of this command, whose settings are taken for all that is not given."""
    paper: Annotated[str | None, _default("paper")] = None
    """Colour of the paper: a name or "#rrggbb"."""
    ink: Annotated[str | None, _default("ink")] = None
    """Colour of the ink."""
    model: Annotated[str | None, _default("model")] = None
    """A model of letters: its name or its folder."""
    steps: Annotated[int | None, _default("steps")] = None
    """Steps of the sampler."""
    guidance: Annotated[float | None, _default("guidance")] = None
    """Guidance scale of each reading."""
    seed: Annotated[int | None, _default("seed")] = None
    """Seed of everything random."""
    quiet: bool = False
    """No progress bar."""

    def __call__(self) -> str:
        """Draws and writes; returns one line that says what was written."""
        settings = self.settings()
        for flag, path, suffix in (
            ("--output", self.output, ".png"), ("--gif", self.gif, ".gif"), ("--svg", self.svg, ".svg"),
            ("--npz", self.npz, ".npz"),
        ):  # fmt: skip
            if path is not None:
                check_output(flag, path, suffix)
        from jdiff.letters import ambigrams, captions, page

        words = settings["words"]
        demand(len(words) in (1, 2), f"ambigram takes one word or two, got {len(words)}; write jdiff ambigram swims")
        word, turned = words[0], words[-1]
        accepted(lambda: ambigrams.check_word(word))
        accepted(lambda: ambigrams.check_word(turned, "WORD2"))
        accepted(lambda: ambigrams.places(word, turned, settings["view"]))
        accepted(lambda: captions.read_style(settings["style"]))
        colours = [accepted(lambda flag=flag: page.colour(settings[flag], f"--{flag}")) for flag in ("paper", "ink")]
        if self.svg is not None:
            accepted(page.tracer)

        import jax

        from jdiff.model import load

        model = accepted(lambda: load(settings["model"]))
        demand(
            model.config.channels == 1,
            f"--model must be a model of letters, such as letters, got {settings['model']!r}",
        )
        settings |= {name: settings[name] or getattr(model.defaults, name) for name in ("steps", "guidance")}
        how = {name: settings[name] for name in ("view", "style", "n", "steps", "guidance")}
        from jdiff.cli.main import _Bar

        with _Bar(settings["steps"], self.quiet) as progress:
            made = accepted(
                lambda: ambigrams.ambigram(
                    model, word, turned, key=jax.random.key(settings["seed"]), progress=progress, **how
                )
            )
        return self.write(made, settings | {"hash": model.hash}, colours)

    def settings(self) -> dict[str, Any]:
        """All settings: what is given, then what --like has, then the defaults."""
        given = {name: getattr(self, name) for name in SETTINGS if getattr(self, name) not in (None, ())}
        before: dict[str, Any] = {}
        if self.like is not None:
            before = accepted(lambda: pictures.read_settings(self.like or ""), "--like: ")
            demand(before.get("command") == "ambigram", f"--like must be a PNG of jdiff ambigram, got {self.like}")
        found = SETTINGS | {name: before[name] for name in SETTINGS if name in before} | given
        found["words"] = list(found["words"])
        for name, least, most in (("n", 1, 1024), ("steps", 1, 1000), ("seed", 0, LARGEST_SEED)):
            value = found[name]
            good = value is None or (isinstance(value, int) and least <= value <= most)
            demand(good, f"--{name} must be between {least} and {most}, got {value}")
        guidance = found["guidance"]
        good = guidance is None or (isinstance(guidance, int | float) and np.isfinite(guidance))
        demand(good, f"--guidance must be a finite number, got {guidance}")
        return found

    def write(self, made: Any, settings: dict[str, Any], colours: list[tuple[int, int, int]]) -> str:
        """Writes what was asked for; returns one line. `made` is an Ambigram, whose type would import JAX."""
        from jdiff.letters import page

        settings = settings | {"command": "ambigram", "verdict": made.verdict, "scores": made.scores.tolist()}
        settings["versions"] = {"jdiff": jdiff.__version__}
        written = [self.output]
        pictures.save(self.output, page.page(made, *colours), settings)
        if self.gif is not None:
            pictures.save_gif(self.gif, page.frames(made, *colours), seconds=3.0)
            written.append(self.gif)
        if self.svg is not None:
            accepted(lambda: page.save_svg(self.svg or "", made, *colours))
            written.append(self.svg)
        if self.npz is not None:
            with pictures.beside(self.npz) as file:
                pairs = np.array([list(pair) for pair in made.pairs])
                np.savez_compressed(file, images=made.glyphs, scores=made.scores, pairs=pairs)
            written.append(self.npz)
        worst = int(made.scores.min(axis=1).argmin())
        upright, turned = made.pairs[worst]
        return (
            f"wrote {', '.join(map(str, written))}: {made.word} / {made.turned} is {made.verdict}; the worst letter is "
            f"{upright} / {turned} with {made.scores[worst].min():.0%}"
        )


__all__ = ["Ambigram", "BadInput"]
