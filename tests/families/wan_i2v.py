"""Wan image to video, with a mask and the given frame's latents as input.

"encoder" is 2.1, with an image encoder. "experts" is 2.2 A14B. "first_frame" is 2.2 TI2V, in which
the given latents replace the first noisy ones.
"""

from types import SimpleNamespace

import torch
from diffusers import WanImageToVideoPipeline
from diffusers.pipelines.wan import pipeline_wan_i2v
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

from . import wan
from .wan import SIZE, tiny_transformer

__all__ = ["SIZE", "encoded"]
PIPELINE = "WanImageToVideoPipeline"
VARIANTS = ("experts", "encoder", "first_frame")
WIDTH = 16
"""Width of the image encoder's embeddings."""
encoded = wan.encoded
if not hasattr(pipeline_wan_i2v, "ftfy"):  # diffusers cannot encode prompts without it
    pipeline_wan_i2v.ftfy = SimpleNamespace(fix_text=str)


def image_encoder():
    """Build a random image encoder of 5 tokens, and its processor, which resizes and crops."""
    config = CLIPVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=28,
        patch_size=14,
        projection_dim=8,
    )
    size = {"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}}
    return {
        "image_encoder": CLIPVisionModelWithProjection(config).eval(),
        "image_processor": CLIPImageProcessor(**size),
    }


def build(variant):
    """Build a random pipeline with 4 channels each of noisy latents, mask and given frame."""
    parts = wan.build("ti2v" if variant == "first_frame" else "experts")
    torch.manual_seed(1)
    if variant == "first_frame":
        more = {"transformer": parts.transformer, "expand_timesteps": True}
    elif variant == "experts":
        more = {
            "transformer": tiny_transformer(in_channels=12),
            "transformer_2": tiny_transformer(in_channels=12),
            "boundary_ratio": wan.BOUNDARY,
        }
    else:
        width = {"image_dim": WIDTH, "added_kv_proj_dim": 36}
        more = {"transformer": tiny_transformer(in_channels=12, **width)} | image_encoder()
    return WanImageToVideoPipeline(
        parts.tokenizer, parts.text_encoder, parts.vae, parts.scheduler, **more
    )
