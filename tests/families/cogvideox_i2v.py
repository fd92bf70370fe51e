"""CogVideoX image to video: learned positions (5B-I2V), temporal patches and `ofs` (1.5-5B-I2V)."""

import torch
from diffusers import CogVideoXImageToVideoPipeline
from tiny import tiny_parts

from tdmvid.config import ClipSize

from .cogvideox import encoded

__all__ = ["encoded"]
PIPELINE = "CogVideoXImageToVideoPipeline"
CHANGES = {
    "learned": (
        {"use_rotary_positional_embeddings": True, "use_learned_positional_embeddings": True},
        {},
    ),
    "ofs": (
        {
            "use_rotary_positional_embeddings": True,
            "patch_size_t": 2,
            "patch_bias": False,
            "ofs_embed_dim": 8,
        },
        {"invert_scale_latents": True},
    ),
}
VARIANTS = tuple(CHANGES)
SIZE = ClipSize(frames=9, height=32, width=32)


def build(variant):
    """Build a random pipeline whose autoencoder has zero variance.

    The stock pipeline samples from its distribution, but a cached condition is the mean.
    """
    network, vae = CHANGES[variant]
    parts = tiny_parts({"in_channels": 16, "out_channels": 8} | network, vae)
    last = parts[2].encoder.conv_out.conv  # means first, then log-variances
    with torch.no_grad():
        last.weight[8:], last.bias[8:] = 0.0, -30.0
    return CogVideoXImageToVideoPipeline(*parts)
