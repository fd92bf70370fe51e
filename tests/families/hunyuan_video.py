"""HunyuanVideo 1.5: joint blocks, prompts by Qwen2.5-VL, quoted text by ByT5, guidance by a guider.

The random text encoder embeds a prompt of 1000 tokens, as the stock pipeline asks for.
"""

import torch
from diffusers import (
    AutoencoderKLHunyuanVideo15,
    ClassifierFreeGuidance,
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideo15Pipeline,
    HunyuanVideo15Transformer3DModel,
)
from tiny import WORDS
from transformers import (
    ByT5Tokenizer,
    Qwen2_5_VLTextConfig,
    Qwen2_5_VLTextModel,
    T5Config,
    T5EncoderModel,
)

from tdmvid.config import ClipSize

from .qwen_image import tokenizer_without_end

PIPELINE = "HunyuanVideo15Pipeline"
VARIANTS = ("base",)
SIZE = ClipSize(frames=9, height=32, width=48)
TOO_MANY_WORDS = 1010
DROPPED = 108
"""Number of tokens before a prompt that the stock pipeline drops."""
TEMPLATE = "a " * DROPPED + "{{ messages[-1].content }} a"


def tiny_transformer(kind=HunyuanVideo15Transformer3DModel, **changes):
    """Build a transformer with 2 blocks in which time and text have an effect."""
    network = kind(
        **{
            "in_channels": 9,
            "out_channels": 4,
            "num_attention_heads": 2,
            "attention_head_dim": 8,
            "num_layers": 2,
            "num_refiner_layers": 1,
            "mlp_ratio": 2.0,
            "text_embed_dim": 16,
            "text_embed_2_dim": 12,
            "image_embed_dim": 8,
            "rope_axes_dim": (4, 2, 2),
            "task_type": "t2v",
        }
        | changes
    )
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))
    return network.eval()


def build(variant):
    """Build a pipeline for 9 frames of 32 x 48 pixels: latents of 4 x 3 x 4 x 6."""
    network = tiny_transformer()
    vae = AutoencoderKLHunyuanVideo15(
        latent_channels=4,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        spatial_compression_ratio=8,
        temporal_compression_ratio=4,
        scaling_factor=1.3,
    ).eval()
    tokenizer = tokenizer_without_end()
    tokenizer.chat_template = TEMPLATE
    text = Qwen2_5_VLTextConfig(
        vocab_size=len(WORDS) + 3,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        rope_parameters={"rope_type": "default", "mrope_section": [1, 1, 2]},
    )
    quoted = T5Config(vocab_size=384, d_model=12, d_kv=6, d_ff=16, num_layers=1, num_heads=2)
    return HunyuanVideo15Pipeline(
        Qwen2_5_VLTextModel(text).eval(),
        tokenizer,
        network,
        vae,
        FlowMatchEulerDiscreteScheduler(shift=5.0),
        T5EncoderModel(quoted).eval(),
        ByT5Tokenizer(),
        ClassifierFreeGuidance(guidance_scale=6.0),
    )


def prepare(pipeline):
    """Let the autoencoder take one video at a time: its attention fails for several."""
    pipeline.vae.enable_slicing()


@torch.no_grad()
def encoded(pipeline, prompts):
    return tuple(_encoded(pipeline, each) for each in (prompts, [""] * len(prompts)))


def _encoded(pipeline, prompts):
    embeds, mask, quoted, quoted_mask = pipeline.encode_prompt(prompts, batch_size=len(prompts))
    return {
        "prompt_embeds": embeds,
        "prompt_embeds_mask": mask.bool(),
        "prompt_embeds_2": quoted,
        "prompt_embeds_mask_2": quoted_mask.bool(),
    }
