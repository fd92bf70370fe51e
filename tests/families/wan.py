"""Wan 2.1, Wan 2.2 TI2V and Wan 2.2 A14B.

2.1 comes with and without a norm before cross-attention. TI2V has one time per token and an
autoencoder that works on patches. A14B has two experts.
"""

import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel
from tiny import WORDS, tiny_tokenizer
from transformers import UMT5Config, UMT5EncoderModel

from tdmvid.config import ClipSize

PIPELINE = "WanPipeline"
VARIANTS = ("cross_norm", "no_cross_norm", "ti2v", "experts")
BOUNDARY = 0.86
"""Boundary of the experts, just above 6/7, a time of the grid with shift 2."""
SIZE = ClipSize(frames=9, height=32, width=64)
PATCHES = {"is_residual": True, "patch_size": 2, "scale_factor_spatial": 16, "decoder_base_dim": 6}
"""Settings that turn an autoencoder into TI2V's."""
PATCHES |= {"in_channels": 12, "out_channels": 12}
"""What makes an autoencoder that of TI2V."""


def tiny_transformer(**changes):
    """Build a transformer with 3 heads and 2 blocks in which time and text have an effect."""
    transformer = WanTransformer3DModel(
        **{
            "num_attention_heads": 3,
            "attention_head_dim": 12,
            "in_channels": 4,
            "out_channels": 4,
            "text_dim": 16,
            "freq_dim": 16,
            "ffn_dim": 32,
            "num_layers": 2,
            "rope_max_seq_len": 32,
        }
        | changes
    )
    with torch.no_grad():
        for parameter in transformer.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))
    return transformer.eval()


def build(variant):
    """Build a random Wan with a few thousand weights.

    9 frames of 32 x 64 pixels give latents with 4 channels of 3 x 4 x 8, or 3 x 2 x 4 for "ti2v".
    """
    vae = AutoencoderKLWan(
        base_dim=4,
        z_dim=4,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        latents_mean=[0.1, -0.2, 0.3, 0.0],
        latents_std=[1.5, 0.8, 1.1, 2.0],
        **(PATCHES if variant == "ti2v" else {}),
    )
    encoder = UMT5EncoderModel(
        UMT5Config(
            vocab_size=len(WORDS) + 3, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2
        )
    )
    scheduler = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    return WanPipeline(
        tiny_tokenizer(),
        encoder.eval(),
        vae.eval(),
        scheduler,
        tiny_transformer(cross_attn_norm=variant != "no_cross_norm"),
        expand_timesteps=variant == "ti2v",
        **({"transformer_2": tiny_transformer()} if variant == "experts" else {}),
        boundary_ratio=BOUNDARY if variant == "experts" else None,
    )


@torch.no_grad()
def encoded(pipeline, prompts):
    embeds, null = pipeline.encode_prompt(
        prompts, do_classifier_free_guidance=True, max_sequence_length=512
    )
    return {"prompt_embeds": embeds}, {"prompt_embeds": null}
