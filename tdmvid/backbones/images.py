"""Shared code of the image families: sizes, and latents that an AutoencoderKL decodes.

Shapes: B batch, C channels, H W latent size. A latent sample is [C, H, W]; decoded images are
videos of one frame, [B, 3, 1, H, W].
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, ModelMixin
from torch import Tensor

from ..config import ClipSize, ModelConfig
from .autoencode import decode_parts, encode_parts
from .dtype import torch_dtype
from .pipeline import PipelineBackbone
from .spec import FamilySpec, check_sides, check_tiles
from .stock import StockPipeline


class ImageSpec(FamilySpec):
    """Describes an image family with an AutoencoderKL."""

    vae_class = AutoencoderKL

    def vae_latents(
        self, network: ModelMixin, folder: Path, size: ClipSize
    ) -> tuple[int, int, int]:
        """Return [C, H, W] of one sample."""
        return image_latents(network, folder, size)

    def vae_tile(self, vae: AutoencoderKL) -> tuple[int, int]:
        """Return height and width of a tile of latents."""
        side = vae.tile_latent_min_size, vae.tile_sample_min_size, vae.tile_overlap_factor
        return check_tiles(side, side)


class ImageStock(StockPipeline):
    """The stock pipeline of an image family."""

    output = "images"

    def arguments(self) -> dict[str, Any]:
        """Return height and width of the stock call."""
        size = self.backbone.size
        return {"height": size.height, "width": size.width}

    def set_scales(self, pipeline: Any) -> None:
        """Set the autoencoder's compression on a pipeline without one."""
        height = self.backbone.latent_shape()[1]
        pipeline.vae_scale_factor = self.backbone.size.height // height


class Images(PipelineBackbone):
    """Backbone of an image teacher. Combined with the backbone class of its process."""

    stock_class = ImageStock

    def __init__(
        self, folder: Path, config: ModelConfig, size: ClipSize, device: torch.device | str
    ):
        super().__init__(folder, config, size, device)
        self._shape = image_latents(self.network, folder, size)

    def latent_shape(self) -> tuple[int, ...]:
        """Return [C, H, W]."""
        return self._shape

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Decode [B, C, H, W] to videos of one frame, [B, 3, 1, H, W] in [-1, 1]."""
        config = self.vae.config
        latents = (latents / config.scaling_factor + (config.shift_factor or 0.0)).to(
            self.vae.dtype
        )
        return decode_parts(self.vae, latents, self.at_once)[:, :, None]

    @torch.no_grad()
    def encode(self, videos: Tensor) -> Tensor:
        """Encode videos of one frame, [B, 3, 1, H, W] in [-1, 1], to latents [B, C, H, W]."""
        config, images = self.vae.config, videos[:, :, 0].to(self.device, self.vae.dtype)
        mean = encode_parts(self.vae, images, self.at_once)
        return ((mean - (config.shift_factor or 0.0)) * config.scaling_factor).to(
            torch_dtype(self.config)
        )


def image_latents(network: ModelMixin, folder: Path, size: ClipSize) -> tuple[int, int, int]:
    """Compute the latent shape of one image, [C, H, W].

    Args:
        network: The family's network, on any device.
        folder: The pipeline folder, whose autoencoder config gives the compression.
        size: Height and width in pixels; `frames` must be 1.

    Raises:
        ValueError: The model cannot generate `size`; the message names the rule.
    """
    if size.frames != 1:
        raise ValueError(
            f"video.frames={size.frames}: {type(network).__name__} generates images, use 1"
        )
    scale = 2 ** (len(AutoencoderKL.load_config(folder, subfolder="vae")["block_out_channels"]) - 1)
    unit = scale * network.config.get("patch_size", 1)
    check_sides(size, height=unit, width=unit)
    return network.config.in_channels, size.height // scale, size.width // scale
