"""`jdiff ambigram`: its flags, what it checks and writes. JAX is imported late."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

import jdiff
from jdiff import images
from jdiff.cli.errors import accepted, check_distinct, check_local, check_output, demand, is_unicode
from jdiff.cli.flags import (
    LARGEST_NUMBER,
    LARGEST_SEED,
    OPTIONAL,
    NumberOrNone,
    PathOrNone,
    TextOrNone,
    WholeOrNone,
    one_of,
)
from jdiff.cli.make import PATIENCE, start_jax
from jdiff.cli.outputs import Done, Output, write
from jdiff.cli.process import note
from jdiff.cli.settings import found_folder
from jdiff.progress import Bar

# Settings of an ambigram, as its PNG has them, and their defaults.
SETTINGS: dict[str, Any] = {
    "words": [], "view": "rotate_180", "style": "bold", "n": None, "model": "letters", "steps": 20, "guidance": 1.0,
    "push": 0.8, "seed": 0, "paper": "white", "ink": "black",
}  # fmt: skip
# Settings that `jdiff.letters.ambigrams.ambigram` takes under the same names.
TAKEN = ("view", "style", "n", "steps", "guidance", "push")
VIEWS = ("rotate_180", "flip", "mirror")
CANDIDATES = {"rotate_180": 4, "flip": 8, "mirror": 8}  # of each letter by view, as in `jdiff.letters.ambigrams`


def _arg(name: str, metavar: str, **how: Any) -> Any:  # what tyro takes beside a type
    return tyro.conf.arg(metavar=metavar, help_behavior_hint=f"(default: {SETTINGS[name]})", **how)


@dataclasses.dataclass
class Ambigram:
    """Draws a word that reads as itself, or as another word, when it is turned."""

    words: Annotated[
        tyro.conf.Positional[tuple[str, ...]],
        tyro.conf.arg(metavar="WORD [WORD2]", help_behavior_hint="(one or two)"),
    ] = ()
    """The word, and what it reads as when it is turned: the same word by default."""
    view: Annotated[str | None, one_of(*VIEWS), _arg("view", "{" + ",".join(VIEWS) + "}")] = None
    """How it is turned: by half a turn, upside down, or left to right."""
    style: Annotated[TextOrNone, _arg("style", "TEXT")] = None
    """Style of the letters, in words: thin, light, regular, bold or heavy; italic; serif, sans or typewriter."""
    n: Annotated[
        WholeOrNone,
        tyro.conf.arg(aliases=["-n"], metavar="INT", help_behavior_hint="(default: 4 for rotate_180, 8 for others)"),
    ] = None
    """Candidates of each letter, of which the best is taken."""
    output: Annotated[
        PathOrNone, tyro.conf.arg(aliases=["-o"], metavar="FILE.png", help_behavior_hint="(default: ambigram.png)")
    ] = None  # fmt: skip
    """The word both ways, and how well each letter is read. With --like the default is NAME-again.png."""
    gif: Annotated[PathOrNone, tyro.conf.arg(metavar="FILE.gif", help_behavior_hint=OPTIONAL)] = None
    """Also write an animation in which the word turns."""
    svg: Annotated[PathOrNone, tyro.conf.arg(metavar="FILE.svg", help_behavior_hint=OPTIONAL)] = None
    """Also write the word's outlines. Needs the extra `svg`."""
    npz: Annotated[PathOrNone, tyro.conf.arg(metavar="FILE.npz", help_behavior_hint=OPTIONAL)] = None
    """Also write the letters as arrays."""
    like: Annotated[PathOrNone, tyro.conf.arg(metavar="FILE.png", help_behavior_hint=OPTIONAL)] = None
    """A picture of this command, whose settings become the defaults of all other flags."""
    paper: Annotated[TextOrNone, _arg("paper", "COLOUR")] = None
    """Colour of the paper: a name or "#rrggbb"."""
    ink: Annotated[TextOrNone, _arg("ink", "COLOUR")] = None
    """Colour of the ink."""
    model: Annotated[TextOrNone, _arg("model", "NAME|FOLDER")] = None
    """The model of letters."""
    steps: Annotated[WholeOrNone, _arg("steps", "INT")] = None
    """Steps of the sampler, 1 to 1000."""
    guidance: Annotated[NumberOrNone, _arg("guidance", "FLOAT")] = None
    """Guidance scale of each reading."""
    push: Annotated[NumberOrNone, _arg("push", "FLOAT")] = None
    """How far a judge's gradient pushes each letter to its two readings in a noisy step, 0 to 2; 0 for not at all."""
    seed: Annotated[WholeOrNone, _arg("seed", "INT")] = None
    """Random seed."""
    quiet: bool = False
    """Show no progress bar."""

    def __call__(self) -> Done:
        """Draws and writes; returns what was written."""
        settings = self.settings()
        output = self.sheet()
        flags = (("--gif", self.gif, ".gif"), ("--svg", self.svg, ".svg"), ("--npz", self.npz, ".npz"))
        named = [("-o", output, ".png"), *((flag, path, suffix) for flag, path, suffix in flags if path is not None)]
        for flag, path, suffix in named:
            check_output(flag, path, suffix)
        check_distinct([(flag, path) for flag, path, _ in named], [] if self.like is None else [("--like", self.like)])
        from jdiff.letters import ambigrams, captions, page, spelling

        words = settings["words"]
        demand(len(words) in (1, 2), f"ambigram takes one word or two, got {len(words)}; write jdiff ambigram swims")
        word, turned = words[0], words[-1]
        accepted(lambda: spelling.check(word))
        accepted(lambda: spelling.check(turned, "WORD2"))
        accepted(lambda: spelling.places(word, turned, settings["view"]))
        accepted(lambda: captions.read_style(settings["style"]))
        colours = [accepted(lambda flag=flag: page.colour(settings[flag], f"--{flag}")) for flag in ("paper", "ink")]
        if self.svg is not None:
            accepted(page.tracer)

        start_jax()
        import jax

        from jdiff import mesh
        from jdiff.model import load

        model = accepted(lambda: load(settings["model"]))
        wanted = "--model must be a model of letters, such as letters"
        demand(ambigrams.is_letters(model), f"{wanted}, got {settings['model']!r}")
        if self.like is not None:
            _note_other_model(images.read_settings(self.like), settings["model"], model.hash)
        how = {name: settings[name] for name in TAKEN}
        how["mesh"] = mesh.over_devices()
        with Bar(settings["steps"], unit="step", label="compiling", quiet=self.quiet, delay=PATIENCE) as bar:
            how["progress"] = lambda done, total: bar.update(done, total, label="sampling")
            key = jax.random.key(settings["seed"])
            made = accepted(lambda: ambigrams.ambigram(model, word, turned, key=key, **how))
        worst = int(made.scores.min(axis=1).argmin())
        what = f"the worst letter is {' / '.join(made.pairs[worst])} with {made.scores[worst].min():.0%}"
        what = f"{made.word} / {made.turned} is {made.verdict}; {what}"
        return write(self.outputs(output, made, settings | {"hash": model.hash}, colours), what)

    def sheet(self) -> Path:
        """Returns the path of the sheet. By default it is not the picture of --like."""
        if self.output is not None:
            return self.output
        return Path("ambigram.png") if self.like is None else self.like.with_name(f"{self.like.stem}-again.png")

    def settings(self) -> images.Settings:
        """Returns all settings: those given, then those of --like, then the defaults."""
        given = {name: getattr(self, name) for name in SETTINGS if getattr(self, name) not in (None, ())}
        before: images.Settings = {}
        if (like := self.like) is not None:
            check_local("--like", like)
            demand(is_unicode(str(like)), f"--like must be a path in UTF-8, got {str(like)!a}")
            before = accepted(lambda: images.read_settings(like), "--like: ")
            demand(before.get("command") == "ambigram", f"--like must be a picture of jdiff ambigram, got {like}")
            if isinstance(before.get("model"), str):
                before = before | {"model": found_folder(before["model"], like.parent)}
        older = {"push": 0.0} if before and "push" not in before else {}  # older versions had none
        found = SETTINGS | older | {name: before[name] for name in SETTINGS if name in before} | given
        found["words"] = list(found["words"]) if isinstance(found["words"], list | tuple) else [found["words"]]
        texts = [(f"--{name}", found[name]) for name in ("view", "style", "model", "paper", "ink")]
        for flag, value in [*texts, *(("a word", word) for word in found["words"])]:
            demand(isinstance(value, str) and is_unicode(value), f"{flag} must be text in UTF-8, got {value!a}")
        demand(found["view"] in VIEWS, f"--view must be one of {', '.join(VIEWS)}, got {found['view']}")
        found["n"] = CANDIDATES[str(found["view"])] if found["n"] is None else found["n"]
        demand(found["model"] != "", "--model must be the name or folder of a model, got ''")
        for name, least, most in (("n", 1, 1024), ("steps", 1, 1000), ("seed", 0, LARGEST_SEED)):
            value, flag = found[name], "-n" if name == "n" else f"--{name}"
            good = isinstance(value, int) and least <= value <= most
            demand(good, f"{flag} must be between {least} and {most}, got {value}")
        guidance = found["guidance"]
        good = isinstance(guidance, int | float) and abs(guidance) <= LARGEST_NUMBER
        demand(good, f"--guidance must be a finite number, got {str(guidance)[:40]}")
        push = found["push"]
        good = isinstance(push, int | float) and 0 <= push <= 2
        demand(good, f"--push must be between 0 and 2, got {str(push)[:40]}")
        return found

    def outputs(
        self, output: Path, made: Any, settings: images.Settings, colours: list[tuple[int, int, int]]
    ) -> list[Output]:
        """Returns the files to write. `made` is an Ambigram of the library, whose type would import JAX."""
        from jdiff.letters import page

        settings = settings | {"command": "ambigram", "verdict": made.verdict, "scores": made.scores.tolist()}
        settings["versions"] = {"jdiff": jdiff.__version__}

        def arrays(path: Path) -> None:
            with images.beside(path) as file:
                pairs = np.array([list(pair) for pair in made.pairs])
                np.savez_compressed(file, images=made.glyphs, scores=made.scores, pairs=pairs)

        paper, ink = colours
        outputs = [Output(output, lambda: images.save(output, page.page(made, paper, ink), settings))]
        if (npz := self.npz) is not None:
            outputs.append(Output(npz, lambda: arrays(npz)))
        if (svg := self.svg) is not None:
            outputs.append(Output(svg, lambda: page.save_svg(svg, made, paper, ink)))
        if (gif := self.gif) is not None:
            outputs.append(Output(gif, lambda: images.save_gif(gif, page.frames(made, paper, ink), seconds=3.0)))
        return outputs


def _note_other_model(before: images.Settings, model: str, now: str) -> None:
    """Notes where the model of this name has changed since a picture was drawn."""
    old = before.get("hash")
    if isinstance(old, str) and old != now:
        note(f"the model {model} differs from when the picture was drawn (hash {now[:12]}, was {old[:12]}), and may "
             "change it")  # fmt: skip
