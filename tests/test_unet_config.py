"""Reading the sizes of IF's UNets from diffusers' config.json."""

import json

import pytest

from jdiff.networks import unet
from jdiff.networks.unet_config import DEFAULT, FIXED, read_config

GOOD = {key: wanted for key, (wanted, _) in FIXED.items()} | {
    "sample_size": 32, "in_channels": 3, "out_channels": 6, "block_out_channels": [8, 16], "layers_per_block": 1,
    "down_block_types": [unet.PLAIN_DOWN, unet.CROSS_DOWN], "up_block_types": [unet.CROSS_UP, unet.PLAIN_UP],
    "attention_head_dim": 8, "cross_attention_dim": 32, "encoder_hid_dim": 8, "addition_embed_type_num_heads": 2,
    "norm_num_groups": 4,
}  # fmt: skip


def test_lists_and_single_numbers_are_read():
    config = read_config(GOOD)
    assert config == read_config(GOOD | {"layers_per_block": [1, 1], "only_cross_attention": [False, False]})
    assert config.block_out_channels == (8, 16) and config.layers_per_block == (1, 1)
    assert (config.channels, config.divisor, config.time_width, config.upscales) == (3, 2, 32, False)


def test_a_folder_a_file_and_their_contents_are_the_same(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(GOOD))
    assert read_config(tmp_path) == read_config(tmp_path / "config.json") == read_config(GOOD)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"_class_name": "Other"}, "_class_name must be 'UNet2DConditionModel', got 'Other'"),
        *(({key: "x"}, f"{key} must be {wanted!r}, got 'x'") for key, (wanted, _) in FIXED.items()),
        *(({key: "x"}, f"{key} must be {good[0]!r}, got 'x'") for key, good in DEFAULT.items()),
        ({"nonsense": 3}, "nonsense is unknown, got 3"),
        ({"block_out_channels": 8}, "block_out_channels must be a list of whole numbers above 0, got 8"),
        ({"block_out_channels": []}, "block_out_channels must be a list of whole numbers above 0, got []"),
        ({"block_out_channels": [8, "16"]}, "block_out_channels must be a list of whole numbers above 0, got"),
        ({"layers_per_block": [1]}, "layers_per_block must have 2 entries, as block_out_channels has, got 1"),
        ({"layers_per_block": [1, 0]}, "layers_per_block must be a whole number above 0, got 0"),
        ({"only_cross_attention": [True, False]}, "only_cross_attention must be the same for all blocks"),
        ({"down_block_types": ["A", "B"]}, "down_block_types must be of ResnetDownsampleBlock2D, "),
        ({"sample_size": None}, "sample_size must be a whole number above 0, got None"),
        ({"patch": True}, "patch must be a whole number above 0, got True"),
        ({"class_embed_type": "x"}, "class_embed_type must be None or 'timestep', got 'x'"),
        ({"time_embedding_act_fn": "silu"}, "time_embedding_act_fn must be None or 'gelu', got 'silu'"),
        ({"attention_head_dim": 5}, "block_out_channels must be a multiple of 5, got 16"),
        ({"norm_num_groups": 5}, "block_out_channels must be a multiple of 5, got 8"),
        ({"cross_attention_dim": 33}, "cross_attention_dim must be a multiple of 32, got 33"),
        ({"encoder_hid_dim": 9}, "encoder_hid_dim must be a multiple of 2, got 9"),
    ],
)
def test_what_does_not_fit_is_named_in_one_line(changed, message):
    with pytest.raises(ValueError) as error:
        read_config(GOOD | changed)
    line = str(error.value)
    assert line.startswith("the UNet's config.json does not fit this network: ")
    assert message in line and "\n" not in line
