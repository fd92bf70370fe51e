"""Convert latents of images to patches of 2 x 2, and patches to tokens.

Shapes: B batch, C channels of a patch, H W size in patches, N = H W tokens.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from .images import ImageStock

PATCH = 2
"""Latents per side of a patch."""


def pack(x: Tensor) -> Tensor:
    """Return patches [B, C, H, W] as tokens [B, N, C]."""
    return x.flatten(2).transpose(1, 2)


def unpack(tokens: Tensor, height: int, width: int) -> Tensor:
    """Return tokens [B, N, C] as patches [B, C, H, W]."""
    return tokens.transpose(1, 2).unflatten(2, (height, width))


def patchify(latents: Tensor) -> Tensor:
    """Return the autoencoder's latents [B, C / 4, 2 H, 2 W] as patches [B, C, H, W]."""
    return nn.functional.pixel_unshuffle(latents, PATCH)


def unpatchify(x: Tensor) -> Tensor:
    """Return patches [B, C, H, W] as the autoencoder's latents [B, C / 4, 2 H, 2 W]."""
    return nn.functional.pixel_shuffle(x, PATCH)


class PackedStock(ImageStock):
    """A stock pipeline that takes and returns latents as tokens."""

    def set_scales(self, pipeline: Any) -> None:
        """Set the autoencoder's compression on a pipeline without one."""
        height = PATCH * self.backbone.latent_shape()[1]
        pipeline.vae_scale_factor = self.backbone.size.height // height

    def write_latents(self, z: Tensor) -> Tensor:
        """Return noise [B, C, H, W] as tokens [B, N, C]."""
        return pack(super().write_latents(z))

    def read_latents(self, out: Tensor) -> Tensor:
        """Return a call's tokens [B, N, C] as patches [B, C, H, W]."""
        return unpack(out, *self.backbone.latent_shape()[-2:])
