"""CogVideoX image to video: 5B-I2V (learned positions), 1.5-5B-I2V (temporal patches and `ofs`).

The network's input is the noisy latents, concatenated along channels with the latents of the given
first frame and zeros for all later frames.

Shapes: B batch, F latent frames, C channels, H W latent size.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import CogVideoXTransformer3DModel
from torch import Tensor

from ..config import ClipSize
from ..diffusion.denoiser import Cond
from .autoencode import encode_parts
from .cogvideox import CogVideoX, CogVideoXSpec, CogVideoXStock
from .dtype import torch_dtype
from .encoded_images import EncodedImages, blank_images
from .lora_files import LoraFiles
from .registry import register

IMAGE = "image_latents"
"""Name of the condition: latents of the first frame, [B, C, H, W], scaled as network input."""


class CogVideoXImageSpec(CogVideoXSpec):
    """Describes a CogVideoX image-to-video pipeline folder from its configs."""

    def image_shapes(
        self, network: CogVideoXTransformer3DModel, folder: Path, size: ClipSize
    ) -> dict[str, tuple[int, ...]]:
        """Return the shape of the latents of one frame, [C, H, W]."""
        channels, _, *sides = self.vae_latents(network, folder, size)
        return {IMAGE: (channels, *sides)}


class CogVideoXImageStock(CogVideoXStock):
    """The stock CogVideoX image-to-video pipeline."""

    def set_scales(self, pipeline: Any) -> None:
        """Set the compression, and an image scale of 1: cached latents are scaled already."""
        super().set_scales(pipeline)
        pipeline.vae_scaling_factor_image = 1.0  # cached latents are scaled already

    def conditions(self, pipeline: Any, cond: Cond) -> dict[str, Any]:
        """Return the call's arguments; cached latents [B, C, H, W] replace the autoencoder."""
        given = dict(cond)
        latents, size = given.pop(IMAGE), self.backbone.size
        pipeline.vae = EncodedImages(latents[:, :, None], invert_scale_latents=False)
        return given | {"image": blank_images(len(latents), size.height, size.width, latents)}


@register
class CogVideoXImageToVideo(CogVideoX):
    """Backbone of a CogVideoX image-to-video pipeline folder."""

    pipeline_class = "CogVideoXImageToVideoPipeline"
    spec, stock_class = CogVideoXImageSpec(), CogVideoXImageStock
    lora = LoraFiles(pipeline_class)
    takes_images = True

    def inputs(self, x_t: Tensor, t: Tensor, cond: Cond) -> dict:
        """Return the transformer's arguments; the given frame is added to x_t [B, F, C, H, W]."""
        first = cond[IMAGE][:, None].to(x_t.dtype)  # [B, 1, C, H, W]
        later = first.new_zeros(len(first), x_t.shape[1] - 1, *first.shape[2:])
        given = torch.cat([first, later], 1)
        return super().inputs(x_t, t, cond) | {"hidden_states": torch.cat([x_t, given], 2)}

    @torch.no_grad()
    def encode_images(self, images: Tensor) -> Cond:
        """Encode images [B, 3, H, W] in [-1, 1] to latents of the first frame.

        Returns:
            The mean of the distribution that the stock pipeline samples from, [B, C, H, W] in the
            network's dtype.
        """
        videos = images.to(self.device, self.vae.dtype)[:, :, None]
        mean = encode_parts(self.vae, videos, self.at_once)
        config, latents = self.vae.config, mean[:, :, 0].to(torch_dtype(self.config))
        scale = config.scaling_factor
        # 1.5 was trained with latents divided by the factor
        return Cond({IMAGE: latents / scale if config.invert_scale_latents else latents * scale})
