"""Conversion of a whole folder: weights of DeepFloyd IF and T5 from diffusers' and transformers' files into ours."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from jdiff.checkpoints import digests, files, int8, names, sources
from jdiff.checkpoints.sources import Source
from jdiff.parts import new_folder

STORED = ("float32", "bfloat16", "float16")  # dtypes that any network is written in
# Files of a tokenizer: the first is SentencePiece's, without which there is none.
TOKENIZER = (
    "spiece.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "tokenizer.json",
)  # fmt: skip


def forms(path: str, shape: tuple[int, ...], dtype: str) -> dict[str, tuple[np.dtype, tuple[int, ...]]]:
    """Returns the dtype and shape in which one parameter is written, for each tensor that it becomes.

    With int8 a kernel [i o] becomes the kernel and its scale [o], the vocabulary float16, and the rest float32.

    Args:
        path: dotted path of the parameter.
        shape: its shape.
        dtype: one of `STORED`, or int8.

    Returns:
        {dotted path: (dtype, shape)}.

    Example:
        >>> [(path, str(dtype), shape) for path, (dtype, shape) in forms("q.kernel", (3, 2), "int8").items()]
        [('q.kernel', 'int8', (3, 2)), ('q.scale', 'float32', (2,))]
    """
    if dtype != "int8":
        return {path: (np.dtype(dtype), shape)}
    if path.endswith(".kernel"):
        scale = path.removesuffix("kernel") + "scale"
        return {path: (np.dtype(np.int8), shape), scale: (np.dtype(np.float32), shape[-1:])}
    return {path: (np.dtype(np.float16 if path == "shared.embedding" else np.float32), shape)}


def convert(src: str | Path, dst: str | Path, dtype: str = "float32") -> Path:
    """Converts a diffusers or transformers folder to a new folder that `jdiff.load` reads.

    The new folder has `unet/` and `text_encoder/`, each with config.json and model.safetensors, the tokenizer's files
    beside the encoder, and `scheduler/`. Memory use is about the largest tensor.

    Args:
        src: a pipeline's folder, its `unet/` or `text_encoder/`, or the folder of a T5 encoder, with weights in
            safetensors: one file, shards, or an fp16 variant, which is used if there is nothing else.
        dst: the new folder.
        dtype: float32, bfloat16 or float16; int8 for a T5 encoder alone.

    Returns:
        `dst`.

    Raises:
        ValueError: everything that is wrong with the arguments and weights. Nothing is left behind.
        OSError: a file cannot be written. Nothing is left behind.
    """
    src, dst = Path(src), Path(dst)
    if dtype not in (*STORED, "int8"):
        raise ValueError(f"dtype must be {', '.join(STORED)}, or int8 for a T5 encoder, got {dtype!r}")
    if dst.exists():
        raise ValueError(f"dst must be a new folder, got {dst}, which exists")
    if not (networks := sources.networks(src)):
        raise ValueError(f"src must be a folder with config.json or unet/ in it, got {src}")
    if dtype == "int8" and "unet" in networks:
        alone = f"; convert {networks['t5']} alone, and the rest in another dtype" if "t5" in networks else ""
        raise ValueError(f"dtype must be {', '.join(STORED)} for the UNet in {src}, got 'int8'{alone}")
    plans: list[Source] = []
    bad: list[str] = []
    for kind, folder in networks.items():
        plan, mistakes = sources.plan(kind, folder)
        bad += mistakes
        plans += [plan] if plan else []
    if bad:
        for plan in plans:
            for _ in _stream(plan, dtype, bad):  # says what is wrong with the values too
                pass
        raise ValueError(sources.listed(src, bad))
    with new_folder(dst) as part:
        for plan in plans:
            folder = part / names.KINDS[plan.kind].folder
            folder.mkdir(parents=True)
            shutil.copyfile(plan.folder / "config.json", folder / "config.json")
            leaves = {}
            for path, tensor in plan.tensors.items():
                leaves |= forms(path, tensor.shape, dtype)
            told = {"dtype": dtype, "kind": plan.kind, "sha256": digests.together(plan.paths)}
            files.write(folder / sources.OURS, leaves, _stream(plan, dtype, bad), told)
        if bad:
            raise ValueError(sources.listed(src, bad))
        if "t5" in networks:
            for file in tokenizer(networks["t5"]):
                shutil.copyfile(file, part / "text_encoder" / file.name)
        above = [src.parent] if networks.get("unet") == src else []
        for folder in [src, *above]:
            if "unet" in networks and (settings := folder / "scheduler" / "scheduler_config.json").is_file():
                (part / "scheduler").mkdir()
                shutil.copyfile(settings, part / "scheduler" / settings.name)
                break
    return dst


def tokenizer(encoder: Path) -> list[Path]:
    """Returns the files of an encoder's tokenizer: beside its weights, or in the `tokenizer/` of its pipeline."""
    beside = [encoder.parent / "tokenizer"] if encoder.absolute().name == names.KINDS["t5"].folder else []
    found = next((folder for folder in [encoder, *beside] if (folder / TOKENIZER[0]).is_file()), None)
    return [found / name for name in TOKENIZER if (found / name).is_file()] if found else []


def _stream(plan: Source, dtype: str, bad: list[str]) -> Iterator[np.ndarray]:
    """What each tensor is written as, one at a time; what is not finite is added to `bad`."""
    for path, tensor in plan.tensors.items():
        leaves = forms(path, tensor.shape, dtype)
        if len(leaves) == 1:
            yield sources.finite(path, tensor, leaves[path][0], bad)
        else:
            mistakes = len(bad)
            x = sources.finite(path, tensor, np.dtype(np.float32), bad)
            yield from int8.quantise(x if len(bad) == mistakes else np.zeros_like(x))  # the file is thrown away
