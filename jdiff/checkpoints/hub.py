"""Weights on a hub of models, by name: downloaded by huggingface_hub into its own cache, or found there."""

import re
from pathlib import Path

from jdiff.checkpoints import convert

NAME = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*?)(?:/(text_encoder))?")  # OWNER/NAME, and one part of it
BESIDE = {
    "unet": ("scheduler/scheduler_config.json",),
    "text_encoder": tuple(f"tokenizer/{f}" for f in convert.TOKENIZER),
}
WHERE = {kind.folder: kind.stem for kind in convert.KINDS.values()}


def is_name(name: str | Path) -> bool:
    """Whether `name` is a hub's OWNER/NAME or OWNER/NAME/text_encoder, and no folder here.

    >>> is_name("DeepFloyd/IF-I-L-v1.0"), is_name("DeepFloyd/IF-I-L-v1.0/text_encoder"), is_name("mini")
    (True, True, False)
    """
    return NAME.fullmatch(str(name)) is not None and not Path(name).exists()


def find(name: str, half: bool = False) -> Path:
    """Folder with the UNet and scheduler of OWNER/NAME as diffusers wrote them; or its encoder and tokenizer.

    OWNER/NAME/text_encoder asks for the latter. Only safetensors are downloaded, and of one variant: with `half` that
    in 16 bits (fp16) where there is one, otherwise that in full. They lie in huggingface_hub's cache; without a network
    what is there is taken. Who asks, huggingface_hub alone knows, from its login or $HF_TOKEN. Raises ValueError with
    what to do where access is not granted, where nothing is there, and without huggingface_hub (the extra `hub`).
    """
    if not (named := NAME.fullmatch(name)):
        raise ValueError(f"name is {name!r}, accepted is OWNER/NAME or OWNER/NAME/text_encoder, as on the hub")
    try:
        import huggingface_hub
        from huggingface_hub import constants, errors
    except ImportError as error:
        raise ValueError(f"{name} needs huggingface_hub to be fetched: pip install 'jdiff[hub]'") from error
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
            # what the hub answered, if it did: that nothing is in the cache is then not the reason
            answers = [e.response for e in (error, error.__cause__) if isinstance(e, errors.HfHubHTTPError)]
            status = answers[0].status_code if answers else None
            raise ValueError(_why(name, page, status, constants.HF_HUB_CACHE)) from error
        if any((Path(folder) / part).glob(f"{WHERE[part]}{suffix}.safetensors")):
            return Path(folder) / part if named[2] else Path(folder)
    raise ValueError(
        f"{name} has no {part}/{WHERE[part]}.safetensors on {page}, accepted is a model that diffusers wrote"
    )


def _why(name: str, page: str, status: int | None, cache: str) -> str:
    """Why it is not to be had, and what to do."""
    if status is None:
        return (
            f"{name} cannot be reached, and it is not, or not all of it, in {cache}: accepted is a network, or what "
            "was downloaded before"
        )
    if status in (401, 403, 404):
        return (
            f"{name} cannot be read (status {status}): if there is such a model, log in and accept its licence on "
            f"{page}, then give that login to `hf auth login` or $HF_TOKEN"
        )
    return f"{name} cannot be downloaded (status {status} of {page}): try again"
