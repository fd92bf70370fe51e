"""Stable Diffusion 3 and 3.5, by what their configs say: three text encoders (the third may be left out), one joint transformer.

Shapes: B batch, C channels, H W latent size, T text tokens of the two short encoders and of the
long one. A latent sample is [C, H, W].
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, SD3Transformer2DModel, StableDiffusion3Pipeline
from torch import Tensor, nn

from ..diffusion.denoiser import Cond
from .base import ClipSize, Tokens, register
from .flow import FlowBackbone


@register
class StableDiffusion3(FlowBackbone):
    """A Stable Diffusion 3 pipeline folder as a backbone."""

    pipeline_class = "StableDiffusion3Pipeline"
    pipeline_type, network_type, vae_type = StableDiffusion3Pipeline, SD3Transformer2DModel, AutoencoderKL
    lora_targets = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
    text_parts = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "text_encoder_3", "tokenizer_3")
    optional_parts = ("text_encoder_3", "tokenizer_3")
    text_length = 256
    inputs = {"encoder_hidden_states": "prompt_embeds", "pooled_projections": "pooled_prompt_embeds"}

    def call_encoder(self, pipeline: StableDiffusion3Pipeline, prompts: list[str]) -> Cond:
        embeds, _, pooled, _ = pipeline.encode_prompt(
            prompts, None, None, do_classifier_free_guidance=False, max_sequence_length=self.text_length
        )
        return Cond({"prompt_embeds": embeds, "pooled_prompt_embeds": pooled})

    def unscaled(self, latents: Tensor, vae: Any) -> Tensor:
        return latents / vae.scaling_factor + vae.shift_factor

    def set_compression(self, pipeline: StableDiffusion3Pipeline) -> None:
        pipeline.vae_scale_factor = _compression(self.folder)

    @staticmethod
    def latent_shape_of(network: SD3Transformer2DModel, folder: Path, size: ClipSize) -> tuple[int, int, int]:
        net, factor = network.config, _compression(folder)
        if size.frames != 1:
            raise ValueError(f"video.frames={size.frames}: this is an image model, use 1")
        for name in ("height", "width"):
            pixels, unit = getattr(size, name), factor * net.patch_size
            if pixels % unit or pixels > unit * net.pos_embed_max_size:
                raise ValueError(f"video.{name}={pixels}: use a multiple of {unit} (latent compression x patch) up to {unit * net.pos_embed_max_size}")
        return net.in_channels, size.height // factor, size.width // factor

    @staticmethod
    def tokens(network: SD3Transformer2DModel, folder: Path, size: ClipSize) -> Tokens:
        net, (_, height, width) = network.config, StableDiffusion3.latent_shape_of(network, folder, size)
        image = (height // net.patch_size) * (width // net.patch_size)
        return Tokens(_text_tokens(folder) + image, net.num_attention_heads, net.num_attention_heads * net.attention_head_dim, net.num_layers)

    @staticmethod
    def blocks(network: SD3Transformer2DModel) -> list[nn.Module]:
        return list(network.transformer_blocks)

    @staticmethod
    def example(network: SD3Transformer2DModel, folder: Path, size: ClipSize, batch: int, dtype: torch.dtype) -> dict:
        net, shape = network.config, StableDiffusion3.latent_shape_of(network, folder, size)
        return {
            "hidden_states": torch.empty(batch, *shape, dtype=dtype), "timestep": torch.empty(batch),
            "encoder_hidden_states": torch.empty(batch, _text_tokens(folder), net.joint_attention_dim, dtype=dtype),
            "pooled_projections": torch.empty(batch, net.pooled_projection_dim, dtype=dtype),
        }


def _compression(folder: Path) -> int:
    return 2 ** (len(AutoencoderKL.load_config(folder, subfolder="vae")["block_out_channels"]) - 1)


def _text_tokens(folder: Path) -> int:
    """T: what the first tokenizer pads to, and what a stock call takes of the long encoder."""
    short = json.loads((folder / "tokenizer" / "tokenizer_config.json").read_text())["model_max_length"]
    return short + StableDiffusion3.text_length
