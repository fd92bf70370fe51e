"""Wan 2.2 image to video, I2V-A14B: two experts, without an image encoder.

The network's input is the noisy latents, concatenated along channels with a mask of the given
frames and with the latents of a video that starts with the given frame and is grey after it.

Shapes: B batch, C channels, F latent frames, H W latent size.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from diffusers import WanPipeline
from torch import Tensor, nn

from ..config.json_files import read_object
from ..diffusion.denoiser import Cond
from .dtype import torch_dtype
from .encoded_images import EncodedImages, blank_images
from .lora_files import LoraFiles
from .registry import register
from .wan import Wan, WanSpec, WanStock

GIVEN = "image_latents"
"""Name of the condition: normalised latents of the video after the given frame, [B, C, F, H, W]."""


class WanImageSpec(WanSpec):
    """Describes a Wan image-to-video pipeline folder from its configs."""

    def find_obstacle(self, folder: Path) -> str:
        """Return why Wan 2.1 I2V and TI2V-5B are not supported, and what to use; else ""."""
        index = read_object(folder / "model_index.json")
        config = folder / self.network_folder / "config.json"
        width = read_object(config).get("image_dim") if config.is_file() else None
        if width is not None:
            return (
                f"image_dim={width} in {self.network_folder}/config.json: models that read an image"
                " encoder's embeddings, such as Wan 2.1 I2V, are not supported; use Wan 2.2"
                " I2V-A14B"
            )
        if index.get("expand_timesteps"):
            return (
                f"expand_timesteps=true in model_index.json: a {index['_class_name']} that puts the"
                " image among the noisy latents, such as TI2V-5B, is not supported; use Wan 2.2"
                " I2V-A14B, or TI2V-5B as a WanPipeline without images"
            )
        return ""


class EncodedVideos(EncodedImages):
    """Given latents in place of the autoencoder, for a pipeline that asks for its device."""

    @property
    def device(self) -> torch.device:
        """Device of the latents."""
        return self.latents.device

    def modules(self) -> Iterator[nn.Module]:
        """Return no modules, and therefore no hooks."""
        return iter(())


class WanImageStock(WanStock):
    """The stock Wan image-to-video pipeline, which accepts one image per call."""

    one_image_a_call = True

    def conditions(self, pipeline: Any, cond: Cond) -> dict[str, Any]:
        """Return the arguments of a call; cached latents [B, C, F, H, W] replace the autoencoder.

        The list of generators makes the pipeline encode once per row.
        """
        given, backbone = dict(cond), self.backbone
        latents, size = given.pop(GIVEN).float(), backbone.size
        mean, std = backbone.latent_scale()
        config = backbone.vae_config()
        pipeline.vae = EncodedVideos(
            latents * std + mean,
            z_dim=latents.shape[1],
            latents_mean=config["latents_mean"],
            latents_std=config["latents_std"],
        )
        generators = [torch.Generator(latents.device) for _ in latents]  # they draw nothing
        blank = blank_images(1, size.height, size.width, latents)
        return given | {"image": blank, "generator": generators}


@register
class WanImageToVideo(Wan):
    """Backbone of a Wan image-to-video pipeline folder."""

    pipeline_class = "WanImageToVideoPipeline"
    spec, stock_class = WanImageSpec(), WanImageStock
    lora = LoraFiles(pipeline_class)
    takes_images = True

    @property
    def text(self) -> Any:
        """The text-to-video pipeline with only its text encoder, loaded on first use.

        It encodes prompts in the same way and does not need ftfy.
        """
        if self._text is None:
            loaded = self.stock.load(*self.spec.components(self.folder), "vae")
            self._text = WanPipeline(
                loaded.tokenizer, loaded.text_encoder, vae=None, scheduler=loaded.scheduler
            )
        return self._text

    def inputs(self, x_t: Tensor, t: Tensor, cond: Cond) -> dict:
        """Return the transformer's arguments; x_t [B, C, F, H, W] gets mask and given latents."""
        given = cond[GIVEN].to(x_t.dtype)
        mask = given.new_zeros(len(given), self.clip.temporal, *given.shape[2:])
        mask[:, :, 0] = 1
        return super().inputs(x_t, t, cond) | {"hidden_states": torch.cat([x_t, mask, given], 1)}

    @torch.no_grad()
    def encode_images(self, images: Tensor) -> Cond:
        """Encode images [B, 3, H, W] in [-1, 1], each followed by grey frames.

        Returns:
            Normalised latents, [B, C, F, H, W] in the network's dtype.
        """
        first = images.to(self.device, self.vae.dtype)[:, :, None]
        mean, std = self.latent_scale()
        encoded = []
        for one in first.split(1):
            later = one.new_zeros(1, 3, self.size.frames - 1, *one.shape[3:])
            encoded.append(self.vae.encode(torch.cat([one, later], 2)).latent_dist.mode())
        latents = (torch.cat(encoded).float() - mean) / std
        return Cond({GIVEN: latents.to(torch_dtype(self.config))})
