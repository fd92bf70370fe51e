"""FLUX.2 klein (base): double and single transformer blocks, text by three layers of Qwen3.

The network sees patches of 2 x 2 latents as tokens, normalised by statistics of the autoencoder.
A latent sample here is what the network denoises, [C, H, W] with 4 x the autoencoder's channels
and half of its height and width.

Shapes: B batch, C channels, H W size in patches, N = H W image tokens, T text tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLFlux2, Flux2Transformer2DModel
from torch import Tensor, nn

from ..config import ClipSize
from ..config.json_files import read_object
from ..diffusion.denoiser import Cond
from .autoencode import decode_parts, encode_parts
from .base import JOINT_ATTENTION
from .dtype import torch_dtype
from .flow import FlowBackbone, FlowSpec
from .images import Images, ImageSpec, ImageStock
from .lora_files import LoraFiles
from .patches import PATCH, pack, patchify, unpack, unpatchify
from .registry import register
from .spec import Tokens, check_sides
from .taps import Tap, trunk_of
from .text_limit import CutPrompts, find_cut_chats

TEXT_LENGTH = 512  # the stock call's default


class Flux2KleinSpec(ImageSpec, FlowSpec):
    """Describes a FLUX.2 klein pipeline folder from its configs."""

    network_class = Flux2Transformer2DModel
    vae_class = AutoencoderKLFlux2

    def find_obstacle(self, folder: Path) -> str:
        """Return why a distilled model is refused, or "" for a base model."""
        if read_object(folder / "model_index.json").get("is_distilled"):
            return (
                f"{folder} is already distilled (is_distilled=true in its model_index.json): use a"
                " base model such as black-forest-labs/FLUX.2-klein-base-4B"
            )
        return super().find_obstacle(folder)

    def vae_latents(
        self, network: Flux2Transformer2DModel, folder: Path, size: ClipSize
    ) -> tuple[int, int, int]:
        """Return channels, height and width of the autoencoder's latents of one sample."""
        channels, height, width = patches(network, folder, size)
        return channels // PATCH**2, PATCH * height, PATCH * width

    def tokens(self, network: Flux2Transformer2DModel, folder: Path, size: ClipSize) -> Tokens:
        """Return the joint sequence of text and image tokens of one sample."""
        net, (_, height, width) = network.config, patches(network, folder, size)
        heads = net.num_attention_heads
        depth = net.num_layers + net.num_single_layers
        return Tokens(TEXT_LENGTH + height * width, heads, heads * net.attention_head_dim, depth)

    def blocks(self, network: Flux2Transformer2DModel) -> list[nn.Module]:
        """Return the double and the single blocks."""
        return [*network.transformer_blocks, *network.single_transformer_blocks]

    def example(
        self,
        network: Flux2Transformer2DModel,
        folder: Path,
        size: ClipSize,
        batch: int,
        dtype: torch.dtype,
    ) -> dict:
        """Return the arguments of one call; `hidden_states` are [B, N, C]."""
        channels, height, width = patches(network, folder, size)
        text = torch.empty(batch, TEXT_LENGTH, network.config.joint_attention_dim, dtype=dtype)
        x_t = torch.empty(batch, channels, height, width, dtype=dtype)
        return {"hidden_states": pack(x_t), "encoder_hidden_states": text} | {
            "timestep": torch.empty(batch, dtype=dtype),
            "img_ids": image_positions(height, width, x_t.device),
            "txt_ids": text_positions(TEXT_LENGTH, x_t.device),
        }


class Flux2KleinStock(ImageStock):
    """The stock FLUX.2 klein pipeline."""

    even_sigmas = True
    takes_negative_text = False

    def arguments(self) -> dict[str, Any]:
        """Return height, width and text length of the stock call."""
        return super().arguments() | {"max_sequence_length": TEXT_LENGTH}

    def pipeline(self, network: nn.Module | None = None) -> Any:
        """Load the pipeline without text encoder; a call reads statistics of the autoencoder."""
        spec, backbone = self.backbone.spec, self.backbone
        given = {} if network is None else spec.named_components(network)
        return self.load(*spec.text_parts, vae=backbone.vae, **given)

    def read_latents(self, out: Tensor) -> Tensor:
        """Return normalised patches [B, C, H, W] of the call's latents."""
        mean, deviation = statistics(self.backbone.vae, out)
        return (patchify(out) - mean) / deviation


@register
class Flux2Klein(Images, FlowBackbone):
    """Backbone of a FLUX.2 klein base pipeline folder."""

    pipeline_class = "Flux2KleinPipeline"
    kernels = ("sdpa",)
    lora_targets = (*JOINT_ATTENTION, "to_qkv_mlp_proj")
    spec, stock_class = Flux2KleinSpec(), Flux2KleinStock
    lora = LoraFiles(pipeline_class)
    network: Flux2Transformer2DModel

    def latent_shape(self) -> tuple[int, ...]:
        """Return [C, H, W] in patches."""
        return patches(self.network, self.folder, self.size)

    def inputs(self, x_t: Tensor, t: Tensor, cond: Cond) -> dict:
        """Return the transformer's arguments for x_t [B, C, H, W] and t [B]."""
        text, (height, width) = cond["prompt_embeds"], x_t.shape[-2:]
        return {
            "hidden_states": pack(x_t),
            # rounded to the latents' dtype as by the pipeline
            "timestep": self.process.timestep(t).to(x_t.dtype) / 1000,
            "encoder_hidden_states": text,
            "img_ids": image_positions(height, width, x_t.device),
            "txt_ids": text_positions(text.shape[1], x_t.device),
        }

    def call(self, network: Any, x_t: Tensor, t: Tensor, cond: Cond, **more: Any) -> Tensor:
        """Call a network and return its first output as float32: [B, C, H, W] of a denoiser."""
        out = super().call(network, x_t, t, cond, **more)
        return unpack(out, *x_t.shape[-2:]) if out.dim() == 3 else out

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Decode [B, C, H, W] to videos of one frame, [B, 3, 1, H', W']."""
        mean, deviation = statistics(self.vae, latents)
        whole = unpatchify(latents * deviation + mean).to(self.vae.dtype)
        return decode_parts(self.vae, whole, self.at_once)[:, :, None]

    @torch.no_grad()
    def encode(self, videos: Tensor) -> Tensor:
        """Encode videos of one frame, [B, 3, 1, H', W'] in [-1, 1], to latents [B, C, H, W]."""
        images = videos[:, :, 0].to(self.device, self.vae.dtype)
        tokens = patchify(encode_parts(self.vae, images, self.at_once))
        mean, deviation = statistics(self.vae, tokens)
        return ((tokens - mean) / deviation).to(torch_dtype(self.config))

    def encode_prompts(self, prompts: list[str]) -> Cond:
        """Return `prompt_embeds` [B, T, D] of B prompts, padding included."""
        with torch.no_grad():
            embeds, _ = self.text.encode_prompt(list(prompts), max_sequence_length=TEXT_LENGTH)
        return Cond({"prompt_embeds": embeds})

    def text_limit(self) -> tuple[str, int]:
        """Return the limit of 512 tokens, the chat template's included."""
        return "tokenizer", TEXT_LENGTH

    def find_cut_prompts(self, prompts: Sequence[str]) -> CutPrompts:
        """Return which prompts exceed the limit behind the beginning of the chat template."""
        part, limit = self.text_limit()
        return find_cut_chats(self.folder / part, limit, prompts, enable_thinking=False)

    def text_settings(self) -> tuple[str, ...]:
        """Return the text length, which limits the embeddings."""
        return (str(TEXT_LENGTH),)

    @staticmethod
    def discriminator_trunk(network: Flux2Transformer2DModel) -> list[Tap]:
        """Keep the double blocks and the first half of the single ones."""
        net = network.config
        width = net.num_attention_heads * net.attention_head_dim
        network.single_transformer_blocks, taps = trunk_of(network.single_transformer_blocks, width)
        return taps


def patches(network: Flux2Transformer2DModel, folder: Path, size: ClipSize) -> tuple[int, int, int]:
    """Return channels, height and width of one sample in patches.

    Raises:
        ValueError: The model cannot generate `size`.
    """
    if size.frames != 1:
        raise ValueError(
            f"video.frames={size.frames}: {type(network).__name__} generates images, use 1"
        )
    config = AutoencoderKLFlux2.load_config(folder, subfolder="vae")
    unit = PATCH * 2 ** (len(config["block_out_channels"]) - 1)
    check_sides(size, height=unit, width=unit)
    return network.config.in_channels, size.height // unit, size.width // unit


def statistics(vae: AutoencoderKLFlux2, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and deviation of patches, [1, C, 1, 1] each, on the device of `like`."""
    found = (vae.bn.running_mean, vae.bn.running_var)
    mean, variance = (each.view(1, -1, 1, 1).to(like.device) for each in found)
    return mean, (variance + vae.config.batch_norm_eps).sqrt()


def image_positions(height: int, width: int, device: torch.device) -> Tensor:
    """Return time, row, column and layer of each image token, [N, 4]."""
    rows, columns = (torch.arange(count, device=device) for count in (height, width))
    zero = torch.zeros(1, dtype=torch.long, device=device)
    return torch.cartesian_prod(zero, rows, columns, zero)


def text_positions(count: int, device: torch.device) -> Tensor:
    """Return time, row, column and layer of each text token, [T, 4]."""
    zero = torch.zeros(1, dtype=torch.long, device=device)
    return torch.cartesian_prod(zero, zero, zero, torch.arange(count, device=device))
