"""Stable Diffusion 3 and 3.5 (arXiv 2403.03206), selected by their configs.

They have three text encoders: two short ones (CLIP) and a long one (T5), which may be missing.

Shapes: B batch, C channels, H W latent size, T text tokens of the short encoders plus those of the
long one. A latent sample is [C, H, W].
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import SD3Transformer2DModel
from torch import Tensor, nn

from ..config import ClipSize, ModelConfig
from ..config.json_files import read_object
from ..diffusion.denoiser import Cond
from .base import JOINT_ATTENTION
from .flow import FlowBackbone, FlowSpec
from .images import Images, ImageSpec, ImageStock, image_latents
from .lora_files import LoraFiles
from .registry import register
from .spec import Tokens
from .taps import Tap, trunk_of
from .text_lora import with_text_lora

LONG_TEXT = 256  # T5 tokens, the stock call's default


class StableDiffusion3Spec(ImageSpec, FlowSpec):
    """Describes a Stable Diffusion 3 pipeline folder from its configs."""

    network_class = SD3Transformer2DModel
    text_parts = (
        "text_encoder",
        "tokenizer",
        "text_encoder_2",
        "tokenizer_2",
        "text_encoder_3",
        "tokenizer_3",
    )

    def tokens(self, network: SD3Transformer2DModel, folder: Path, size: ClipSize) -> Tokens:
        """Return the joint sequence of text and image tokens of one sample."""
        check_positions(network, folder, size)
        net, (_, height, width) = network.config, image_latents(network, folder, size)
        count = text_tokens(folder) + (height // net.patch_size) * (width // net.patch_size)
        return Tokens.of_transformer(count, net)

    def blocks(self, network: SD3Transformer2DModel) -> list[nn.Module]:
        """Return the transformer blocks."""
        return list(network.transformer_blocks)

    def example(
        self,
        network: SD3Transformer2DModel,
        folder: Path,
        size: ClipSize,
        batch: int,
        dtype: torch.dtype,
    ) -> dict:
        """Return the arguments of one call; `hidden_states` are [B, C, H, W]."""
        net = network.config
        return {
            "hidden_states": torch.empty(batch, *image_latents(network, folder, size), dtype=dtype),
            "timestep": torch.empty(batch),
            "encoder_hidden_states": torch.empty(
                batch, text_tokens(folder), net.joint_attention_dim, dtype=dtype
            ),
            "pooled_projections": torch.empty(batch, net.pooled_projection_dim, dtype=dtype),
        }


class StableDiffusion3Stock(ImageStock):
    """The stock Stable Diffusion 3 pipeline."""

    def arguments(self) -> dict[str, Any]:
        """Return height, width and text length of the stock call."""
        return super().arguments() | {"max_sequence_length": LONG_TEXT}

    def absent_parts(self) -> list[str]:
        """Return the components of the long text encoder if the folder lacks it."""
        return absent_parts(self.backbone.folder)


@register
class StableDiffusion3(Images, FlowBackbone):
    """Backbone of a Stable Diffusion 3 pipeline folder."""

    pipeline_class = "StableDiffusion3Pipeline"
    lora_targets = JOINT_ATTENTION
    spec, stock_class = StableDiffusion3Spec(), StableDiffusion3Stock
    lora = LoraFiles(pipeline_class)
    network: SD3Transformer2DModel

    def __init__(
        self, folder: Path, config: ModelConfig, size: ClipSize, device: torch.device | str
    ):
        super().__init__(folder, config, size, device)
        check_positions(self.network, folder, size)

    def inputs(self, x_t: Tensor, t: Tensor, cond: Cond) -> dict:
        """Return the transformer's arguments for x_t [B, C, H, W] and t [B]."""
        return {
            "hidden_states": x_t,
            "timestep": self.process.timestep(t),
            "encoder_hidden_states": cond["prompt_embeds"],
            "pooled_projections": cond["pooled_prompt_embeds"],
        }

    @property
    def text(self) -> Any:
        """The pipeline's text encoders, loaded on first use.

        It includes the network, because the pipeline reads the width of a missing text encoder from
        the network's config.
        """
        if self._text is None:
            pipeline = self.stock.load("vae", *absent_parts(self.folder), transformer=self.network)
            self._text = with_text_lora(pipeline, self.text_lora)
        return self._text

    def encode_prompts(self, prompts: list[str]) -> Cond:
        """Return `prompt_embeds` [B, T, D] and `pooled_prompt_embeds` [B, P] of B prompts."""
        with torch.no_grad():
            embeds, _, pooled, _ = self.text.encode_prompt(
                prompts,
                None,
                None,
                do_classifier_free_guidance=False,
                max_sequence_length=LONG_TEXT,
            )
        return Cond({"prompt_embeds": embeds, "pooled_prompt_embeds": pooled})

    def text_limit(self) -> tuple[str, int]:
        """Return the long encoder's limit of 256, or the short ones' if there is no long one.

        The short encoders read at most 77 tokens in either case.
        """
        if absent_parts(self.folder):
            return "tokenizer", short_text(self.folder)
        return "tokenizer_3", LONG_TEXT

    def text_settings(self) -> tuple[str, ...]:
        """Return the text length and the missing components, which change the embeddings."""
        return (str(LONG_TEXT), *absent_parts(self.folder))

    @staticmethod
    def discriminator_trunk(network: SD3Transformer2DModel) -> list[Tap]:
        """Keep the first half of the blocks; the features are their image tokens."""
        width = network.config.num_attention_heads * network.config.attention_head_dim
        network.transformer_blocks, taps = trunk_of(network.transformer_blocks, width, index=1)
        return taps


def absent_parts(folder: Path) -> list[str]:
    """Return components of the long text encoder that a folder lacks.

    The pipeline then uses zeros in place of its embeddings.
    """
    index = read_object(folder / "model_index.json")
    return [
        part
        for part in ("text_encoder_3", "tokenizer_3")
        if not index.get(part, [None])[0] or not (folder / part).is_dir()
    ]


def check_positions(network: SD3Transformer2DModel, folder: Path, size: ClipSize) -> None:
    """Check that an image fits the network's table of position embeddings.

    Raises:
        ValueError: Height or width is too large.
    """
    net, (_, height, _) = network.config, image_latents(network, folder, size)
    largest = net.pos_embed_max_size * net.patch_size * (size.height // height)
    if max(size.height, size.width) > largest:
        raise ValueError(
            f"video.height={size.height} and video.width={size.width}: this model has position"
            f" embeddings for at most {largest} pixels per side, use at most {largest}"
        )


def text_tokens(folder: Path) -> int:
    """Return T, the number of text tokens of the short encoders and the long one together."""
    return short_text(folder) + LONG_TEXT


def short_text(folder: Path) -> int:
    """Return the number of tokens that the short text encoders read."""
    return read_object(folder / "tokenizer" / "tokenizer_config.json")["model_max_length"]
