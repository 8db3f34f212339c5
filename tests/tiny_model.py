"""A model so small that it draws in a moment, in a folder with its own text encoder."""

import json

import jax

from jdiff.letters import folder
from jdiff.networks import t5, unet

SIZES = unet.Config(
    sample_size=8, in_channels=1, out_channels=1, block_out_channels=(8, 8), layers_per_block=(1, 1),
    down_block_types=(unet.PLAIN_DOWN, unet.CROSS_DOWN), up_block_types=(unet.CROSS_UP, unet.PLAIN_UP),
    attention_head_dim=4, cross_attention_dim=32, encoder_hid_dim=8, addition_embed_type_num_heads=2, norm_num_groups=4,
)  # fmt: skip
TEXT = t5.Config(vocab_size=259, d_model=8, d_kv=4, d_ff=16, num_layers=1, num_heads=2)


def write(place, seed=0):
    """Writes the model to a folder, and returns the folder."""
    params = jax.tree.map(lambda a: a + 0.05, unet.init(SIZES, jax.random.key(seed)))  # the last layer starts at 0
    place.mkdir(parents=True, exist_ok=True)
    folder.write(place, SIZES, TEXT, params, t5.init(TEXT, jax.random.key(seed + 1)))
    (place / "defaults.json").write_text(json.dumps({"sampler": "deepfloyd", "steps": 3, "guidance": 2.0}))
    return place
