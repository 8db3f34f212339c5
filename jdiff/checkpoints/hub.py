"""Finds models of the Hugging Face hub by name. huggingface_hub downloads them into its own cache."""

import os
import re
from pathlib import Path

from jdiff.checkpoints import convert, names

# OWNER/NAME, and one part of it.
NAME = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*?)(?:/(text_encoder))?")
BESIDE = {
    "unet": ("scheduler/scheduler_config.json",),
    "text_encoder": tuple(f"tokenizer/{f}" for f in convert.TOKENIZER),
}
WHERE = {kind.folder: kind.stem for kind in names.KINDS.values()}


def is_name(name: str | Path) -> bool:
    """Whether `name` is a hub's OWNER/NAME or OWNER/NAME/text_encoder, and not a path.

    A name whose first part is a folder here is a path.

    Example:
        >>> is_name("DeepFloyd/IF-I-L-v1.0"), is_name("DeepFloyd/IF-I-L-v1.0/text_encoder"), is_name("mini")
        (True, True, False)
    """
    return NAME.fullmatch(str(name)) is not None and not os.path.exists(Path(name).parts[0])


def find(name: str, half: bool = False) -> Path:
    """Finds a model of the hub, and downloads what is missing of it.

    Only safetensors are downloaded, and of one variant. They lie in huggingface_hub's cache; without a network that
    cache alone is searched. Access is granted by huggingface_hub's own login or $HF_TOKEN.

    Args:
        name: OWNER/NAME, for the UNet and the scheduler; OWNER/NAME/text_encoder, for the text encoder and its
            tokenizer.
        half: whether the fp16 variant is preferred where there are both.

    Returns:
        A folder as diffusers wrote it: the pipeline's, or the text encoder's.

    Raises:
        ValueError: what is missing and what to do: access, a network, the weights, or the extra `hub`.
    """
    if not (named := NAME.fullmatch(name)):
        raise ValueError(f"name must be OWNER/NAME or OWNER/NAME/text_encoder, as on the hub, got {name!r}")
    try:
        import huggingface_hub
        from huggingface_hub import constants, errors
    except ImportError as error:
        raise ValueError(f"{name} needs huggingface_hub to be downloaded: pip install huggingface_hub") from error
    repository, part = named[1], named[2] or "unet"
    page = f"{constants.ENDPOINT}/{repository}"
    for variant in (True, False) if half else (False, True):
        suffix = "*fp16*" if variant else "*"
        weights = [f"{part}/{WHERE[part]}{suffix}.{kind}" for kind in ("safetensors", "json")]
        try:
            folder = huggingface_hub.snapshot_download(
                repository,
                allow_patterns=[*weights, f"{part}/config.json", *BESIDE[part]],
                ignore_patterns=None if variant else ["*fp16*"],
            )
        except (errors.LocalEntryNotFoundError, errors.HfHubHTTPError) as error:
            # if the hub answered, its answer is the reason, not that nothing is in the cache
            answers = [e.response for e in (error, error.__cause__) if isinstance(e, errors.HfHubHTTPError)]
            status = answers[0].status_code if answers else None
            raise ValueError(_why(name, page, status, constants.HF_HUB_CACHE)) from error
        if any((Path(folder) / part).glob(f"{WHERE[part]}{suffix}.safetensors")):
            return Path(folder) / part if named[2] else Path(folder)
    raise ValueError(f"{name} has no {part}/{WHERE[part]}.safetensors on {page}; give a model in diffusers' format")


def _why(name: str, page: str, status: int | None, cache: str) -> str:
    """Why a model cannot be had, and what to do."""
    if status is None:
        return (
            f"{name} cannot be downloaded, because there is no connection, and {cache} does not have all of it; "
            "connect, or give a folder"
        )
    if status in (401, 403, 404):
        return (
            f"{name} cannot be read (status {status}). If the name is right, accept its licence on {page}, and log in "
            "by `hf auth login` or with $HF_TOKEN"
        )
    return f"{name} cannot be downloaded (status {status} of {page}); try again"
