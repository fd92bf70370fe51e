"""Stable Diffusion XL with the released Euler scheduler; empty prompts as zeros or encoded."""

from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline
from transformers import CLIPTextModelWithProjection

from . import stable_diffusion
from .stable_diffusion import BETAS, autoencoder, clip_text, clip_tokenizer

PIPELINE = "StableDiffusionXLPipeline"
VARIANTS = ("zeros", "encoded")
SIZE = stable_diffusion.SIZE


def unet(**changes):
    """Build the tiny network; `changes` override its config."""
    settings = {
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "cross_attention_dim": 32,
        "transformer_layers_per_block": (1, 2),
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 16 + 6 * 8,
    }
    return stable_diffusion.unet(**settings | changes)


def build(variant):
    network = unet()
    return StableDiffusionXLPipeline(
        autoencoder(),
        clip_text(),
        clip_text(CLIPTextModelWithProjection),
        clip_tokenizer(),
        clip_tokenizer(),
        network,
        EulerDiscreteScheduler(**BETAS),
        force_zeros_for_empty_prompt=variant == "zeros",
        add_watermarker=False,
    )


def encoded(pipeline, prompts):
    embeds, null, pooled, null_pooled = pipeline.encode_prompt(
        prompts, do_classifier_free_guidance=True
    )
    return {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled}, {
        "prompt_embeds": null,
        "pooled_prompt_embeds": null_pooled,
    }
