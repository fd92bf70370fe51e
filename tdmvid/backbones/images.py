"""What families of images share: sizes, and latents that an AutoencoderKL decodes.

Shapes: B batch, C channels, H W latent size. A latent sample is [C, H, W]; decoded images are
videos of one frame.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, ModelMixin
from torch import Tensor

from ..config import ClipSize, ModelConfig
from .dtype import torch_dtype
from .pipeline import PipelineBackbone
from .spec import FamilySpec, check_sides, check_tiles
from .stock import StockPipeline


class ImageSpec(FamilySpec):
    """A family of images, whose autoencoder is an AutoencoderKL."""

    vae_class = AutoencoderKL

    def vae_latents(
        self, network: ModelMixin, folder: Path, size: ClipSize
    ) -> tuple[int, int, int]:
        return image_latents(network, folder, size)

    def vae_tile(self, vae: AutoencoderKL) -> tuple[int, int]:
        side = vae.tile_latent_min_size, vae.tile_sample_min_size, vae.tile_overlap_factor
        return check_tiles(side, side)


class ImageStock(StockPipeline):
    """A stock pipeline of images."""

    output = "images"

    def arguments(self) -> dict[str, Any]:
        size = self.backbone.size
        return {"height": size.height, "width": size.width}

    def set_scales(self, pipeline: Any) -> None:
        height = self.backbone.latent_shape()[1]
        pipeline.vae_scale_factor = self.backbone.size.height // height


class Images(PipelineBackbone):
    """A teacher of images; mixed with the backbone of its process."""

    stock_class = ImageStock

    def __init__(
        self, folder: Path, config: ModelConfig, size: ClipSize, device: torch.device | str
    ):
        super().__init__(folder, config, size, device)
        self._shape = image_latents(self.network, folder, size)

    def latent_shape(self) -> tuple[int, ...]:
        return self._shape

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        config = self.vae.config
        latents = (latents / config.scaling_factor + (config.shift_factor or 0.0)).to(
            self.vae.dtype
        )
        return torch.cat(
            [self.vae.decode(one).sample.float().clamp(-1, 1) for one in latents.split(1)]
        )[:, :, None]

    @torch.no_grad()
    def encode(self, videos: Tensor) -> Tensor:
        config, images = self.vae.config, videos[:, :, 0].to(self.device, self.vae.dtype)
        mean = torch.cat([self.vae.encode(one).latent_dist.mode() for one in images.split(1)])
        return ((mean - (config.shift_factor or 0.0)) * config.scaling_factor).to(
            torch_dtype(self.config)
        )


def image_latents(network: ModelMixin, folder: Path, size: ClipSize) -> tuple[int, int, int]:
    """Return the shape of one sample, [C, H, W].

    Raises:
        ValueError: `size` breaks a rule, which the message names.
    """
    if size.frames != 1:
        raise ValueError(
            f"video.frames={size.frames}: {type(network).__name__} generates images, use 1"
        )
    scale = 2 ** (len(AutoencoderKL.load_config(folder, subfolder="vae")["block_out_channels"]) - 1)
    unit = scale * network.config.get("patch_size", 1)
    check_sides(size, height=unit, width=unit)
    return network.config.in_channels, size.height // scale, size.width // scale
