"""Tables of names: which tensor of a diffusers or transformers checkpoint is which parameter here, in which layout."""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from einops import EinopsError, rearrange

from jdiff.checkpoints import files
from jdiff.networks import t5, unet
from jdiff.types import Params

# (name in PyTorch, a regular expression that must match in full; path here; einops layout)
Rule = tuple[str, str, str]
LINEAR, CONV, SAME = "o i -> i o", "o i h w -> h w i o", "... -> ..."

_BLOCK = r"(?:down_blocks\.\d+|mid_block|up_blocks\.\d+)"
_RESNET = rf"(?:{_BLOCK}\.resnets\.\d+|down_blocks\.\d+\.downsamplers\.\d+|up_blocks\.\d+\.upsamplers\.\d+)"
_ATTENTION = rf"{_BLOCK}\.attentions\.\d+"
_EMBEDDING = r"(?:time_embedding|class_embedding)"

RULES: tuple[Rule, ...] = (
    (r"(conv_in|conv_out)\.weight", r"\1.kernel", CONV),
    (r"(conv_in|conv_out|conv_norm_out|encoder_hid_proj)\.bias", r"\1.bias", SAME),
    (r"conv_norm_out\.weight", r"conv_norm_out.scale", SAME),
    (r"encoder_hid_proj\.weight", r"encoder_hid_proj.kernel", LINEAR),
    (rf"({_EMBEDDING}\.linear_[12])\.weight", r"\1.kernel", LINEAR),
    (rf"({_EMBEDDING}\.linear_[12])\.bias", r"\1.bias", SAME),
    (r"(add_embedding\.norm[12])\.weight", r"\1.scale", SAME),
    (r"(add_embedding\.(?:proj|pool\.[qkv]_proj))\.weight", r"\1.kernel", LINEAR),
    (r"(add_embedding\.(?:norm[12]|proj|pool\.[qkv]_proj))\.bias", r"\1.bias", SAME),
    (r"add_embedding\.pool\.positional_embedding", r"add_embedding.pool.positional_embedding", SAME),
    (rf"({_RESNET}\.norm[12])\.weight", r"\1.scale", SAME),
    (rf"({_RESNET}\.(?:conv[12]|conv_shortcut))\.weight", r"\1.kernel", CONV),
    (rf"({_RESNET}\.time_emb_proj)\.weight", r"\1.kernel", LINEAR),
    (rf"({_RESNET}\.(?:norm[12]|conv[12]|conv_shortcut|time_emb_proj))\.bias", r"\1.bias", SAME),
    (rf"({_ATTENTION}\.(?:group_norm|norm_cross))\.weight", r"\1.scale", SAME),
    (rf"({_ATTENTION}\.(?:to_[qkv]|add_[kv]_proj))\.weight", r"\1.kernel", LINEAR),
    (rf"({_ATTENTION}\.(?:group_norm|norm_cross|to_[qkv]|add_[kv]_proj))\.bias", r"\1.bias", SAME),
    (rf"({_ATTENTION}\.to_out)\.0\.weight", r"\1.kernel", LINEAR),
    (rf"({_ATTENTION}\.to_out)\.0\.bias", r"\1.bias", SAME),
)

_LAYER = r"encoder\.block\.(\d+)\.layer"
T5_RULES: tuple[Rule, ...] = (
    (r"shared\.weight", r"shared.embedding", SAME),
    (
        r"encoder\.block\.0\.layer\.0\.SelfAttention\.relative_attention_bias\.weight",
        r"relative_attention_bias.embedding",
        SAME,
    ),
    (rf"{_LAYER}\.0\.SelfAttention\.([qkvo])\.weight", r"block.\1.\2.kernel", LINEAR),
    (rf"{_LAYER}\.0\.layer_norm\.weight", r"block.\1.attention_norm.scale", SAME),
    (rf"{_LAYER}\.1\.DenseReluDense\.(wi_0|wi_1|wo)\.weight", r"block.\1.\2.kernel", LINEAR),
    (rf"{_LAYER}\.1\.layer_norm\.weight", r"block.\1.ff_norm.scale", SAME),
    (r"encoder\.final_layer_norm\.weight", r"final_layer_norm.scale", SAME),
)
T5_DROPPED = ("encoder.embed_tokens.weight",)  # a second copy of shared.weight


class Kind(NamedTuple):
    """Where one kind of network lies in a diffusers folder, and how its tensors become parameters here."""

    folder: str
    stem: str  # of the weights' file names
    rules: Sequence[Rule]
    dropped: Sequence[str]
    shapes: Callable[[Path], Params]  # config.json -> parameter shapes


KINDS = {
    "unet": Kind("unet", "diffusion_pytorch_model", RULES, (), lambda c: unet.unet(unet.read_config(c)).params),
    "t5": Kind("text_encoder", "model", T5_RULES, T5_DROPPED, lambda c: t5.t5(t5.read_config(c))[1]),
}


def match(
    sizes: Mapping[str, tuple[int, ...]], shapes: Params, rules: Sequence[Rule] = RULES, dropped: Sequence[str] = ()
) -> tuple[dict[str, tuple[str, str]], list[str]]:
    """Finds which tensor becomes which parameter.

    Args:
        sizes: {PyTorch's name: shape}.
        shapes: the network's parameter shapes, as a nested dict.
        rules: the table of names.
        dropped: names that are left out.

    Returns:
        ({dotted path: (PyTorch's name, layout)}, mistakes). Without mistakes every parameter has exactly one tensor.
    """
    wanted = {path: tuple(leaf.shape) for path, leaf in files.flatten(shapes).items()}
    found: dict[str, tuple[str, str]] = {}
    bad = []
    for name, shape in sizes.items():
        if name in dropped:
            continue
        hits = [(m.expand(path), layout) for regex, path, layout in rules if (m := re.fullmatch(regex, name))]
        if len(hits) != 1:
            bad.append(f"{name} fits {len(hits)} rules, not one" if hits else f"{name} is unknown")
            continue
        path, layout = hits[0]
        if path not in wanted:
            bad.append(f"{name} would be {path}, which the network does not have")
        elif path in found:
            bad.append(f"{path} is set twice, by {found[path][0]} and by {name}")
        else:
            found[path] = name, layout
            if turned(shape, layout) != wanted[path]:
                bad.append(f"{name} must have a shape that gives {path} {wanted[path]}, got {tuple(shape)}")
    return found, bad + [f"{path} {shape} is never set" for path, shape in wanted.items() if path not in found]


def turned(shape: Sequence[int], layout: str) -> tuple[int, ...] | None:
    """Returns a tensor's shape in another layout; None if it has another number of axes.

    Example:
        >>> turned((8, 3, 5, 5), CONV)
        (5, 5, 3, 8)
    """
    try:
        return rearrange(np.broadcast_to(np.float32(0), shape), layout).shape  # a view: nothing is allocated
    except EinopsError:
        return None


def translate(
    tensors: Mapping[str, np.ndarray], shapes: Params, rules: Sequence[Rule] = RULES, dropped: Sequence[str] = ()
) -> dict:
    """Converts a PyTorch state dict, given as NumPy arrays, to parameters in the same dtypes.

    Args:
        tensors: {PyTorch's name: array}.
        shapes: as in `match`.
        rules: as in `match`.
        dropped: as in `match`.

    Returns:
        Nested dict of arrays.

    Raises:
        ValueError: names, shapes or values are wrong; all of them are listed.
    """
    found, bad = match({name: x.shape for name, x in tensors.items()}, shapes, rules, dropped)
    bad += [f"{name} is not finite" for name, _ in found.values() if not np.isfinite(tensors[name]).all()]
    if bad:
        raise ValueError(files.listed("the weights do not fit the network", bad))
    flat = {path: np.ascontiguousarray(rearrange(tensors[name], layout)) for path, (name, layout) in found.items()}
    return files.unflatten(flat, shapes)
