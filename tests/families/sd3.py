"""Stable Diffusion 3 as first released, and 3.5 with its dual-attention blocks."""

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from tiny import WORDS, tiny_tokenizer
from transformers import CLIPTextModelWithProjection, T5Config, T5EncoderModel

from .stable_diffusion import SIZE, clip_text, clip_tokenizer

PIPELINE = "StableDiffusion3Pipeline"
VARIANTS = ("first", "dual_attention")
SIZE = SIZE


def build(variant):
    """Build a pipeline for 32 x 48 pixels: latents of 4 x 8 x 12, 12 x 12 positions of 2 x 2."""
    dual = (
        {"dual_attention_layers": (0,), "qk_norm": "rms_norm"}
        if variant == "dual_attention"
        else {}
    )
    network = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=40,
        caption_projection_dim=16,
        pooled_projection_dim=32,
        pos_embed_max_size=12,
        **dual,
    ).eval()
    with torch.no_grad():  # so that text and time have an effect
        for parameter in network.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))
    long = T5EncoderModel(
        T5Config(vocab_size=len(WORDS) + 3, d_model=40, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    ).eval()
    short = [clip_text(CLIPTextModelWithProjection) for _ in range(2)]
    return StableDiffusion3Pipeline(
        network,
        FlowMatchEulerDiscreteScheduler(shift=3.0),
        shifted_autoencoder(),
        short[0],
        clip_tokenizer(),
        short[1],
        clip_tokenizer(),
        long,
        tiny_tokenizer(),
    )


def shifted_autoencoder():
    """Build an autoencoder whose latents are scaled and shifted."""
    return AutoencoderKL(
        block_out_channels=(8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        latent_channels=4,
        norm_num_groups=2,
        scaling_factor=1.5,
        shift_factor=0.06,
        use_quant_conv=False,
        use_post_quant_conv=False,
    ).eval()


@torch.no_grad()
def encoded(pipeline, prompts):
    embeds, null, pooled, null_pooled = pipeline.encode_prompt(
        prompts, None, None, do_classifier_free_guidance=True
    )
    return {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled}, {
        "prompt_embeds": null,
        "pooled_prompt_embeds": null_pooled,
    }
