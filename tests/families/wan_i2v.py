"""Wan 2.2 image to video: two experts with a mask and the given frame's latents as input."""

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
if not hasattr(pipeline_wan_i2v, "ftfy"):  # diffusers cannot encode prompts without it
    pipeline_wan_i2v.ftfy = SimpleNamespace(fix_text=str)


def build(variant):
    """Build a random pipeline with 4 channels each of noisy latents, mask and given frame."""
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
