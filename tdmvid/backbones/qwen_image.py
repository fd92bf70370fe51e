"""Qwen-Image (arXiv 2508.02324): a transformer with an image and a text stream, text by Qwen2.5-VL.

The network sees patches of 2 x 2 latents as tokens. A latent sample here is what it denoises,
[C, H, W] with 4 x the autoencoder's channels and half of its height and width. The autoencoder is
one of videos; an image is a video of one frame.

Shapes: B batch, C channels, H W size in patches, N = H W image tokens, T text tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLQwenImage, QwenImagePipeline, QwenImageTransformer2DModel
from torch import Tensor, nn

from ..config import ClipSize, ModelConfig
from ..diffusion.denoiser import Cond
from ..diffusion.guidance import extrapolate_at_norm
from .autoencode import decode_parts, encode_parts
from .base import JOINT_ATTENTION
from .dtype import torch_dtype
from .flow import FlowBackbone, FlowSpec
from .lora_files import LoraFiles
from .patches import PATCH, PackedStock, pack, patchify, unpack, unpatchify
from .registry import register
from .spec import Tokens, check_sides
from .taps import Tap, trunk_of
from .text_limit import CutPrompts, find_cut_prompts

TEXT_LENGTH = 512  # the stock call's default


class QwenImageSpec(FlowSpec):
    """Describes a Qwen-Image pipeline folder from its configs."""

    network_class, vae_class = QwenImageTransformer2DModel, AutoencoderKLQwenImage

    def vae_latents(
        self, network: QwenImageTransformer2DModel, folder: Path, size: ClipSize
    ) -> tuple[int, int, int, int]:
        """Return [C, 1, H, W] of the autoencoder's latents of one sample."""
        channels, height, width = patches(network, folder, size)
        return channels // PATCH**2, 1, PATCH * height, PATCH * width

    def vae_tile(self, vae: AutoencoderKLQwenImage) -> tuple[int, int]:
        """Return height and width of a tile of latents."""
        return (
            vae.tile_sample_min_height // vae.spatial_compression_ratio,
            vae.tile_sample_min_width // vae.spatial_compression_ratio,
        )

    def tokens(self, network: QwenImageTransformer2DModel, folder: Path, size: ClipSize) -> Tokens:
        """Return the joint sequence of text and image tokens of one sample."""
        _, height, width = patches(network, folder, size)
        return Tokens.of_transformer(TEXT_LENGTH + height * width, network.config)

    def blocks(self, network: QwenImageTransformer2DModel) -> list[nn.Module]:
        """Return the transformer blocks."""
        return list(network.transformer_blocks)

    def example(
        self,
        network: QwenImageTransformer2DModel,
        folder: Path,
        size: ClipSize,
        batch: int,
        dtype: torch.dtype,
    ) -> dict:
        """Return the arguments of one call; `hidden_states` are [B, N, C]."""
        channels, height, width = patches(network, folder, size)
        text = torch.empty(batch, TEXT_LENGTH, network.config.joint_attention_dim, dtype=dtype)
        return {
            "hidden_states": torch.empty(batch, height * width, channels, dtype=dtype),
            "encoder_hidden_states": text,
            "encoder_hidden_states_mask": torch.ones(batch, TEXT_LENGTH, dtype=torch.bool),
            "timestep": torch.empty(batch, dtype=dtype),
            "img_shapes": [[(1, height, width)]] * batch,
        }


class QwenImageStock(PackedStock):
    """The stock Qwen-Image pipeline."""

    even_sigmas = True
    guidance_argument = "true_cfg_scale"
    needs_negative_text = True

    def arguments(self) -> dict[str, Any]:
        """Return height, width and text length of the stock call."""
        return super().arguments() | {"max_sequence_length": TEXT_LENGTH}


@register
class QwenImage(FlowBackbone):
    """Backbone of a Qwen-Image pipeline folder."""

    pipeline_class = "QwenImagePipeline"
    kernels = ("sdpa",)
    lora_targets = JOINT_ATTENTION
    spec, stock_class = QwenImageSpec(), QwenImageStock
    lora = LoraFiles(pipeline_class)
    combine = staticmethod(extrapolate_at_norm)
    network: QwenImageTransformer2DModel

    def __init__(
        self, folder: Path, config: ModelConfig, size: ClipSize, device: torch.device | str
    ):
        super().__init__(folder, config, size, device)
        self._shape = patches(self.network, folder, size)

    def latent_shape(self) -> tuple[int, ...]:
        """Return [C, H, W] in patches."""
        return self._shape

    def inputs(self, x_t: Tensor, t: Tensor, cond: Cond) -> dict:
        """Return the transformer's arguments for x_t [B, C, H, W] and t [B]."""
        return {
            "hidden_states": pack(x_t),
            # rounded to the latents' dtype as by the pipeline
            "timestep": self.process.timestep(t).to(x_t.dtype) / 1000,
            "encoder_hidden_states": cond["prompt_embeds"],
            "encoder_hidden_states_mask": cond["prompt_embeds_mask"],
            "img_shapes": [[(1, *x_t.shape[-2:])]] * len(x_t),
        }

    def call(self, network: Any, x_t: Tensor, t: Tensor, cond: Cond, **more: Any) -> Tensor:
        """Call a network and return its first output as float32: [B, C, H, W] of a denoiser."""
        out = super().call(network, x_t, t, cond, **more)
        return unpack(out, *x_t.shape[-2:]) if out.dim() == 3 else out

    def latent_scale(self) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation of the autoencoder's latents, [C, 1, 1, 1] each."""
        config = self.vae.config
        mean, std = (
            torch.tensor(each, device=self.device).view(-1, 1, 1, 1)
            for each in (config.latents_mean, config.latents_std)
        )
        return mean, std

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Decode [B, C, H, W] to videos of one frame, [B, 3, 1, H', W']."""
        mean, std = self.latent_scale()
        whole = (unpatchify(latents.float())[:, :, None] * std + mean).to(self.vae.dtype)
        return decode_parts(self.vae, whole, self.at_once)

    @torch.no_grad()
    def encode(self, videos: Tensor) -> Tensor:
        """Encode videos of one frame, [B, 3, 1, H', W'] in [-1, 1], to latents [B, C, H, W]."""
        mean, std = self.latent_scale()
        modes = encode_parts(self.vae, videos.to(self.device, self.vae.dtype), self.at_once)
        return patchify(((modes - mean) / std)[:, :, 0]).to(torch_dtype(self.config))

    def encode_prompts(self, prompts: list[str]) -> Cond:
        """Return `prompt_embeds` [B, T, D], zero after each prompt's end, and its mask [B, T]."""
        with torch.no_grad():
            found, valid = self.text.encode_prompt(list(prompts), max_sequence_length=TEXT_LENGTH)
        count, length, width = found.shape
        embeds = found.new_zeros(count, TEXT_LENGTH, width)
        mask = torch.zeros(count, TEXT_LENGTH, dtype=torch.bool, device=found.device)
        embeds[:, :length] = found
        mask[:, :length] = True if valid is None else valid.bool()  # None: all are valid
        return Cond({"prompt_embeds": embeds, "prompt_embeds_mask": mask})

    def text_limit(self) -> tuple[str, int]:
        """Return the limit of 512 tokens, those of the chat template's beginning not included."""
        return "tokenizer", TEXT_LENGTH

    def find_cut_prompts(self, prompts: Sequence[str]) -> CutPrompts:
        """Return which prompts exceed the limit behind the beginning of the chat template."""
        part, limit = self.text_limit()
        begin, dropped = prompt_template()
        texts = [begin + prompt for prompt in prompts]
        return replace(find_cut_prompts(self.folder / part, dropped + limit, texts), limit=limit)

    def text_settings(self) -> tuple[str, ...]:
        """Return the text length, which limits the embeddings."""
        return (str(TEXT_LENGTH),)

    @staticmethod
    def discriminator_trunk(network: QwenImageTransformer2DModel) -> list[Tap]:
        """Keep the first half of the blocks; the features are their image tokens."""
        net = network.config
        width = net.num_attention_heads * net.attention_head_dim
        network.transformer_blocks, taps = trunk_of(network.transformer_blocks, width, index=1)
        return taps


def prompt_template() -> tuple[str, int]:
    """Return the text before a prompt, and the number of tokens that the pipeline drops of it."""
    stock = QwenImagePipeline(*[None] * 5)
    return stock.prompt_template_encode.partition("{}")[0], stock.prompt_template_encode_start_idx


def patches(
    network: QwenImageTransformer2DModel, folder: Path, size: ClipSize
) -> tuple[int, int, int]:
    """Return channels, height and width of one sample in patches.

    Raises:
        ValueError: The model cannot generate `size`.
    """
    if size.frames != 1:
        raise ValueError(
            f"video.frames={size.frames}: {type(network).__name__} generates images, use 1"
        )
    config = AutoencoderKLQwenImage.load_config(folder, subfolder="vae")
    unit = PATCH * 2 ** len(config["temperal_downsample"])
    check_sides(size, height=unit, width=unit)
    return network.config.in_channels, size.height // unit, size.width // unit
