"""Wan text to video (arXiv 2503.20314): 2.1 (1.3B, 14B) and 2.2 (TI2V-5B, A14B), by their configs.

Shapes: B batch, C channels, F latent frames, H W latent size, T text tokens. A latent sample is
[C, F, H, W], the layout of `WanTransformer3DModel`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from torch import Tensor, nn

from ..config import ClipSize, ModelConfig
from ..config.json_files import read_object
from ..diffusion.denoiser import Cond
from .attention import BACKENDS
from .autoencode import decode_parts, encode_parts
from .base import TokenSharing
from .dtype import torch_dtype
from .experts import Split, experts_of
from .flow import FlowBackbone, FlowSpec
from .lora_files import LoraFiles
from .registry import register
from .spec import Tokens, check_frames, check_sides
from .stock import StockPipeline
from .taps import Tap, trunk_of
from .wan_fused import fuse
from .wan_parallel import TEXT_LENGTH, share_tokens


class WanSpec(FlowSpec):
    """Describes a Wan pipeline folder from its configs."""

    network_class, vae_class = WanTransformer3DModel, AutoencoderKLWan

    def read_split(self, folder: Path) -> Split | None:
        """Return how the two experts of Wan 2.2 A14B share the times; None if there is one network.

        Raises:
            ValueError: One of the experts or the boundary is missing.
        """
        index = read_object(folder / "model_index.json")
        boundary, names = index.get("boundary_ratio"), Split.names
        there = [index.get(name) not in (None, [None, None]) for name in names]
        if boundary is None and there == [True, False]:
            return None
        if not all(there) or not isinstance(boundary, float) or not 0 < boundary < 1:
            raise ValueError(
                f"{folder}: model_index.json has boundary_ratio={boundary} and"
                f" {' and '.join(n for n, has in zip(names, there) if has) or 'no transformer'};"
                " Wan needs either transformer alone, or transformer, transformer_2 and a"
                " boundary_ratio between 0 and 1: download the folder again"
            )
        return Split(boundary)

    def tokens(self, network: WanTransformer3DModel, folder: Path, size: ClipSize) -> Tokens:
        """Return the video tokens of one sample; text is cross-attended."""
        net, (_, *latent) = network.config, WanClip.of(network, folder, size).latent_shape
        count = math.prod(
            length // patch for length, patch in zip(latent, net.patch_size, strict=True)
        )
        return Tokens.of_transformer(count, net)

    def blocks(self, network: WanTransformer3DModel) -> list[nn.Module]:
        """Return the transformer blocks, of both experts if there are two."""
        return [block for each in experts_of(network) for block in each.blocks]

    def example(
        self,
        network: WanTransformer3DModel,
        folder: Path,
        size: ClipSize,
        batch: int,
        dtype: torch.dtype,
    ) -> dict:
        """Return the arguments of one call; `hidden_states` are [B, C, F, H, W]."""
        _, *latent = WanClip.of(network, folder, size).latent_shape
        channels = network.config.in_channels  # those of a given first frame included
        return {
            "hidden_states": torch.empty(batch, channels, *latent, dtype=dtype),
            "timestep": torch.empty(batch),
            "encoder_hidden_states": torch.empty(
                batch, TEXT_LENGTH, network.config.text_dim, dtype=dtype
            ),
        }

    def vae_dtype(self, folder: Path, config: ModelConfig) -> torch.dtype:
        """Return float32, as in the pipeline's examples."""
        return torch.float32

    def vae_latents(
        self, network: WanTransformer3DModel, folder: Path, size: ClipSize
    ) -> tuple[int, int, int, int]:
        """Return [C, F, H, W] of one sample."""
        return WanClip.of(network, folder, size).latent_shape

    def vae_tile(self, vae: AutoencoderKLWan) -> tuple[int, int]:
        """Return height and width of a tile of latents."""
        return (
            vae.tile_sample_min_height // vae.spatial_compression_ratio,
            vae.tile_sample_min_width // vae.spatial_compression_ratio,
        )


class WanStock(StockPipeline):
    """The stock Wan pipeline."""

    packages = ("ftfy",)

    backbone: Wan

    def arguments(self) -> dict[str, Any]:
        """Return frames, height, width and text length of the stock call."""
        size = self.backbone.size
        return {
            "num_frames": size.frames,
            "height": size.height,
            "width": size.width,
            "max_sequence_length": TEXT_LENGTH,
        }

    def set_scales(self, pipeline: Any) -> None:
        """Set the autoencoder's spatial and temporal compression on a pipeline without one."""
        clip = self.backbone.clip
        pipeline.vae_scale_factor_spatial = clip.spatial
        pipeline.vae_scale_factor_temporal = clip.temporal


@register
class Wan(FlowBackbone):
    """Backbone of a Wan pipeline folder."""

    pipeline_class = "WanPipeline"
    spec, stock_class = WanSpec(), WanStock
    lora = LoraFiles(pipeline_class)
    kernels = ("sdpa", "cudnn", "flash", "xformers")
    network: WanTransformer3DModel

    def __init__(
        self, folder: Path, config: ModelConfig, size: ClipSize, device: torch.device | str
    ):
        super().__init__(folder, config, size, device)
        self.clip = WanClip.of(self.network, folder, size)

    def latent_shape(self) -> tuple[int, ...]:
        """Return [C, F, H, W]."""
        return self.clip.latent_shape

    def inputs(self, x_t: Tensor, t: Tensor, cond: Cond) -> dict:
        """Return the transformer's arguments for x_t [B, C, F, H, W] and t [B]."""
        # A pipeline with `expand_timesteps` repeats the time for every token. Without an image all
        # tokens have the same time, so the result is the same.
        return {
            "hidden_states": x_t,
            "timestep": self.process.timestep(t),
            "encoder_hidden_states": cond["prompt_embeds"],
        }

    @staticmethod
    def fuse(network: WanTransformer3DModel) -> None:
        """Fuse modulation and residuals of each expert, see wan_fused.py."""
        for each in experts_of(network):
            fuse(each)

    @staticmethod
    def share_tokens(network: WanTransformer3DModel, sharing: TokenSharing) -> None:
        """Split the video tokens of each expert over ranks, see wan_parallel.py."""
        for each in experts_of(network):
            share_tokens(each, sharing)

    def encode_prompts(self, prompts: list[str]) -> Cond:
        """Return `prompt_embeds` [B, T, D] of B prompts."""
        with torch.no_grad():
            embeds, _ = self.text.encode_prompt(
                prompts, do_classifier_free_guidance=False, max_sequence_length=TEXT_LENGTH
            )
        return Cond({"prompt_embeds": embeds})

    def text_limit(self) -> tuple[str, int]:
        """Return the tokenizer's folder and 512 tokens."""
        return "tokenizer", TEXT_LENGTH

    def text_settings(self) -> tuple[str, ...]:
        """Return what changes the embeddings: the text length, and that ftfy cleans the text."""
        return (str(TEXT_LENGTH), "ftfy")

    def vae_config(self) -> dict[str, Any]:
        """Return the autoencoder's config without loading its weights."""
        config: dict[str, Any] = AutoencoderKLWan.load_config(self.folder, subfolder="vae")
        return config

    def latent_scale(self) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation that normalise the autoencoder's latents.

        Returns:
            Two tensors, [C, 1, 1, 1] each, on the backbone's device.
        """
        config = self.vae_config()
        mean, std = (
            torch.tensor(config[name], device=self.device).view(-1, 1, 1, 1)
            for name in ("latents_mean", "latents_std")
        )
        return mean, std

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Decode [B, C, F, H, W] to videos [B, 3, F, H, W] in [-1, 1]."""
        mean, std = self.latent_scale()
        return decode_parts(self.vae, latents.float() * std + mean, self.at_once)

    def leading(self, latents: Tensor, frames: int) -> Tensor:
        """Return the latents [B, C, f, H, W] of the first frames."""
        return latents[:, :, : (frames - 1) // self.clip.temporal + 1]

    @torch.no_grad()
    def encode(self, videos: Tensor) -> Tensor:
        """Encode videos [B, 3, F, H, W] in [-1, 1] to normalised latents [B, C, F, H, W]."""
        mean, std = self.latent_scale()
        latents = encode_parts(self.vae, videos.to(self.device, self.vae.dtype), self.at_once)
        return ((latents - mean) / std).to(torch_dtype(self.config))

    @staticmethod
    def set_attention(network: WanTransformer3DModel, kernel: str) -> None:
        """Select the attention kernel of each expert with diffusers' own backends."""
        for each in experts_of(network):
            if kernel in Wan.kernels:
                each.set_attention_backend(BACKENDS[kernel].value)
            else:
                FlowBackbone.set_attention(each, kernel)

    @staticmethod
    def discriminator_trunk(network: WanTransformer3DModel) -> list[Tap]:
        """Keep the first half of the blocks."""
        width = network.config.num_attention_heads * network.config.attention_head_dim
        network.blocks, taps = trunk_of(network.blocks, width)
        return taps


@dataclass(frozen=True)
class WanClip:
    """Latent shape and compression of a clip of given size in pixels."""

    latent_shape: tuple[int, int, int, int]
    spatial: int
    temporal: int

    @classmethod
    def of(cls, network: WanTransformer3DModel, folder: Path, size: ClipSize) -> WanClip:
        """Compute the latent shape for a size in pixels.

        Args:
            network: A Wan transformer, on any device.
            folder: The pipeline folder.
            size: Height, width and number of frames.

        Raises:
            ValueError: The model cannot generate `size`; the message names the rule.
        """
        # The first Wan folders lack these two entries.
        vae = {
            "scale_factor_spatial": 8,
            "scale_factor_temporal": 4,
        } | AutoencoderKLWan.load_config(folder, subfolder="vae")
        spatial, temporal = vae["scale_factor_spatial"], vae["scale_factor_temporal"]
        # the pipeline requires multiples of 16
        height, width = (math.lcm(16, spatial * patch) for patch in network.config.patch_size[1:])
        check_sides(size, height=height, width=width)
        check_frames(size, temporal)
        frames = (size.frames - 1) // temporal + 1
        return cls(
            (network.config.out_channels, frames, size.height // spatial, size.width // spatial),
            spatial,
            temporal,
        )
