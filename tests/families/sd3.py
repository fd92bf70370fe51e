"""Stable Diffusion 3 as first released, and 3.5's blocks of two attentions."""

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from tiny import WORDS, tiny_tokenizer
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, T5Config, T5EncoderModel

from tdmvid.backbones.base import ClipSize

PIPELINE = "StableDiffusion3Pipeline"
VARIANTS = ("first", "dual_attention")
SIZE = ClipSize(frames=1, height=32, width=48)


def clip(width: int) -> CLIPTextModelWithProjection:
    return CLIPTextModelWithProjection(CLIPTextConfig(
        vocab_size=len(WORDS) + 3, hidden_size=width, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=77, projection_dim=width, bos_token_id=0, eos_token_id=1,
    )).eval()


def build(variant):
    """A random SD3 of a few thousand weights: 32 x 48 pixels give latents of 4 channels, 8 x 12."""
    dual = {"dual_attention_layers": (0,), "qk_norm": "rms_norm"} if variant == "dual_attention" else {}
    transformer = SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=24, caption_projection_dim=16, pooled_projection_dim=16, pos_embed_max_size=12, **dual,
    )
    with torch.no_grad():  # as initialised, the modulated blocks hardly see time and text
        for parameter in transformer.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 8), down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
        latent_channels=4, norm_num_groups=2, layers_per_block=1, scaling_factor=1.5, shift_factor=0.06,
        use_quant_conv=False, use_post_quant_conv=False,
    )
    t5 = T5EncoderModel(T5Config(vocab_size=len(WORDS) + 3, d_model=24, d_kv=8, d_ff=32, num_layers=1, num_heads=2)).eval()
    short, long = tiny_tokenizer(), tiny_tokenizer()
    short.model_max_length = 77
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    return StableDiffusion3Pipeline(transformer.eval(), scheduler, vae.eval(), clip(8), short, clip(8), short, t5, long)


@torch.no_grad()
def encoded(pipeline, prompts):
    embeds, null, pooled, null_pooled = pipeline.encode_prompt(prompts, None, None, do_classifier_free_guidance=True)
    return {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled}, {"prompt_embeds": null, "pooled_prompt_embeds": null_pooled}
