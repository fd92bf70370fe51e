"""FLUX.1 (dev): double and single blocks, text by CLIP and T5, guidance as an embedding.

The teacher was distilled from a guided one and reads the guidance scale (`model.guidance`), so one
call gives its guided prediction. Student and fake read the same scale, which never changes. A
latent sample is what the network denoises: patches of 2 x 2 latents.

Shapes: B batch, C channels, H W size in patches, N = H W image tokens, T text tokens.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor, nn

from ..config import ClipSize
from ..diffusion.denoiser import Cond
from .base import JOINT_ATTENTION
from .flow import FlowBackbone, FlowSpec
from .images import Images, ImageSpec, image_latents
from .lora_files import LoraFiles
from .patches import PATCH, PackedStock, pack, patchify, unpack, unpatchify
from .registry import register
from .spec import Tokens, check_sides
from .taps import Tap, trunk_of

TEXT_LENGTH = 512  # T5 tokens, the stock call's default


class Flux1Spec(ImageSpec, FlowSpec):
    """Describes a FLUX.1 pipeline folder from its configs."""

    network_class = FluxTransformer2DModel
    text_parts = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")

    def find_obstacle(self, folder: Path) -> str:
        """Return why a model without an embedded guidance is refused, or ""."""
        if not self.network_class.load_config(folder, subfolder="transformer")["guidance_embeds"]:
            return (
                f"{folder} reads no guidance scale (guidance_embeds=false), as FLUX.1-schnell, and"
                " is already distilled: use black-forest-labs/FLUX.1-dev"
            )
        return super().find_obstacle(folder)

    def vae_latents(
        self, network: FluxTransformer2DModel, folder: Path, size: ClipSize
    ) -> tuple[int, int, int]:
        """Return channels, height and width of the autoencoder's latents of one sample."""
        channels, height, width = patches(network, folder, size)
        return channels // PATCH**2, PATCH * height, PATCH * width

    def tokens(self, network: FluxTransformer2DModel, folder: Path, size: ClipSize) -> Tokens:
        """Return the joint sequence of text and image tokens of one sample."""
        net, (_, height, width) = network.config, patches(network, folder, size)
        heads, depth = net.num_attention_heads, net.num_layers + net.num_single_layers
        return Tokens(TEXT_LENGTH + height * width, heads, heads * net.attention_head_dim, depth)

    def blocks(self, network: FluxTransformer2DModel) -> list[nn.Module]:
        """Return the double and the single blocks."""
        return [*network.transformer_blocks, *network.single_transformer_blocks]

    def example(
        self,
        network: FluxTransformer2DModel,
        folder: Path,
        size: ClipSize,
        batch: int,
        dtype: torch.dtype,
    ) -> dict:
        """Return the arguments of one call; `hidden_states` are [B, N, C]."""
        net, (channels, height, width) = network.config, patches(network, folder, size)
        return {
            "hidden_states": torch.empty(batch, height * width, channels, dtype=dtype),
            "encoder_hidden_states": torch.empty(
                batch, TEXT_LENGTH, net.joint_attention_dim, dtype=dtype
            ),
            "pooled_projections": torch.empty(batch, net.pooled_projection_dim, dtype=dtype),
            "timestep": torch.empty(batch, dtype=dtype),
            "guidance": torch.empty(batch) if net.guidance_embeds else None,
            "img_ids": torch.empty(height * width, 3),
            "txt_ids": torch.empty(TEXT_LENGTH, 3),
        }


class Flux1Stock(PackedStock):
    """The stock FLUX.1 pipeline. Its `guidance_scale` is the embedded one."""

    backbone: Flux1
    even_sigmas = True
    guidance_argument = "true_cfg_scale"
    needs_negative_text = True

    def arguments(self) -> dict[str, Any]:
        """Return height, width, text length and embedded guidance of the stock call."""
        return super().arguments() | {
            "max_sequence_length": TEXT_LENGTH,
            "guidance_scale": self.backbone.guidance,
        }


@register
class Flux1(Images, FlowBackbone):
    """Backbone of a FLUX.1 pipeline folder."""

    pipeline_class = "FluxPipeline"
    kernels = ("sdpa",)
    embedded_guidance = 3.5  # the stock call's default
    lora_targets = JOINT_ATTENTION
    spec, stock_class = Flux1Spec(), Flux1Stock
    lora = LoraFiles(pipeline_class)
    network: FluxTransformer2DModel

    def latent_shape(self) -> tuple[int, ...]:
        """Return [C, H, W] in patches."""
        return patches(self.network, self.folder, self.size)

    def inputs(self, x_t: Tensor, t: Tensor, cond: Cond) -> dict:
        """Return the transformer's arguments for x_t [B, C, H, W] and t [B]."""
        text, (height, width), scale = cond["prompt_embeds"], x_t.shape[-2:], None
        if self.network.config.guidance_embeds:
            assert self.guidance is not None
            scale = torch.full((len(x_t),), self.guidance, device=x_t.device)
        return {
            "hidden_states": pack(x_t),
            # rounded to the latents' dtype as by the pipeline
            "timestep": self.process.timestep(t).to(x_t.dtype) / 1000,
            "guidance": scale,
            "encoder_hidden_states": text,
            "pooled_projections": cond["pooled_prompt_embeds"],
            "img_ids": image_positions(height, width, x_t.device),
            "txt_ids": torch.zeros(text.shape[1], 3, device=x_t.device),
        }

    def call(self, network: Any, x_t: Tensor, t: Tensor, cond: Cond, **more: Any) -> Tensor:
        """Call a network and return its first output as float32: [B, C, H, W] of a denoiser."""
        out = super().call(network, x_t, t, cond, **more)
        return unpack(out, *x_t.shape[-2:]) if out.dim() == 3 else out

    def decode(self, latents: Tensor) -> Tensor:
        """Decode [B, C, H, W] to videos of one frame, [B, 3, 1, H', W']."""
        return super().decode(unpatchify(latents))

    def encode(self, videos: Tensor) -> Tensor:
        """Encode videos of one frame, [B, 3, 1, H', W'] in [-1, 1], to latents [B, C, H, W]."""
        return patchify(super().encode(videos))

    def encode_prompts(self, prompts: list[str]) -> Cond:
        """Return `prompt_embeds` [B, T, D] and `pooled_prompt_embeds` [B, P] of B prompts."""
        with torch.no_grad():
            embeds, pooled, _ = self.text.encode_prompt(
                list(prompts), max_sequence_length=TEXT_LENGTH
            )
        return Cond({"prompt_embeds": embeds, "pooled_prompt_embeds": pooled})

    def text_limit(self) -> tuple[str, int]:
        """Return T5's limit of 512 tokens. CLIP reads at most 77."""
        return "tokenizer_2", TEXT_LENGTH

    def text_settings(self) -> tuple[str, ...]:
        """Return the text length, which limits the embeddings."""
        return (str(TEXT_LENGTH),)

    @staticmethod
    def discriminator_trunk(network: FluxTransformer2DModel) -> list[Tap]:
        """Keep the double blocks and the first half of the single ones."""
        net = network.config
        width = net.num_attention_heads * net.attention_head_dim
        network.single_transformer_blocks, taps = trunk_of(
            network.single_transformer_blocks, width, index=1
        )
        return taps


def patches(network: FluxTransformer2DModel, folder: Path, size: ClipSize) -> tuple[int, int, int]:
    """Return channels, height and width of one sample in patches.

    Raises:
        ValueError: The model cannot generate `size`.
    """
    channels, height, width = image_latents(network, folder, size)
    unit = PATCH * size.height // height
    check_sides(size, height=unit, width=unit)
    return channels, height // PATCH, width // PATCH


def image_positions(height: int, width: int, device: torch.device) -> Tensor:
    """Return zero, row and column of each image token, [N, 3] float32."""
    rows, columns = (torch.arange(count, device=device).float() for count in (height, width))
    return torch.cartesian_prod(torch.zeros(1, device=device), rows, columns)
