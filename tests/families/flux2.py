"""FLUX.2 klein (base): double and single blocks, normalised patches, three layers of Qwen3."""

import torch
from diffusers import (
    AutoencoderKLFlux2,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
)
from tiny import WORDS, tiny_tokenizer
from transformers import Qwen3Config, Qwen3ForCausalLM

from .stable_diffusion import SIZE
from .z_image import TEMPLATE

PIPELINE = "Flux2KleinPipeline"
VARIANTS = ("base",)
SIZE = SIZE


def build(variant):
    """Build a pipeline for 32 x 48 pixels: patches of 16 x 4 x 6."""
    network = Flux2Transformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=24,
        timestep_guidance_channels=16,
        axes_dims_rope=(2, 2, 2, 2),
        guidance_embeds=False,
    ).eval()
    with torch.no_grad():  # so that text and time have an effect
        for parameter in network.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))
    vae = AutoencoderKLFlux2(
        block_out_channels=(8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        latent_channels=4,
        norm_num_groups=2,
        sample_size=32,
    ).eval()
    vae.bn.running_mean.normal_()
    vae.bn.running_var.uniform_(0.5, 2.0)
    encoder = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=len(WORDS) + 3,
            hidden_size=8,
            intermediate_size=16,
            num_hidden_layers=28,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=4,
        )
    ).eval()
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TEMPLATE
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    return Flux2KleinPipeline(scheduler, vae, encoder, tokenizer, network)


@torch.no_grad()
def encoded(pipeline, prompts):
    embeds, _ = pipeline.encode_prompt(prompts)
    null, _ = pipeline.encode_prompt([""] * len(prompts))
    return {"prompt_embeds": embeds}, {"prompt_embeds": null}


def unpacked(tokens):
    """Return what the pipeline steps, [B, N, C], as the backbone has it."""
    return tokens.transpose(1, 2).unflatten(2, (SIZE.height // 8, SIZE.width // 8))
