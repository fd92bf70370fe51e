"""Stable Diffusion XL (arXiv 2307.01952): a UNet conditioned on two text encoders and image sizes.

Shapes: B batch, C channels, H W latent size, T text tokens. A latent sample is [C, H, W].
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel
from torch import Tensor

from ..config import ClipSize, ModelConfig
from ..diffusion.denoiser import Cond
from .lora_files import LoraFiles
from .registry import register
from .stable_diffusion import StableDiffusion, StableDiffusionSpec, StableDiffusionStock


class StableDiffusionXLSpec(StableDiffusionSpec):
    """Describes a Stable Diffusion XL pipeline folder from its configs."""

    text_parts = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")

    def example(
        self,
        network: UNet2DConditionModel,
        folder: Path,
        size: ClipSize,
        batch: int,
        dtype: torch.dtype,
    ) -> dict:
        """Return the arguments of one call; `sample` is [B, C, H, W]."""
        net = network.config
        pooled = net.projection_class_embeddings_input_dim - 6 * net.addition_time_embed_dim
        added = {
            "text_embeds": torch.empty(batch, pooled, dtype=dtype),
            "time_ids": torch.empty(batch, 6, dtype=dtype),
        }
        return super().example(network, folder, size, batch, dtype) | {"added_cond_kwargs": added}


class StableDiffusionXLStock(StableDiffusionStock):
    """The stock Stable Diffusion XL pipeline."""

    options: ClassVar[dict[str, Any]] = {"feature_extractor": None, "image_encoder": None}


@register
class StableDiffusionXL(StableDiffusion):
    """Backbone of a Stable Diffusion XL pipeline folder.

    The size conditions state that images are uncropped and have the requested size.
    """

    pipeline_class = "StableDiffusionXLPipeline"
    spec, stock_class = StableDiffusionXLSpec(), StableDiffusionXLStock
    lora = LoraFiles(pipeline_class, part="unet", prefix="unet")

    def __init__(
        self, folder: Path, config: ModelConfig, size: ClipSize, device: torch.device | str
    ):
        super().__init__(folder, config, size, device)
        self.zero_null = StableDiffusionXLPipeline.load_config(folder).get(
            "force_zeros_for_empty_prompt", True
        )

    def inputs(self, x_t: Tensor, t: Tensor, cond: Cond) -> dict:
        """Return the UNet's arguments for x_t [B, C, H, W] and t [B]."""
        height, width = self.size.height, self.size.width
        sizes = torch.tensor(
            [height, width, 0, 0, height, width], dtype=x_t.dtype
        )  # original size, crop offset, target size
        added = {
            "text_embeds": cond["pooled_prompt_embeds"],
            "time_ids": sizes.to(x_t.device, non_blocking=True).expand(len(x_t), -1),
        }
        return super().inputs(x_t, t, cond) | {"added_cond_kwargs": added}

    def encode_prompts(self, prompts: list[str]) -> Cond:
        """Return `prompt_embeds` [B, T, D] and `pooled_prompt_embeds` [B, P] of B prompts."""
        with torch.no_grad():
            embeds, _, pooled, _ = self.text.encode_prompt(
                prompts, device=self.device, do_classifier_free_guidance=False
            )
        if self.zero_null:  # the pipeline uses zeros for an empty prompt
            empty = torch.tensor([not prompt for prompt in prompts], device=embeds.device)
            embeds, pooled = (
                embeds.masked_fill(empty[:, None, None], 0),
                pooled.masked_fill(empty[:, None], 0),
            )
        return Cond({"prompt_embeds": embeds, "pooled_prompt_embeds": pooled})

    def text_settings(self) -> tuple[str, ...]:
        """Return whether empty prompts are encoded as zeros, which changes the embeddings."""
        return (f"zero null {self.zero_null}",)
