"""CogVideoX (arXiv 2408.06072), selected by config: 2B (sincos), 5B (rotary), 1.5-5B.

1.5-5B has rotary embeddings and temporal patches.

Shapes: B batch, F latent frames, C channels, H W latent size, T text tokens. A latent sample is
[F, C, H, W], the layout of `CogVideoXTransformer3DModel`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKLCogVideoX,
    CogVideoXDDIMScheduler,
    CogVideoXTransformer3DModel,
)
from diffusers.models.embeddings import get_3d_rotary_pos_embed
from diffusers.pipelines.cogvideo.pipeline_cogvideox import get_resize_crop_region_for_grid
from torch import Tensor, nn

from ..config import ClipSize, ModelConfig
from ..diffusion.denoiser import Cond
from .autoencode import decode_parts, encode_parts
from .base import TokenSharing
from .cogvideox_fused import fuse
from .cogvideox_parallel import set_attention, share_tokens
from .dtype import torch_dtype
from .lora_files import LoraFiles
from .registry import register
from .spec import Tokens, check_sides, check_tiles
from .stock import StockPipeline
from .taps import Tap, trunk_of
from .vp import VPBackbone, VPSpec

OFS = 2.0  # what the image-to-video pipelines of CogVideoX 1.5 feed to `ofs`


class CogVideoXSpec(VPSpec):
    """Describes a CogVideoX pipeline folder from its configs."""

    network_class = CogVideoXTransformer3DModel
    vae_class = AutoencoderKLCogVideoX
    ddim_class = CogVideoXDDIMScheduler

    def tokens(self, network: CogVideoXTransformer3DModel, folder: Path, size: ClipSize) -> Tokens:
        """Return the joint sequence of text and video tokens of one sample."""
        net = network.config
        frames, _, height, width = Clip.of(network, folder, size).latent_shape
        video = (height // net.patch_size) * (width // net.patch_size)
        video *= frames // (net.patch_size_t or 1)
        return Tokens.of_transformer(net.max_text_seq_length + video, net)

    def blocks(self, network: CogVideoXTransformer3DModel) -> list[nn.Module]:
        """Return the transformer blocks."""
        return list(network.transformer_blocks)

    def example(
        self,
        network: CogVideoXTransformer3DModel,
        folder: Path,
        size: ClipSize,
        batch: int,
        dtype: torch.dtype,
    ) -> dict:
        """Return the arguments of one call; `hidden_states` are [B, F, C, H, W]."""
        net, clip = network.config, Clip.of(network, folder, size)
        frames, _, *sides = clip.latent_shape  # in_channels includes those of a given first frame
        return {
            "hidden_states": torch.empty(batch, frames, net.in_channels, *sides, dtype=dtype),
            "encoder_hidden_states": torch.empty(
                batch, net.max_text_seq_length, net.text_embed_dim, dtype=dtype
            ),
            "timestep": torch.empty(batch, dtype=torch.long),
            "image_rotary_emb": rotary_embedding(network, clip, "cpu"),
            "ofs": torch.empty(1) if net.ofs_embed_dim else None,
        }

    def vae_latents(
        self, network: CogVideoXTransformer3DModel, folder: Path, size: ClipSize
    ) -> tuple[int, int, int, int]:
        """Return [C, F, H, W] of one sample, without the frames added for temporal patches."""
        clip = Clip.of(network, folder, size)
        frames, channels, height, width = clip.latent_shape
        return channels, frames - clip.extra_frames, height, width

    def vae_tile(self, vae: AutoencoderKLCogVideoX) -> tuple[int, int]:
        """Return height and width of a tile of latents."""
        return check_tiles(
            (
                vae.tile_latent_min_height,
                vae.tile_sample_min_height,
                vae.tile_overlap_factor_height,
            ),
            (vae.tile_latent_min_width, vae.tile_sample_min_width, vae.tile_overlap_factor_width),
        )


class CogVideoXStock(StockPipeline):
    """The stock CogVideoX pipeline."""

    backbone: CogVideoX

    def arguments(self) -> dict[str, Any]:
        """Return frames, height, width and text length of the stock call."""
        size, length = self.backbone.size, self.backbone.network.config.max_text_seq_length
        return {
            "num_frames": size.frames,
            "height": size.height,
            "width": size.width,
            "max_sequence_length": length,
        }

    def set_scales(self, pipeline: Any) -> None:
        """Set the autoencoder's spatial and temporal compression on a pipeline without one."""
        clip = self.backbone.clip
        pipeline.vae_scale_factor_spatial = clip.spatial
        pipeline.vae_scale_factor_temporal = clip.temporal


@register
class CogVideoX(VPBackbone):
    """Backbone of a CogVideoX pipeline folder."""

    pipeline_class = "CogVideoXPipeline"
    spec, stock_class = CogVideoXSpec(), CogVideoXStock
    lora = LoraFiles(pipeline_class)
    kernels = ("sdpa", "float32", "cudnn", "flash", "xformers")
    dynamic_guidance = True
    network: CogVideoXTransformer3DModel

    def __init__(
        self, folder: Path, config: ModelConfig, size: ClipSize, device: torch.device | str
    ):
        super().__init__(folder, config, size, device)
        self.clip = Clip.of(self.network, folder, size)
        self._rotary: tuple[Tensor, Tensor] | None = None

    def latent_shape(self) -> tuple[int, ...]:
        """Return [F, C, H, W]."""
        return self.clip.latent_shape

    def inputs(self, x_t: Tensor, t: Tensor, cond: Cond) -> dict:
        """Return the transformer's arguments for x_t [B, F, C, H, W] and t [B]."""
        return {
            "hidden_states": x_t,
            "encoder_hidden_states": cond["prompt_embeds"],
            "timestep": self.process.timestep(t),
            "image_rotary_emb": self._rotary_embedding(x_t),
            "ofs": (
                torch.full((1,), OFS, device=x_t.device)
                if self.network.config.ofs_embed_dim
                else None
            ),
        }

    def _rotary_embedding(self, x_t: Tensor) -> tuple[Tensor, Tensor] | None:
        if self._rotary is None:
            self._rotary = rotary_embedding(self.network, self.clip, x_t.device)
        return self._rotary

    @staticmethod
    def fuse(network: CogVideoXTransformer3DModel) -> None:
        """Fuse modulation and residuals, see cogvideox_fused.py."""
        fuse(network)

    @staticmethod
    def share_tokens(network: CogVideoXTransformer3DModel, sharing: TokenSharing) -> None:
        """Split text and video tokens over ranks, see cogvideox_parallel.py."""
        share_tokens(network, sharing)

    @staticmethod
    def set_attention(network: CogVideoXTransformer3DModel, kernel: str) -> None:
        """Select the attention kernel, see cogvideox_parallel.py."""
        set_attention(network, kernel)

    def encode_prompts(self, prompts: list[str]) -> Cond:
        """Return `prompt_embeds` [B, T, D] of B prompts."""
        length = self.network.config.max_text_seq_length
        with torch.no_grad():
            embeds, _ = self.text.encode_prompt(
                prompts, do_classifier_free_guidance=False, max_sequence_length=length
            )
        return Cond({"prompt_embeds": embeds})

    def text_limit(self) -> tuple[str, int]:
        """Return the tokenizer's folder and the network's maximal text length."""
        return "tokenizer", self.network.config.max_text_seq_length

    def text_settings(self) -> tuple[str, ...]:
        """Return the text length, which changes the embeddings."""
        return (str(self.network.config.max_text_seq_length),)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Decode [B, F, C, H, W] to videos [B, 3, F, H, W] in [-1, 1]."""
        latents = (
            latents[:, self.clip.extra_frames :].transpose(1, 2).to(self.vae.dtype)
            / self.vae.config.scaling_factor
        )
        return decode_parts(self.vae, latents, self.at_once)

    def leading(self, latents: Tensor, frames: int) -> Tensor:
        """Return the latents [B, f, C, H, W] of the first frames, with the extra ones."""
        return latents[:, : self.clip.extra_frames + (frames - 1) // self.clip.temporal + 1]

    @torch.no_grad()
    def encode(self, videos: Tensor) -> Tensor:
        """Encode videos [B, 3, F, H, W] in [-1, 1] to latents [B, F, C, H, W]."""
        mean = encode_parts(self.vae, videos.to(self.device, self.vae.dtype), self.at_once)
        latents = mean.transpose(1, 2) * self.vae.config.scaling_factor
        first = latents[:, :1].expand(
            -1, self.clip.extra_frames, -1, -1, -1
        )  # as in diffusers' training script for 1.5
        return torch.cat([first, latents], 1).to(torch_dtype(self.config))

    @staticmethod
    def discriminator_trunk(network: CogVideoXTransformer3DModel) -> list[Tap]:
        """Keep the first half of the blocks."""
        width = network.config.num_attention_heads * network.config.attention_head_dim
        network.transformer_blocks, taps = trunk_of(network.transformer_blocks, width)
        return taps


@dataclass(frozen=True)
class Clip:
    """Latent shape and compression of a clip of given size in pixels."""

    latent_shape: tuple[int, int, int, int]
    """[F, C, H, W], extra frames included."""
    extra_frames: int
    """Number of latent frames prepended so that the temporal patch size divides the count.

    The pipeline drops them before decoding.
    """
    spatial: int
    temporal: int

    @classmethod
    def of(cls, network: CogVideoXTransformer3DModel, folder: Path, size: ClipSize) -> Clip:
        """Compute the latent shape for a size in pixels.

        Args:
            network: A CogVideoX transformer, on any device.
            folder: The pipeline folder.
            size: Height, width and number of frames.

        Raises:
            ValueError: The model cannot generate `size`; the message names the rule.
        """
        vae, net = AutoencoderKLCogVideoX.load_config(folder, subfolder="vae"), network.config
        spatial = 2 ** (len(vae["block_out_channels"]) - 1)
        temporal = int(vae["temporal_compression_ratio"])
        unit = spatial * net.patch_size
        check_sides(size, height=unit, width=unit)
        # diffusers decodes latent frames in pairs, after the first one
        if size.frames != 1 and (size.frames - 1) % (2 * temporal):
            near = max(1, round((size.frames - 1) / (2 * temporal))) * 2 * temporal + 1
            raise ValueError(
                f"video.frames={size.frames}: this autoencoder decodes 1 or {2 * temporal}n + 1"
                f" frames, use e.g. {near}"
            )
        frames, height, width = (
            (size.frames - 1) // temporal + 1,
            size.height // spatial,
            size.width // spatial,
        )
        if net.use_learned_positional_embeddings and (height, width) != (
            net.sample_height,
            net.sample_width,
        ):
            raise ValueError(
                f"video.height={size.height} and video.width={size.width} do not fit this model's"
                f" learned position embeddings: use video.height={net.sample_height * spatial} and"
                f" video.width={net.sample_width * spatial}"
            )
        extra = -frames % (net.patch_size_t or 1)
        return cls((frames + extra, net.out_channels, height, width), extra, spatial, temporal)


def rotary_embedding(
    network: CogVideoXTransformer3DModel, clip: Clip, device: torch.device | str
) -> tuple[Tensor, Tensor] | None:
    """Return the rotary embedding of the video tokens, as the stock pipelines compute it.

    Args:
        network: A CogVideoX transformer, on any device.
        clip: The size of the clip.
        device: Where the result goes.

    Returns:
        Cosines and sines, [V, D] each, with V video tokens and D channels of a head; None if the
        model uses additive position embeddings.
    """
    net, (frames, _, height, width) = network.config, clip.latent_shape
    if not net.use_rotary_positional_embeddings:
        return None
    grid = height // net.patch_size, width // net.patch_size
    base = net.sample_height // net.patch_size, net.sample_width // net.patch_size
    if net.patch_size_t is None:
        region = get_resize_crop_region_for_grid(grid, base[1], base[0])
        extra = {"crops_coords": region, "temporal_size": frames}
    else:
        extra = {
            "crops_coords": None,
            "temporal_size": frames // net.patch_size_t,
            "grid_type": "slice",
            "max_size": base,
        }
    return get_3d_rotary_pos_embed(
        embed_dim=net.attention_head_dim, grid_size=grid, device=device, **extra
    )
