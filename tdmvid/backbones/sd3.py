"""Stable Diffusion 3 and 3.5, by what their configs say: three text encoders, of which the third
may be left out.

Shapes: B batch, C channels, H W latent size, T text tokens of the two short encoders and of the
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
from .base import Tap, trunk_of
from .flow import FlowBackbone, FlowSpec
from .images import Images, ImageSpec, ImageStock, image_latents
from .lora_files import LoraFiles
from .registry import register
from .spec import Tokens

LONG_TEXT = 256  # of T5, by default of the stock call


class StableDiffusion3Spec(ImageSpec, FlowSpec):
    """A Stable Diffusion 3 pipeline folder, from its configs."""

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
        check_positions(network, folder, size)
        net, (_, height, width) = network.config, image_latents(network, folder, size)
        count = text_tokens(folder) + (height // net.patch_size) * (width // net.patch_size)
        return Tokens.of_transformer(count, net)

    def blocks(self, network: SD3Transformer2DModel) -> list[nn.Module]:
        return list(network.transformer_blocks)

    def example(
        self,
        network: SD3Transformer2DModel,
        folder: Path,
        size: ClipSize,
        batch: int,
        dtype: torch.dtype,
    ) -> dict:
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
        return super().arguments() | {"max_sequence_length": LONG_TEXT}

    def absent_parts(self) -> list[str]:
        return absent_parts(self.backbone.folder)


@register
class StableDiffusion3(Images, FlowBackbone):
    """A Stable Diffusion 3 pipeline folder as a backbone."""

    pipeline_class = "StableDiffusion3Pipeline"
    lora_targets = (
        "to_q",
        "to_k",
        "to_v",
        "to_out.0",
        "add_q_proj",
        "add_k_proj",
        "add_v_proj",
        "to_add_out",
    )
    spec, stock_class = StableDiffusion3Spec(), StableDiffusion3Stock
    lora = LoraFiles(pipeline_class)
    network: SD3Transformer2DModel

    def __init__(
        self, folder: Path, config: ModelConfig, size: ClipSize, device: torch.device | str
    ):
        super().__init__(folder, config, size, device)
        check_positions(self.network, folder, size)

    def inputs(self, x_t: Tensor, t: Tensor, cond: Cond) -> dict:
        return {
            "hidden_states": x_t,
            "timestep": self.process.timestep(t),
            "encoder_hidden_states": cond["prompt_embeds"],
            "pooled_projections": cond["pooled_prompt_embeds"],
        }

    @property
    def text(self) -> Any:
        """The pipeline's text encoders, with the network, whose config has the width of an encoder
        that is left out.
        """
        if self._text is None:
            self._text = self.stock.load(
                "vae", *absent_parts(self.folder), transformer=self.network
            )
        return self._text

    def encode_prompts(self, prompts: list[str]) -> Cond:
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
        """The short encoders read no more than 77 tokens, whatever the long one reads."""
        if absent_parts(self.folder):
            return "tokenizer", short_text(self.folder)
        return "tokenizer_3", LONG_TEXT

    def text_settings(self) -> tuple[str, ...]:
        return (str(LONG_TEXT), *absent_parts(self.folder))

    @staticmethod
    def discriminator_trunk(network: SD3Transformer2DModel) -> list[Tap]:
        width = network.config.num_attention_heads * network.config.attention_head_dim
        network.transformer_blocks, taps = trunk_of(network.transformer_blocks, width, index=1)
        return taps


def absent_parts(folder: Path) -> list[str]:
    """Return parts of the long text encoder that a folder leaves out.

    The pipeline puts zeros in the place of its embeddings.
    """
    index = read_object(folder / "model_index.json")
    return [
        part
        for part in ("text_encoder_3", "tokenizer_3")
        if not index.get(part, [None])[0] or not (folder / part).is_dir()
    ]


def check_positions(network: SD3Transformer2DModel, folder: Path, size: ClipSize) -> None:
    """Raise ValueError for an image that is larger than the network's table of positions."""
    net, (_, height, _) = network.config, image_latents(network, folder, size)
    largest = net.pos_embed_max_size * net.patch_size * (size.height // height)
    if max(size.height, size.width) > largest:
        raise ValueError(
            f"video={size}: this model has positions for {largest} pixels a side at most"
        )


def text_tokens(folder: Path) -> int:
    """Return T: what the short encoders' tokenizer pads to, and what is read of the long one."""
    return short_text(folder) + LONG_TEXT


def short_text(folder: Path) -> int:
    """Return how many tokens the short encoders read."""
    return read_object(folder / "tokenizer" / "tokenizer_config.json")["model_max_length"]
