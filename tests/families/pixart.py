"""PixArt-alpha: 512 pixels, and 1024 pixels with size conditions."""

import torch
from diffusers import DPMSolverMultistepScheduler, PixArtAlphaPipeline, PixArtTransformer2DModel
from tiny import WORDS, tiny_tokenizer
from transformers import T5Config, T5EncoderModel

from . import stable_diffusion
from .stable_diffusion import autoencoder

PIPELINE = "PixArtAlphaPipeline"
VARIANTS = ("512", "1024")
SIZE = stable_diffusion.SIZE


def build(variant):
    network = PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        cross_attention_dim=24,
        sample_size={"512": 64, "1024": 128}[variant],
        caption_channels=16,
    ).eval()
    with torch.no_grad():  # so that text and time have an effect
        for parameter in network.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))
    encoder = T5EncoderModel(
        T5Config(vocab_size=len(WORDS) + 3, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    ).eval()
    scheduler = DPMSolverMultistepScheduler(
        beta_start=0.0001, beta_end=0.02, beta_schedule="linear", solver_order=2
    )
    return PixArtAlphaPipeline(tiny_tokenizer(), encoder, autoencoder(), network, scheduler)


def encoded(pipeline, prompts):
    embeds, mask, null, null_mask = pipeline.encode_prompt(
        prompts, do_classifier_free_guidance=True
    )
    return (
        {"prompt_embeds": embeds, "prompt_attention_mask": mask},
        {"prompt_embeds": null, "prompt_attention_mask": null_mask},
    )
