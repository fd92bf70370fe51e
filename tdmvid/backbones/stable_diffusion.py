"""Stable Diffusion 1.x and 2.x (arXiv 2112.10752): a UNet conditioned on one CLIP text encoder.

Shapes: B batch, C channels, H W latent size, T text tokens. A latent sample is [C, H, W].
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn

from ..config import ClipSize, ModelConfig
from ..config.json_files import read_object
from ..diffusion.denoiser import Cond
from .images import Images, ImageSpec, ImageStock, image_latents
from .lora_files import LoraFiles
from .registry import register
from .spec import Tokens
from .taps import Tap
from .vp import VPBackbone, VPSpec


class StableDiffusionSpec(ImageSpec, VPSpec):
    """Describes a Stable Diffusion pipeline folder from its configs."""

    network_folder = "unet"
    network_class = UNet2DConditionModel

    def tokens(self, network: UNet2DConditionModel, folder: Path, size: ClipSize) -> Tokens:
        """Return the tokens of the finest level that has attention."""
        _, height, width = image_latents(network, folder, size)
        levels = [
            level
            for level, block in enumerate(network.down_blocks)
            if getattr(block, "has_cross_attention", False)
        ]
        finest = levels[0]
        transformers = [m for m in network.modules() if isinstance(m, BasicTransformerBlock)]
        return Tokens(
            (height >> finest) * (width >> finest),
            transformers[0].attn1.heads,
            transformers[0].attn1.inner_dim,
            len(transformers),
            note=(
                "at the UNet's finest attention level; coarser levels have fewer tokens and more"
                " channels; convolution workspace is not counted"
            ),
        )

    def blocks(self, network: UNet2DConditionModel) -> list[nn.Module]:
        """Return residual and transformer blocks, as diffusers checkpoints them."""
        # diffusers does not checkpoint this one
        first = network.mid_block.resnets[0] if network.mid_block is not None else None
        return [
            m
            for m in network.modules()
            if isinstance(m, (ResnetBlock2D, BasicTransformerBlock)) and m is not first
        ]

    def example(
        self,
        network: UNet2DConditionModel,
        folder: Path,
        size: ClipSize,
        batch: int,
        dtype: torch.dtype,
    ) -> dict:
        """Return the arguments of one call; `sample` is [B, C, H, W]."""
        text_config = read_object(folder / "text_encoder" / "config.json")
        text = text_config["max_position_embeddings"]
        return {
            "sample": torch.empty(batch, *image_latents(network, folder, size), dtype=dtype),
            "timestep": torch.empty(batch, dtype=torch.long),
            "encoder_hidden_states": torch.empty(
                batch, text, network.config.cross_attention_dim, dtype=dtype
            ),
        }


class StableDiffusionStock(ImageStock):
    """The stock Stable Diffusion pipeline."""

    options: ClassVar[dict[str, Any]] = {
        "safety_checker": None,
        "requires_safety_checker": False,
        "feature_extractor": None,
        "image_encoder": None,
    }


@register
class StableDiffusion(Images, VPBackbone):
    """Backbone of a Stable Diffusion pipeline folder."""

    pipeline_class = "StableDiffusionPipeline"
    spec, stock_class = StableDiffusionSpec(), StableDiffusionStock
    lora = LoraFiles(pipeline_class, part="unet", prefix="unet")
    network: UNet2DConditionModel

    def __init__(
        self, folder: Path, config: ModelConfig, size: ClipSize, device: torch.device | str
    ):
        super().__init__(folder, config, size, device)
        if self.network.config.time_cond_proj_dim is not None:
            raise ValueError(
                f"{folder}: this UNet takes guidance as an input (time_cond_proj_dim), so it is a"
                " distilled model already: use its teacher"
            )

    def inputs(self, x_t: Tensor, t: Tensor, cond: Cond) -> dict:
        """Return the UNet's arguments for x_t [B, C, H, W] and t [B]."""
        return {
            "sample": x_t,
            "timestep": self.process.timestep(t),
            "encoder_hidden_states": cond["prompt_embeds"],
        }

    def text_limit(self) -> tuple[str, int]:
        """Return the tokenizer's folder and its maximal length."""
        settings = read_object(self.folder / "tokenizer" / "tokenizer_config.json")
        return "tokenizer", settings["model_max_length"]

    def encode_prompts(self, prompts: list[str]) -> Cond:
        """Return `prompt_embeds` [B, T, D] of B prompts."""
        with torch.no_grad():
            embeds, _ = self.text.encode_prompt(
                prompts, self.device, 1, do_classifier_free_guidance=False
            )
        return Cond({"prompt_embeds": embeds})

    @staticmethod
    def discriminator_trunk(network: UNet2DConditionModel) -> list[Tap]:
        """Keep the down blocks and the mid block, whose output becomes the network's output."""
        network.up_blocks, network.conv_norm_out, network.conv_out = (
            nn.ModuleList(),
            None,
            nn.Identity(),
        )
        inside = [
            *network.down_blocks,
            *([network.mid_block] if network.mid_block is not None else []),
        ]
        return [Tap(block, block.resnets[-1].out_channels) for block in inside]
