"""Wan 2.2 image to video: two experts, whose networks see a mask and the given frame's latents."""

from types import SimpleNamespace

import torch
from diffusers import WanImageToVideoPipeline
from diffusers.pipelines.wan import pipeline_wan_i2v

from . import wan
from .wan import SIZE, tiny_transformer

__all__ = ["SIZE", "encoded"]
PIPELINE = "WanImageToVideoPipeline"
VARIANTS = ("experts",)
encoded = wan.encoded
if not hasattr(pipeline_wan_i2v, "ftfy"):  # without it the library cannot read a prompt
    pipeline_wan_i2v.ftfy = SimpleNamespace(fix_text=str)


def build(variant):
    """A random pipeline: 4 channels of noisy latents, 4 of a mask and 4 of the given frame."""
    parts = wan.build("experts")
    torch.manual_seed(1)
    return WanImageToVideoPipeline(
        parts.tokenizer,
        parts.text_encoder,
        parts.vae,
        parts.scheduler,
        transformer=tiny_transformer(in_channels=12),
        transformer_2=tiny_transformer(in_channels=12),
        boundary_ratio=wan.BOUNDARY,
    )
