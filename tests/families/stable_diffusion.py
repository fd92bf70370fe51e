"""Stable Diffusion: epsilon prediction with PNDM (1.5), and v-prediction with zero terminal SNR."""

import string

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from tdmvid.config import ClipSize

PIPELINE = "StableDiffusionPipeline"
VARIANTS = ("epsilon", "v")
SIZE = ClipSize(frames=1, height=32, width=48)
BETAS = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
}


def scheduler(variant):
    if variant == "epsilon":
        return PNDMScheduler(**BETAS, skip_prk_steps=True, set_alpha_to_one=False)
    return DDIMScheduler(
        **BETAS,
        clip_sample=False,
        set_alpha_to_one=False,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
    )


def clip_tokenizer():
    """Return a CLIP tokenizer of single letters."""
    letters = list(string.ascii_lowercase)
    vocabulary = {
        token: i
        for i, token in enumerate(
            [*letters, *(f"{c}</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
        )
    }
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77)


def clip_text(kind=CLIPTextModel):
    config = CLIPTextConfig(
        vocab_size=54,
        hidden_size=16,
        intermediate_size=32,
        projection_dim=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=77,
        bos_token_id=52,
        eos_token_id=53,
        pad_token_id=53,
    )
    return kind(config).eval()


def autoencoder():
    return AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
        scaling_factor=0.7,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
    ).eval()


def unet(**changes):
    network = UNet2DConditionModel(
        **{
            "sample_size": 4,
            "in_channels": 4,
            "out_channels": 4,
            "layers_per_block": 1,
            "block_out_channels": (16, 32),
            "norm_num_groups": 4,
            "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
            "cross_attention_dim": 16,
            "attention_head_dim": 2,
        }
        | changes
    ).eval()
    with torch.no_grad():  # so that text and time have an effect
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    return network


def build(variant):
    return StableDiffusionPipeline(
        autoencoder(),
        clip_text(),
        clip_tokenizer(),
        unet(),
        scheduler(variant),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def encoded(pipeline, prompts):
    embeds, null = pipeline.encode_prompt(prompts, "cpu", 1, do_classifier_free_guidance=True)
    return {"prompt_embeds": embeds}, {"prompt_embeds": null}
