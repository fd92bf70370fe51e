"""Wan 2.1 text to video, 1.3B and 14B, by what their configs say.

Shapes: B batch, C channels, F latent frames, H W latent size, T text tokens. A latent sample
is [C, F, H, W], the layout of `WanTransformer3DModel`; its tokens are those of the video, text
is attended to across.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan, WanPipeline, WanTransformer3DModel
from torch import Tensor, nn

from ..diffusion.denoiser import Cond
from ..diffusion.process import RectifiedFlow
from .base import ClipSize, Tokens, register
from .flow import FlowBackbone


@register
class Wan(FlowBackbone):
    """A Wan 2.1 pipeline folder as a backbone."""

    pipeline_class = "WanPipeline"
    pipeline_type, network_type, vae_type = WanPipeline, WanTransformer3DModel, AutoencoderKLWan
    lora_targets = ("to_q", "to_k", "to_v", "to_out.0")
    text_parts = ("text_encoder", "tokenizer")
    text_length = 512
    inputs = {"encoder_hidden_states": "prompt_embeds"}

    def call_encoder(self, pipeline: WanPipeline, prompts: list[str]) -> Cond:
        embeds, _ = pipeline.encode_prompt(prompts, do_classifier_free_guidance=False, max_sequence_length=self.text_length)
        return Cond({"prompt_embeds": embeds})

    def unscaled(self, latents: Tensor, vae: Any) -> Tensor:
        mean, std = (torch.tensor(one, device=latents.device).view(-1, 1, 1, 1) for one in (vae.latents_mean, vae.latents_std))
        return latents * std + mean

    def set_compression(self, pipeline: WanPipeline) -> None:
        pipeline.vae_scale_factor_temporal, pipeline.vae_scale_factor_spatial = _compression(self.folder)

    def arguments(self) -> dict[str, int]:
        return {"num_frames": self.size.frames, **super().arguments()}

    @staticmethod
    def read_process(folder: Path) -> RectifiedFlow:
        """ValueError for Wan 2.2, which is two networks in turn or has a time for every token."""
        index = json.loads((folder / "model_index.json").read_text())
        for setting in ("transformer_2", "boundary_ratio", "expand_timesteps"):
            value = index.get(setting)
            if value and value != [None, None]:
                raise ValueError(f"{folder}/model_index.json has {setting} = {value}: that is Wan 2.2; use Wan 2.1, one transformer with one time")
        return FlowBackbone.read_process(folder)

    @staticmethod
    def latent_shape_of(network: WanTransformer3DModel, folder: Path, size: ClipSize) -> tuple[int, int, int, int]:
        net, (temporal, spatial) = network.config, _compression(folder)
        for name, patch in (("height", net.patch_size[1]), ("width", net.patch_size[2])):
            unit = math.lcm(16, spatial * patch)  # 16 is the pipeline's own rule
            if getattr(size, name) % unit:
                raise ValueError(f"video.{name}={getattr(size, name)} does not divide by {unit} (latent compression x patch)")
        if (size.frames - 1) % temporal:
            near = round((size.frames - 1) / temporal) * temporal + 1
            raise ValueError(f"video.frames={size.frames}: this autoencoder decodes {temporal}n + 1 frames, e.g. {near}")
        return net.in_channels, (size.frames - 1) // temporal + 1, size.height // spatial, size.width // spatial

    @staticmethod
    def tokens(network: WanTransformer3DModel, folder: Path, size: ClipSize) -> Tokens:
        net, (_, *latent) = network.config, Wan.latent_shape_of(network, folder, size)
        video = math.prod(length // patch for length, patch in zip(latent, net.patch_size))
        return Tokens(video, net.num_attention_heads, net.num_attention_heads * net.attention_head_dim, net.num_layers)

    @staticmethod
    def blocks(network: WanTransformer3DModel) -> list[nn.Module]:
        return list(network.blocks)

    @staticmethod
    def example(network: WanTransformer3DModel, folder: Path, size: ClipSize, batch: int, dtype: torch.dtype) -> dict:
        shape = Wan.latent_shape_of(network, folder, size)
        return {
            "hidden_states": torch.empty(batch, *shape, dtype=dtype), "timestep": torch.empty(batch),
            "encoder_hidden_states": torch.empty(batch, Wan.text_length, network.config.text_dim, dtype=dtype),
        }


def _compression(folder: Path) -> tuple[int, int]:
    """Frames and pixels a latent; the first Wan folders leave it to the class."""
    config = {"scale_factor_temporal": 4, "scale_factor_spatial": 8} | AutoencoderKLWan.load_config(folder, subfolder="vae")
    return config["scale_factor_temporal"], config["scale_factor_spatial"]
