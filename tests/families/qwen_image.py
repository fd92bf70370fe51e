"""Qwen-Image: packed patches, a video autoencoder with one frame, text by Qwen2.5-VL."""

import torch
from diffusers import (
    AutoencoderKLQwenImage,
    FlowMatchEulerDiscreteScheduler,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
)
from tiny import WORDS, tiny_tokenizer
from tokenizers import processors
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from .stable_diffusion import SIZE

PIPELINE = "QwenImagePipeline"
VARIANTS = ("base",)
SIZE = SIZE


def build(variant):
    """Build a pipeline for 32 x 48 pixels: patches of 16 x 4 x 6."""
    network = QwenImageTransformer2DModel(
        in_channels=16,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=16,
        axes_dims_rope=(4, 2, 2),
    ).eval()
    with torch.no_grad():  # so that text and time have an effect
        for parameter in network.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))
    vae = AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True],
        latents_mean=[0.1, -0.2, 0.3, -0.4],
        latents_std=[1.5, 0.8, 1.2, 0.6],
    ).eval()
    return QwenImagePipeline(
        FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True, shift_terminal=0.02, max_image_seq_len=8192, max_shift=0.9
        ),
        vae,
        tiny_encoder(),
        tokenizer_without_end(),
        network,
    )


def tiny_encoder():
    """Build a random Qwen2.5-VL of two layers."""
    text = {
        "vocab_size": len(WORDS) + 3,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2]},
    }
    vision = {
        "depth": 1,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_heads": 2,
        "out_hidden_size": 16,
        "fullatt_block_indexes": [0],
    }
    config = Qwen2_5_VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=False)
    return Qwen2_5_VLForConditionalGeneration(config).eval()


def tokenizer_without_end():
    """Build a tokenizer that adds no token to a text, like Qwen's."""
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single="$A")
    return tokenizer


@torch.no_grad()
def encoded(pipeline, prompts):
    return tuple(_padded(*pipeline.encode_prompt(p)) for p in (prompts, [""] * len(prompts)))


def _padded(embeds, mask):
    mask = torch.ones(embeds.shape[:2], dtype=torch.bool) if mask is None else mask.bool()
    more = 512 - embeds.shape[1]
    pad = torch.nn.functional.pad
    return {
        "prompt_embeds": pad(embeds, (0, 0, 0, more)),
        "prompt_embeds_mask": pad(mask, (0, more)),
    }


def unpacked(tokens):
    """Return what the pipeline steps, [B, N, C], as the backbone has it."""
    return tokens.transpose(1, 2).unflatten(2, (SIZE.height // 8, SIZE.width // 8))
