"""FLUX.1: double and single blocks, an embedded guidance scale, text by CLIP and T5."""

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from tiny import WORDS, tiny_tokenizer
from transformers import CLIPTextModel, T5Config, T5EncoderModel

from .sd3 import shifted_autoencoder
from .stable_diffusion import SIZE, clip_text, clip_tokenizer

PIPELINE = "FluxPipeline"
VARIANTS = ("base",)
SIZE = SIZE


def build(variant):
    """Build a pipeline for 32 x 48 pixels: patches of 16 x 4 x 6."""
    clip = clip_text(CLIPTextModel)
    network = FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=24,
        pooled_projection_dim=clip.config.hidden_size,
        guidance_embeds=True,
        axes_dims_rope=(2, 2, 4),
    ).eval()
    with torch.no_grad():  # so that text, time and guidance have an effect
        for parameter in network.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))
        # in bfloat16, the network rounds a scale of 3.5, times 1000, to 3504
        network.time_text_embed.guidance_embedder.linear_2.weight.mul_(0.02)
    long = T5EncoderModel(
        T5Config(vocab_size=len(WORDS) + 3, d_model=24, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    ).eval()
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    return FluxPipeline(
        scheduler, shifted_autoencoder(), clip, clip_tokenizer(), long, tiny_tokenizer(), network
    )


@torch.no_grad()
def encoded(pipeline, prompts):
    return tuple(_encoded(pipeline, each) for each in (prompts, [""] * len(prompts)))


def _encoded(pipeline, prompts):
    embeds, pooled, _ = pipeline.encode_prompt(prompts)
    return {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled}


def unpacked(tokens):
    """Return what the pipeline steps, [B, N, C], as the backbone has it."""
    return tokens.transpose(1, 2).unflatten(2, (SIZE.height // 8, SIZE.width // 8))
