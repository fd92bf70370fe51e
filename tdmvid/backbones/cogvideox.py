"""CogVideoX: 2B (sincos), 5B (rotary), 1.5-5B (temporal patches), by what their configs say.

Shapes: B batch, F latent frames, C channels, H W latent size, T text tokens. A latent
sample is [F, C, H, W], the layout of `CogVideoXTransformer3DModel`.
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
from .base import Tap, TokenSharing, trunk_of
from .cogvideox_fused import fuse
from .cogvideox_parallel import set_attention, share_tokens
from .dtype import torch_dtype
from .lora_files import LoraFiles
from .registry import register
from .spec import Tokens, check_sides, check_tiles
from .stock import StockPipeline
from .vp import VPBackbone, VPSpec

OFS = 2.0  # what the image-to-video pipelines of CogVideoX 1.5 feed to `ofs`


class CogVideoXSpec(VPSpec):
    """A CogVideoX pipeline folder, from its configs."""

    network_class = CogVideoXTransformer3DModel
    vae_class = AutoencoderKLCogVideoX
    ddim_class = CogVideoXDDIMScheduler

    def tokens(self, network: CogVideoXTransformer3DModel, folder: Path, size: ClipSize) -> Tokens:
        net = network.config
        frames, _, height, width = Clip.of(network, folder, size).latent_shape
        video = (height // net.patch_size) * (width // net.patch_size)
        video *= frames // (net.patch_size_t or 1)
        return Tokens.of_transformer(net.max_text_seq_length + video, net)

    def blocks(self, network: CogVideoXTransformer3DModel) -> list[nn.Module]:
        return list(network.transformer_blocks)

    def example(
        self,
        network: CogVideoXTransformer3DModel,
        folder: Path,
        size: ClipSize,
        batch: int,
        dtype: torch.dtype,
    ) -> dict:
        net, clip = network.config, Clip.of(network, folder, size)
        frames, _, *sides = clip.latent_shape  # a first frame has channels of its own
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
        clip = Clip.of(network, folder, size)
        frames, channels, height, width = clip.latent_shape
        return channels, frames - clip.extra_frames, height, width

    def vae_tile(self, vae: AutoencoderKLCogVideoX) -> tuple[int, int]:
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
        size, length = self.backbone.size, self.backbone.network.config.max_text_seq_length
        return {
            "num_frames": size.frames,
            "height": size.height,
            "width": size.width,
            "max_sequence_length": length,
        }

    def set_scales(self, pipeline: Any) -> None:
        clip = self.backbone.clip
        pipeline.vae_scale_factor_spatial = clip.spatial
        pipeline.vae_scale_factor_temporal = clip.temporal


@register
class CogVideoX(VPBackbone):
    """A CogVideoX pipeline folder as a backbone."""

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
        return self.clip.latent_shape

    def inputs(self, x_t: Tensor, t: Tensor, cond: Cond) -> dict:
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
        fuse(network)

    @staticmethod
    def share_tokens(network: CogVideoXTransformer3DModel, sharing: TokenSharing) -> None:
        share_tokens(network, sharing)

    @staticmethod
    def set_attention(network: CogVideoXTransformer3DModel, kernel: str) -> None:
        set_attention(network, kernel)

    def encode_prompts(self, prompts: list[str]) -> Cond:
        length = self.network.config.max_text_seq_length
        with torch.no_grad():
            embeds, _ = self.text.encode_prompt(
                prompts, do_classifier_free_guidance=False, max_sequence_length=length
            )
        return Cond({"prompt_embeds": embeds})

    def text_limit(self) -> tuple[str, int]:
        return "tokenizer", self.network.config.max_text_seq_length

    def text_settings(self) -> tuple[str, ...]:
        return (str(self.network.config.max_text_seq_length),)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        latents = (
            latents[:, self.clip.extra_frames :].transpose(1, 2).to(self.vae.dtype)
            / self.vae.config.scaling_factor
        )
        return torch.cat(
            [self.vae.decode(one).sample.float().clamp(-1, 1) for one in latents.split(1)]
        )

    @torch.no_grad()
    def encode(self, videos: Tensor) -> Tensor:
        mean = torch.cat(
            [
                self.vae.encode(one).latent_dist.mode()
                for one in videos.to(self.device, self.vae.dtype).split(1)
            ]
        )
        latents = mean.transpose(1, 2) * self.vae.config.scaling_factor
        first = latents[:, :1].expand(
            -1, self.clip.extra_frames, -1, -1, -1
        )  # as in the library's training of 1.5
        return torch.cat([first, latents], 1).to(torch_dtype(self.config))

    @staticmethod
    def discriminator_trunk(network: CogVideoXTransformer3DModel) -> list[Tap]:
        width = network.config.num_attention_heads * network.config.attention_head_dim
        network.transformer_blocks, taps = trunk_of(network.transformer_blocks, width)
        return taps


@dataclass(frozen=True)
class Clip:
    """A size in pixels as this model sees it: [F, C, H, W] latents, and how they compress."""

    latent_shape: tuple[int, int, int, int]
    extra_frames: int
    """Latent frames added in front so that temporal patches divide; the pipeline drops them after
    decoding.
    """
    spatial: int
    temporal: int

    @classmethod
    def of(cls, network: CogVideoXTransformer3DModel, folder: Path, size: ClipSize) -> Clip:
        """Return a size as this model sees it.

        Raises:
            ValueError: `size` breaks a rule, which the message names.
        """
        vae, net = AutoencoderKLCogVideoX.load_config(folder, subfolder="vae"), network.config
        spatial = 2 ** (len(vae["block_out_channels"]) - 1)
        temporal = int(vae["temporal_compression_ratio"])
        unit = spatial * net.patch_size
        check_sides(size, height=unit, width=unit)
        # diffusers decodes latents in twos, the first alone
        if size.frames != 1 and (size.frames - 1) % (2 * temporal):
            near = max(1, round((size.frames - 1) / (2 * temporal))) * 2 * temporal + 1
            raise ValueError(
                f"video.frames={size.frames}: this autoencoder decodes 1 or {2 * temporal}n + 1"
                f" frames, e.g. {near}"
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
                f"video={size}: learned positions allow only latents of"
                f" {(net.sample_height, net.sample_width)}, not {(height, width)}"
            )
        extra = -frames % (net.patch_size_t or 1)
        return cls((frames + extra, net.out_channels, height, width), extra, spatial, temporal)


def rotary_embedding(
    network: CogVideoXTransformer3DModel, clip: Clip, device: torch.device | str
) -> tuple[Tensor, Tensor] | None:
    """Return cosines and sines [V, D] of the video tokens, as the stock pipelines make them.

    None where positions are added instead.
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
