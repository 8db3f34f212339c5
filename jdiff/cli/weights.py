"""The commands for weights and embeddings: convert and embed."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from jdiff.cli import cache
from jdiff.cli.errors import BadInput, accepted, check_distinct, check_output, demand, is_unicode, one_line
from jdiff.cli.flags import OPTIONAL, REQUIRED, Dtype, PathOrNone, TextOrNone, one_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np


@dataclasses.dataclass
class Convert:
    """Converts weights of DeepFloyd IF or of a T5 encoder to a folder that jdiff loads."""

    source: Annotated[
        tyro.conf.Positional[PathOrNone], tyro.conf.arg(metavar="SRC", help_behavior_hint=REQUIRED)
    ] = None  # fmt: skip
    """Folder of diffusers or transformers, with config.json and weights in safetensors. Or on the hub: OWNER/NAME for
    its UNet, OWNER/NAME/text_encoder for its encoder."""
    target: Annotated[
        tyro.conf.Positional[PathOrNone], tyro.conf.arg(metavar="DST", help_behavior_hint=REQUIRED)
    ] = None  # fmt: skip
    """The new folder."""
    dtype: Annotated[str, one_of("float32", "bfloat16", "float16", "int8")] = "float32"
    """Type of the weights written. int8 is for a T5 encoder only: 8 bits a number, and a scale per output channel."""

    def __call__(self) -> str:
        """Writes the folder; returns a line that says so."""
        demand(self.source is not None, "SRC is missing; give the folder to convert")
        demand(self.target is not None, "DST is missing; give the new folder to write")
        assert self.source is not None and self.target is not None
        source, target = self.source, self.target
        for name, path in (("SRC", source), ("DST", target)):
            demand(is_unicode(str(path)), f"{name} must be a path in UTF-8, got {str(path)!a}")
        from jdiff.checkpoints import hub
        from jdiff.checkpoints.convert import convert

        demand(not _exists(target), f"DST must be a new folder, got {target}, which exists")
        above = target.absolute().parent
        demand(above.is_dir(), f"DST must be in a folder that exists, got {target}")
        if hub.is_name(source):
            source = accepted(lambda: hub.find(str(source), half=self.dtype != "float32"))
        demand(_exists(source) and source.is_dir(), f"SRC must be a folder with config.json in it, got {source}")
        try:
            convert(source, target, dtype=self.dtype)
        except ValueError as error:
            raise BadInput(one_line(error)) from error
        return f"wrote {target}"


@dataclasses.dataclass
class Embed:
    """Writes prompt embeddings to a file that every command takes as --prompts, or lists the prompts of a file."""

    prompts: Annotated[
        tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="PROMPT...", help_behavior_hint=OPTIONAL)
    ] = ()
    """What to embed, each prompt in quotes."""
    encoder: Annotated[TextOrNone, tyro.conf.arg(metavar="FOLDER|NAME", help_behavior_hint=OPTIONAL)] = None
    """The text encoder: a folder that `jdiff convert` or transformers wrote, or OWNER/NAME/text_encoder on the hub."""
    embeddings: Annotated[PathOrNone, tyro.conf.arg(name="prompts", metavar="FILE", help_behavior_hint=OPTIONAL)] = None
    """A file whose embeddings are written too: .pth, .npy, .npz or .safetensors."""
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"], metavar="FILE.safetensors")] = Path("prompts.safetensors")
    """The file of embeddings."""
    dtype: Dtype = "float32"
    """What the encoder computes in. New embeddings are written in float32, those of a file as they are in it."""
    clean: Annotated[str, one_of("none", "lower", "caption")] = "lower"
    """What is done to a prompt first: nothing, lower case, or DeepFloyd's caption cleaning (extra `text`)."""
    list: Annotated[PathOrNone, tyro.conf.arg(metavar="FILE", help_behavior_hint=OPTIONAL)] = None
    """Only list the prompts of this file."""

    def __call__(self) -> str:
        """Writes the file, or lists one; returns the lines that say so."""
        from jdiff.text import embeddings
        from jdiff.text import encoder as encoders

        if self.list is not None:
            return "\n".join(f"{prompt!r} {[*x.shape]} {x.dtype}" for prompt, x in known("--list", self.list).items())
        for prompt in self.prompts:
            demand(is_unicode(prompt), f"a prompt must be text in UTF-8, got {prompt!a}")
        given = bool(self.prompts) or self.embeddings is not None
        demand(given, "no prompt is given; give one or more, such as jdiff embed 'a red three' --encoder FOLDER")
        check_output("-o", self.output, ".safetensors")
        check_distinct([("-o", self.output)], [("--prompts", self.embeddings)] if self.embeddings else [])
        table = dict(known("--prompts", self.embeddings))
        missing = [prompt for prompt in dict.fromkeys(self.prompts) if prompt not in table]
        if missing:
            demand(bool(self.encoder), f"--encoder must be {encoders.ACCEPTED}, got none")
            cache.keep_compilations()
            kept = cache.usable("prompts")
            make = lambda: embeddings.embedder(
                encoder=encoders.find(str(self.encoder), clean=self.clean, dtype=self.dtype, cache=kept), cache=kept
            )(missing)
            table |= dict(zip(missing, accepted(make), strict=True))
        embeddings.write(self.output, table)
        return f"wrote {self.output}: {len(table)} {'prompt' if len(table) == 1 else 'prompts'}"


def known(flag: str, path: Path | None) -> "Mapping[str, np.ndarray]":
    """Returns the embeddings in the file of a flag, by prompt; none where no file is given."""
    if path is None:
        return {}
    demand(is_unicode(str(path)), f"{flag} must be a path in UTF-8, got {str(path)!a}")
    from jdiff.text import embeddings

    return accepted(lambda: embeddings.read(path), f"{flag}: ")


def _exists(path: Path) -> bool:
    return accepted(path.exists, f"{path}: ")
