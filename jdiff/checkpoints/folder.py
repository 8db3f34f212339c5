"""A model's folder: writing the network, text encoder, noise schedule and defaults, and reading weights again."""

import dataclasses
import json
import os
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jdiff.checkpoints import convert, files, sources
from jdiff.networks import t5, unet
from jdiff.types import Json, Params

PARTS = ("unet", "text_encoder", "scheduler", "defaults.json")  # what a model's folder holds


class ByteEncoder(NamedTuple):
    """A T5 encoder over the bytes of a prompt, to be written."""

    config: t5.Config
    params: Params
    length: int  # tokens of a prompt
    clean: str = "lower"  # how prompts are cleaned, a key of `jdiff.text.cleaning.CLEANING`


def write_model(
    folder: str | Path,
    config: unet.Config,
    params: Params,
    *,
    scheduler: Json,
    defaults: Json,
    text_encoder: ByteEncoder | Path | None = None,
) -> None:
    """Writes a model's folder, which `jdiff.load` reads.

    It holds `unet/`, `text_encoder/`, `scheduler/` and `defaults.json`. The safetensors files carry a digest of their
    content.

    Args:
        folder: a new folder, or one that a model was saved to before: its model is replaced, other files stay.
        config: the UNet's sizes.
        params: the UNet's parameters, which keep their dtypes.
        scheduler: contents of scheduler_config.json, as `scheduler.written` returns it.
        defaults: contents of defaults.json.
        text_encoder: an encoder's parameters, or the folder of an encoder, which is copied. None writes no encoder;
            prompts are then read from embeddings.

    Raises:
        ValueError: the parameters do not fit the config, or the folder holds something else.
        OSError: a file cannot be written. What was in the folder is still there.
    """
    folder = Path(folder)
    _check(folder)
    flat = files.flatten(params)
    files.unflatten(flat, unet.unet(config).params)  # refuses the parameters of another network
    fixed = {key: value for key, (value, _) in unet.FIXED.items()}
    part = folder.with_name(f".{folder.name[:200]}.{uuid.uuid4().hex[:12]}.part")
    try:
        part.mkdir(parents=True)
        told = {"_class_name": "UNet2DConditionModel"} | fixed | dataclasses.asdict(config)
        _network(part / "unet", "unet", told, flat)
        if isinstance(text_encoder, ByteEncoder):
            told = {"model_type": "t5", "feed_forward_proj": "gated-gelu", "tokenizer_class": "ByT5Tokenizer"}
            told |= {"max_length": text_encoder.length, "clean": text_encoder.clean} | dataclasses.asdict(
                text_encoder.config
            )
            _network(part / "text_encoder", "t5", told, files.flatten(text_encoder.params))
        elif text_encoder is not None:
            copy_encoder(text_encoder, part / "text_encoder")
        (part / "scheduler").mkdir()
        _json(part / "scheduler" / "scheduler_config.json", scheduler)
        _json(part / "defaults.json", defaults)
        if folder.exists():
            _swap(part, folder)
        else:
            os.rename(part, folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def first_weights(folder: Path, copy: Path, config: unet.Config, text_config: t5.Config) -> tuple[Params, Params]:
    """Reads the weights of a UNet and its text encoder, in float32, which a training starts from.

    It copies the model's folder first, unless there is a copy already, and reads the copy. So the trained model can be
    written to the same folder, and a training that continues still has its start.

    Args:
        folder: folder of the model, as `write_model` writes it.
        copy: folder of the copy.
        config: the UNet's sizes.
        text_config: the text encoder's sizes.

    Raises:
        ValueError: there is no such model, or its weights are of other sizes. Nothing is copied.
    """
    if not copy.is_dir():
        _weights(folder, config, text_config)
        part = copy.with_name(f"{copy.name}.part")
        shutil.copytree(folder, part, dirs_exist_ok=True)
        part.rename(copy)
    return _weights(copy, config, text_config)


def _weights(folder: Path, config: unet.Config, text_config: t5.Config) -> tuple[Params, Params]:
    wanted = {"unet": unet.unet(config).params, "text_encoder": t5.t5(text_config)[1]}
    if missing := [name for name in wanted if not (folder / name / sources.OURS).is_file()]:
        raise ValueError(f"a model to start from must have {missing[0]}/{sources.OURS}, got {str(folder)!r}")
    read = [files.load(folder / name / sources.OURS, shapes, dtype=np.float32) for name, shapes in wanted.items()]
    network, text = jax.tree.map(jnp.asarray, read)
    return network, text


def copy_encoder(src: Path, dst: Path) -> None:
    """Writes the text encoder of one folder into a new one, with its tokenizer; weights of transformers are converted.

    Args:
        src: the encoder's own folder, with its config.json.
        dst: the new folder.

    Raises:
        ValueError: `src` holds no T5 encoder.
    """
    source = sources.find("t5", src)
    dst.mkdir(parents=True)
    for path in (src / "config.json", *convert.tokenizer(src)):
        shutil.copyfile(path, dst / path.name)
    if source.ours:
        shutil.copyfile(src / sources.OURS, dst / sources.OURS)
        return
    leaves = {path: (files.READ[tensor.entry.dtype], tensor.shape) for path, tensor in source.tensors.items()}
    leaves = dict(sorted(leaves.items(), key=lambda leaf: -leaf[1][0].itemsize))  # keeps all aligned
    files.write(dst / sources.OURS, leaves, (source.tensors[path].read() for path in leaves), {"kind": "t5"})


def _check(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"folder must be a new folder or one of a model, got {folder}, which is a file")
    if any((folder / name).exists() for name in PARTS) and not sources.is_ours(folder / "unet"):
        raise ValueError(
            f"folder must be new, or one that a model was saved to, got {folder}, which holds other files; give another"
        )


def _network(folder: Path, kind: str, config: Json, flat: Mapping[str, Any]) -> None:
    folder.mkdir()
    _json(folder / "config.json", config)
    files.save(folder / sources.OURS, {path: np.asarray(x) for path, x in flat.items()}, {"kind": kind})


def _json(path: Path, value: Json) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")


def _swap(part: Path, folder: Path) -> None:
    """Puts the parts of a new model into a folder in the place of the old one's, or leaves the old one."""
    old = part / "old"
    old.mkdir()
    try:
        for name in PARTS:
            if (folder / name).exists():
                os.rename(folder / name, old / name)
            if (part / name).exists():
                os.rename(part / name, folder / name)
    except BaseException:
        for name in PARTS:
            if (old / name).exists():
                if (folder / name).exists():
                    os.rename(folder / name, part / name)
                os.rename(old / name, folder / name)
        raise
