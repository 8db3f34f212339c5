"""A model's folder, in diffusers' layout, as `jdiff.load` reads it."""

import dataclasses
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jdiff.checkpoints import convert
from jdiff.images import beside
from jdiff.networks import unet
from jdiff.types import Params


def write_network(
    folder: str | Path, kind: str, params: Params, config: Mapping[str, Any], dtype: str | None = None
) -> None:
    """Writes one network: config.json and model.safetensors, each beside and then renamed.

    Args:
        folder: such as MODEL/unet.
        kind: "unet" or "t5".
        params: nested dict of arrays.
        config: contents of config.json.
        dtype: of the arrays written; their own if None.

    Raises:
        ValueError: the parameters are no floats.
        OSError: a file cannot be written.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    flat = {path: np.asarray(a, dtype) for path, a in convert.flatten(params).items()}
    written = dtype or " and ".join(sorted({a.dtype.name for a in flat.values()}))
    convert.save(folder / "model.safetensors", flat, {"kind": kind, "dtype": written, "content": convert.content(flat)})
    write_json(folder / "config.json", config)


def write_json(path: str | Path, contents: Mapping[str, Any]) -> None:
    """Writes a JSON file beside and renames it."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with beside(path) as file:
        file.write((json.dumps(contents, indent=2) + "\n").encode())


def unet_config(config: unet.Config) -> dict[str, Any]:
    """Returns the contents of a UNet's config.json, under diffusers' names."""
    fixed = {key: value for key, (value, _) in unet.FIXED.items()}
    return {"_class_name": "UNet2DConditionModel"} | fixed | dataclasses.asdict(config)


def write_model(
    folder: str | Path,
    config: unet.Config,
    params: Params,
    *,
    scheduler: Mapping[str, Any],
    defaults: Mapping[str, Any],
    text_encoder: str | Path | None = None,
) -> None:
    """Writes a model's folder.

    Args:
        folder: new, or one whose files are replaced.
        config: of the UNet.
        params: of the UNet.
        scheduler: contents of scheduler_config.json.
        defaults: contents of defaults.json, fields of `jdiff.model.Defaults`.
        text_encoder: folder of a text encoder whose files are copied; None leaves the model without one.

    Raises:
        OSError: a file cannot be written.
    """
    folder = Path(folder)
    write_network(folder / "unet", "unet", params, unet_config(config))
    write_json(folder / "scheduler" / "scheduler_config.json", scheduler)
    write_json(folder / "defaults.json", defaults)
    if text_encoder is not None and Path(text_encoder).resolve() != (folder / "text_encoder").resolve():
        (folder / "text_encoder").mkdir(exist_ok=True)
        for file in sorted(path for path in Path(text_encoder).iterdir() if path.is_file()):
            with open(file, "rb") as source, beside(folder / "text_encoder" / file.name) as target:
                shutil.copyfileobj(source, target)
