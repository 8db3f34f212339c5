"""The sizes of IF's UNets, and how they are read from diffusers' config.json."""

import dataclasses
from pathlib import Path
from typing import Any

from jdiff.networks import config as config_json
from jdiff.types import Json

PLAIN_DOWN, CROSS_DOWN = "ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"
PLAIN_UP, CROSS_UP = "ResnetUpsampleBlock2D", "SimpleCrossAttnUpBlock2D"


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes of a UNet, with the names of diffusers' config.json. The defaults are those of IF-I-M.

    Only `patch` is not in diffusers: the network treats each square of patch x patch pixels as one pixel.

    Example:
        >>> Config().block_out_channels
        (192, 384, 576, 768)
    """

    sample_size: int = 64
    in_channels: int = 3
    out_channels: int = 6
    down_block_types: tuple[str, ...] = (PLAIN_DOWN, CROSS_DOWN, CROSS_DOWN, CROSS_DOWN)
    up_block_types: tuple[str, ...] = (CROSS_UP, CROSS_UP, CROSS_UP, PLAIN_UP)
    block_out_channels: tuple[int, ...] = (192, 384, 576, 768)
    layers_per_block: tuple[int, ...] = (3, 3, 3, 3)
    attention_head_dim: int = 64
    cross_attention_dim: int = 768
    encoder_hid_dim: int = 4096
    addition_embed_type_num_heads: int = 64
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    only_cross_attention: bool = False
    class_embed_type: str | None = None
    time_embedding_dim: int | None = None
    time_embedding_act_fn: str | None = None
    resnet_skip_time_act: bool = False
    resnet_out_scale_factor: float = 1.0
    mid_block_scale_factor: float = 1.0
    patch: int = 1

    @property
    def channels(self) -> int:
        """Channels of an image, and of the network's estimate."""
        return self.in_channels // 2 if self.upscales else self.in_channels

    @property
    def upscales(self) -> bool:
        """Whether the network is one of stage 2, which enlarges a low-res image."""
        return self.class_embed_type == "timestep"

    @property
    def divisor(self) -> int:
        """The height and the width of an image must be multiples of this number."""
        return self.patch * 2 ** (len(self.block_out_channels) - 1)

    @property
    def time_width(self) -> int:
        """Width of the time embedding."""
        return self.time_embedding_dim or 4 * self.block_out_channels[0]


# Keys of config.json for which this network has one value only: (that value, diffusers' default).
FIXED: dict[str, tuple[str, str | None]] = {
    "act_fn": ("gelu", "silu"),
    "addition_embed_type": ("text", None),
    "cross_attention_norm": ("group_norm", None),
    "encoder_hid_dim_type": ("text_proj", "text_proj"),  # None means this too if encoder_hid_dim is given
    "mid_block_type": ("UNetMidBlock2DSimpleCrossAttn", "UNetMidBlock2DCrossAttn"),
    "resnet_time_scale_shift": ("scale_shift", "default"),
}
# Keys that must have diffusers' default, or another value that has no effect on these blocks.
DEFAULT: dict[str, tuple[object, ...]] = {
    "addition_time_embed_dim": (None,),
    "attention_type": ("default",),
    "center_input_sample": (False,),
    "class_embeddings_concat": (False,),
    "conv_in_kernel": (3,),
    "conv_out_kernel": (3,),
    "downsample_padding": (1,),
    "dropout": (0.0,),
    "dual_cross_attention": (False,),
    "flip_sin_to_cos": (True,),
    "freq_shift": (0,),
    "num_attention_heads": (None,),
    "num_class_embeds": (None,),
    "projection_class_embeddings_input_dim": (None,),
    "reverse_transformer_layers_per_block": (None,),
    "time_cond_proj_dim": (None,),
    "time_embedding_type": ("positional",),
    "timestep_post_act": (None,),
    "transformer_layers_per_block": (1,),
    "upcast_attention": (False, None),
    "use_linear_projection": (False,),
}
# diffusers' defaults for keys that are missing in config.json, where they differ from `Config`'s.
SILENT: dict[str, object] = {
    "sample_size": None,
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "attention_head_dim": 8,
    "cross_attention_dim": 1280,
    "encoder_hid_dim": None,
}


def read_config(source: str | Path | Json) -> Config:
    """Reads the sizes of a UNet from diffusers' config.json.

    Args:
        source: path of the file, its folder, or its contents.

    Returns:
        The sizes. Keys that are missing in config.json get diffusers' defaults.

    Raises:
        ValueError: the file cannot be read, or describes another network. The message names every wrong key.

    Example:
        >>> read_config({"act_fn": "silu"})  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        ValueError: the UNet's config.json does not fit this network: act_fn must be 'gelu', got 'silu'; ...
    """
    source = config_json.read(source)
    given = {k: v for k, v in source.items() if not k.startswith("_")}
    bad = []
    name = given.pop("_class_name", source.get("_class_name", "UNet2DConditionModel"))
    if name != "UNet2DConditionModel":
        bad.append(f"_class_name must be 'UNet2DConditionModel', got {name!r}")
    for key, (wanted, default) in FIXED.items():
        if (value := given.pop(key, None) or default) != wanted:
            bad.append(f"{key} must be {wanted!r}, got {value!r}")
    for key, good in DEFAULT.items():
        if (value := given.pop(key, good[0])) not in good:
            bad.append(f"{key} must be {good[0]!r}, got {value!r}")
    fields = {field.name: field.default for field in dataclasses.fields(Config)}
    values = {key: given.pop(key, SILENT.get(key, default)) for key, default in fields.items()}
    mid = given.pop("mid_block_only_cross_attention", None)
    bad += [f"{key} is unknown, got {value!r}" for key, value in given.items() if value is not None]
    bad += _fit(values, mid)
    if bad:
        raise ValueError("the UNet's config.json does not fit this network: " + "; ".join(bad))
    return Config(**values)


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _fit(values: dict[str, Any], mid: bool | None) -> list[str]:
    """Converts lists to tuples in place, and returns what is wrong with the sizes."""
    channels = values["block_out_channels"]
    if not isinstance(channels, list | tuple) or not channels or not all(map(_is_size, channels)):
        return [f"block_out_channels must be a list of whole numbers above 0, got {channels!r}"]
    channels = values["block_out_channels"] = tuple(channels)
    bad, n = [], len(channels)
    for key in ("down_block_types", "up_block_types", "layers_per_block", "only_cross_attention"):
        value = values[key]
        value = tuple(value) if isinstance(value, list | tuple) else (value,) * n
        if len(value) != n:
            bad.append(f"{key} must have {n} entries, as block_out_channels has, got {len(value)}")
        values[key] = value
    only = set(values["only_cross_attention"]) | ({mid} if mid is not None else set())
    if len(only) > 1:
        bad.append(f"only_cross_attention must be the same for all blocks, got {sorted(only)}")
    values["only_cross_attention"] = bool(values["only_cross_attention"][0])
    for key, good in (("down_block_types", (PLAIN_DOWN, CROSS_DOWN)), ("up_block_types", (PLAIN_UP, CROSS_UP))):
        bad += [f"{key} must be of {', '.join(good)}, got {v!r}" for v in values[key] if v not in good]
    sizes = ("attention_head_dim", "cross_attention_dim", "encoder_hid_dim", "norm_num_groups", "sample_size")
    sizes += ("in_channels", "out_channels", "addition_embed_type_num_heads", "patch")
    numbers = [(key, values[key]) for key in sizes] + [("layers_per_block", n) for n in values["layers_per_block"]]
    bad += [f"{key} must be a whole number above 0, got {value!r}" for key, value in numbers if not _is_size(value)]
    if bad:
        return bad
    for key, good in (("class_embed_type", "timestep"), ("time_embedding_act_fn", "gelu")):
        if values[key] not in (None, good):
            bad.append(f"{key} must be None or {good!r}, got {values[key]!r}")
    blocks = values["down_block_types"] + values["up_block_types"]
    heads = [c for c, kind in zip(channels + channels[::-1], blocks, strict=True) if kind in (CROSS_DOWN, CROSS_UP)]
    multiples = [("block_out_channels", c, values["attention_head_dim"]) for c in sorted({*heads, channels[-1]})]
    multiples += [("block_out_channels", c, values["norm_num_groups"]) for c in channels]
    multiples += [("cross_attention_dim", values["cross_attention_dim"], 32)]
    multiples += [("encoder_hid_dim", values["encoder_hid_dim"], values["addition_embed_type_num_heads"])]
    bad += [
        f"{key} must be a multiple of {divisor}, got {value}" for key, value, divisor in multiples if value % divisor
    ]
    return bad
