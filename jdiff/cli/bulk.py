"""`jdiff bulk`: its flags, what it checks, and how it goes on where it stopped. JAX is imported late."""

import contextlib
import dataclasses
import math
import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from jdiff.cli import cache
from jdiff.cli.errors import BadInput, Failure, accepted, demand, is_unicode, one_line
from jdiff.cli.flags import (
    LARGEST_SEED,
    MODEL_DEFAULT,
    OPTIONAL,
    REQUIRED,
    Dtype,
    NumberOrNone,
    PathOrNone,
    TextOrNone,
    Whole,
    WholeOrNone,
    one_of,
)  # fmt: skip
from jdiff.cli.make import PATIENCE, start_jax
from jdiff.cli.process import note
from jdiff.progress import Bar

if TYPE_CHECKING:
    from jdiff.bulk.job import Made, Options
    from jdiff.bulk.prompts import Prompts
    from jdiff.bulk.shards import Layout

LARGEST_SHARD = 10**6
FIRST = 1000  # prompts whose words are checked
BROKEN = 10  # numbers of broken pictures that a note lists


@dataclasses.dataclass
class Bulk:
    """Draws many pictures of many prompts, in shards, on any number of devices and machines."""

    prompts: Annotated[
        tyro.conf.Positional[PathOrNone], tyro.conf.arg(metavar="PROMPTS.txt", help_behavior_hint=REQUIRED)
    ] = None  # fmt: skip
    """A text file with a prompt on each line, of any length."""
    n: Annotated[Whole, tyro.conf.arg(aliases=["-n"], metavar="INT")] = 1
    """Pictures of each prompt."""
    output: Annotated[
        PathOrNone, tyro.conf.arg(aliases=["-o"], metavar="DIR", help_behavior_hint=REQUIRED)
    ] = None  # fmt: skip
    """The folder of the shards. Run the same command again to make only the shards that are missing."""
    format: Annotated[str, one_of("parquet", "png")] = "parquet"
    """What a shard is: a Parquet file, which pandas and datasets read (extra `bulk`), or a folder of PNGs."""
    shard_size: Annotated[Whole, tyro.conf.arg(metavar="INT")] = 1000
    """Pictures in a shard."""
    shards: Annotated[TextOrNone, tyro.conf.arg(metavar="i/n", help_behavior_hint=OPTIONAL)] = None
    """Make share i of n of the shards, counted from 0. Given n alone, i comes from SLURM or Kubernetes. By default both
    come from there."""
    ray: Annotated[TextOrNone, tyro.conf.arg(metavar="ADDRESS|local", help_behavior_hint=OPTIONAL)] = None
    """Make the shards on a Ray cluster (extra `ray`): its address, auto, or local for a new one on this machine."""
    workers: Annotated[
        WholeOrNone, tyro.conf.arg(metavar="INT", help_behavior_hint="(default: one a device)")
    ] = None  # fmt: skip
    """Workers of the Ray cluster."""
    model: Annotated[str, tyro.conf.arg(metavar="NAME|FOLDER")] = "mini"
    """The model: mini, the folder of a converted one, or OWNER/NAME of one on the hub."""
    steps: Annotated[WholeOrNone, tyro.conf.arg(metavar="INT", help_behavior_hint=MODEL_DEFAULT)] = None
    """Steps of the sampler, 1 to 1000."""
    guidance: Annotated[NumberOrNone, tyro.conf.arg(metavar="FLOAT", help_behavior_hint=MODEL_DEFAULT)] = None
    """Guidance scale: how strongly the picture follows the prompt. 1 is no guidance."""
    negative: Annotated[str, tyro.conf.arg(metavar="PROMPT", help_behavior_hint=OPTIONAL)] = ""
    """Negative prompt: what the picture should not show."""
    sampler: Annotated[TextOrNone, tyro.conf.arg(metavar="NAME", help_behavior_hint=MODEL_DEFAULT)] = None
    """Sampler, such as diffusers, deepfloyd or course. A wrong name lists them all."""
    seed: Annotated[Whole, tyro.conf.arg(metavar="INT")] = 0
    """Random seed. Picture k of the folder depends on the seed and k alone, not on where it is drawn."""
    dtype: Dtype = "float32"
    """Number type of the network. Everything else is float32."""
    batch: Annotated[WholeOrNone, tyro.conf.arg(metavar="INT", help_behavior_hint="(default: by their size)")] = None
    """Pictures that a device draws in one call."""
    embeddings: Annotated[PathOrNone, tyro.conf.arg(name="prompts", metavar="FILE", help_behavior_hint=OPTIONAL)] = None
    """A file of prompt embeddings. Prompts that it holds need no text encoder."""
    encoder: Annotated[TextOrNone, tyro.conf.arg(metavar="FOLDER|NAME", help_behavior_hint=MODEL_DEFAULT)] = None
    """The text encoder for all other prompts: a folder that `jdiff convert` or transformers wrote, or
    OWNER/NAME/text_encoder on the hub."""
    quiet: bool = False
    """Show no progress bar."""

    def __call__(self) -> str:
        """Draws and writes; returns a line that says so."""
        self._check()
        from jdiff.bulk import cluster, shards, workers, write
        from jdiff.bulk.prompts import scan

        advice = write.lacking(self.format)
        demand(not advice, f"--format parquet needs pyarrow: {advice}, or give --format png")
        advice = cluster.lacking() if self.ray is not None else ""
        demand(not advice, f"--ray needs Ray: {advice}")
        # an allocation of SLURM may hold a Ray cluster, whose driver makes all shards
        environment = {} if self.ray is not None else os.environ
        share = accepted(lambda: workers.share(self.shards, environment))
        prompts = accepted(lambda: scan(self._prompts))
        layout = accepted(lambda: shards.layout(prompts.count, self.n, self.shard_size))
        mine = layout.mine(share.index, share.count)
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._opened())
            half = accepted(lambda: stack.enter_context(workers.holding(self._folder, share)))
            made = self._make(prompts, layout, mine, half)
        if made.broken:
            shown = ", ".join(map(str, made.broken[:BROKEN])) + (" and more" if len(made.broken) > BROKEN else "")
            what = "picture is" if len(made.broken) == 1 else "pictures are"
            note(f"{len(made.broken)} {what} not finite and left out: {shown}; try a wider --dtype than {self.dtype}, "
                 "or less --guidance")  # fmt: skip
        of = f" (share {share.index} of {share.count}, by {share.source})" if share.count > 1 else ""
        before = f"; {len(mine) - made.shards} were complete" if made.shards < len(mine) else ""
        return f"wrote {made.shards} of {len(mine)} shards{of} to {self._folder}: {made.pictures} pictures{before}"

    @property
    def _prompts(self) -> Path:
        if self.prompts is None:
            raise BadInput("PROMPTS.txt is missing; give a text file with a prompt on each line")
        return self.prompts

    @property
    def _folder(self) -> Path:
        if self.output is None:
            raise BadInput("-o is missing; give the folder of the shards")
        return self.output

    def _check(self) -> None:
        """Checks what needs no other module."""
        for flag, path in (("PROMPTS.txt", self._prompts), ("-o", self._folder), ("--prompts", self.embeddings)):
            demand(path is None or is_unicode(str(path)), f"{flag} must be a path in UTF-8, got {str(path)!a}")
        texts = [("--model", self.model), ("--negative", self.negative), ("--encoder", self.encoder)]
        for flag, text in [*texts, ("--ray", self.ray), ("--shards", self.shards), ("--sampler", self.sampler)]:
            demand(text is None or is_unicode(text), f"{flag} must be text in UTF-8, got {text!a}")
        demand(self.model != "", "--model must be the name or folder of a model, got ''")
        demand(self.encoder != "", "--encoder must be a folder, got ''")
        demand(self.ray != "", "--ray must be the address of a cluster, or local, got ''")
        demand(
            self.workers is None or self.ray is not None,
            f"--workers needs --ray, got --workers {self.workers} alone; add --ray local, or leave it out",
        )
        for flag, value, least, most in (
            ("-n", self.n, 1, 10**6), ("--shard-size", self.shard_size, 1, LARGEST_SHARD),
            ("--steps", self.steps, 1, 1000), ("--seed", self.seed, 0, LARGEST_SEED),
            ("--batch", self.batch, 1, self.shard_size), ("--workers", self.workers, 1, 10**4),
        ):  # fmt: skip
            good = value is None or least <= value <= most
            demand(good, f"{flag} must be between {least} and {most}, got {value}")
        good = self.guidance is None or math.isfinite(self.guidance)
        demand(good, f"--guidance must be a finite number, got {self.guidance}")

    @contextlib.contextmanager
    def _opened(self) -> Iterator[None]:
        """Makes the folder, or checks that the job can go on in it. A new folder that stays empty is removed."""
        from jdiff.bulk import manifest

        folder = self._folder
        new = not accepted(folder.exists, "-o: ")
        if new:
            demand(folder.absolute().parent.is_dir(), f"-o must be in a folder that exists, got {folder}")
            accepted(lambda: folder.mkdir(exist_ok=True), "-o: ")
        demand(folder.is_dir(), f"-o must be a folder, got {folder}, which is a file")
        writable = os.access(folder, os.W_OK | os.X_OK)
        demand(writable, f"-o must be a folder that you can write to, got {folder}")
        accepted(lambda: manifest.check_folder(folder), "-o: ")
        try:
            yield
        finally:
            if new:
                with contextlib.suppress(OSError):  # not empty
                    folder.rmdir()

    def _make(self, prompts: "Prompts", layout: "Layout", mine: range, half: Path) -> "Made":
        from jdiff.bulk import cluster, job
        from jdiff.cli import grammar

        options = self._options()
        tell = lambda: grammar.note_unknown(Path(options.model).name, list(islice(prompts.each(), FIRST)))
        wanted = job.left(options, layout, mine)
        pictures = sum(len(layout.numbers(shard)) for shard in wanted)
        bar = lambda total, unit, label: Bar(total, unit=unit, label=label, quiet=self.quiet, delay=PATIENCE)
        try:
            if self.ray is not None:
                how = {"address": self.ray, "workers": self.workers, "environment": _environment()}
                tell()
                with bar(pictures, " images", "drawing") as drawing:
                    return cluster.run(options, wanted, half, told=drawing.update, **how)
            start_jax(cores=pictures > 1)
            with bar(prompts.count, " prompts", "starting") as starting:
                told = lambda what, done, total: starting.update(done, total, label=what)
                begun = job.start(options, prompts, told)
            tell()  # after the errors, since bad input is one line
            with bar(pictures, " images", "drawing") as drawing:
                return job.make(begun, wanted, half, drawing.update)
        except ValueError as error:
            raise BadInput(one_line(error)) from error
        except OSError as error:
            done = len(mine) - len(job.left(options, layout, mine))
            what = f"{done} of {len(mine)} shards are complete, and the same command goes on from there"
            raise Failure(f"{one_line(error)}; {what}") from error

    def _options(self) -> "Options":
        from jdiff.bulk.job import Options

        path = lambda given: None if given is None else str(given)
        return Options(
            prompts=str(self._prompts), folder=str(self._folder), model=self.model, n=self.n, steps=self.steps,
            guidance=self.guidance, negative=self.negative, sampler=self.sampler, seed=self.seed, dtype=self.dtype,
            encoder=self.encoder, embeddings=path(self.embeddings), shard_size=self.shard_size, batch=self.batch,
            format=self.format, cache=path(cache.usable("prompts")),
        )  # fmt: skip


def _environment() -> dict[str, str]:
    """What has the workers of a cluster keep XLA's programs, where this process does."""
    place = cache.usable("xla")
    return {} if place is None else {"JAX_COMPILATION_CACHE_DIR": str(place)}
