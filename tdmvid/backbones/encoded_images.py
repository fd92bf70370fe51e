"""Conditions of images: made and cached once, then given to a stock pipeline as they are.

A stock image-to-video pipeline encodes its image in every call. With `EncodedImages` in place of
its autoencoder it takes a cached condition instead, and the rest of its code runs as it is.

Shapes: B batch; latents are [B, ...] in the autoencoder's layout.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..data.conditions import BLANK
from ..data.embeddings import EmbeddingCache, embed_prompts
from ..data.items import read_images
from ..diffusion.denoiser import Cond

if TYPE_CHECKING:
    from .base import Backbone

IMAGES_PER_SHARD = 64
"""The conditions of an image may be megabytes where those of a prompt are less than one."""


class EncodedImages:
    """Called like an autoencoder; returns given latents, whatever it is asked to encode."""

    def __init__(self, latents: Tensor, **config: Any):
        """Args:
        latents: [B, ...], one row for each image of the call.
        config: what the pipeline reads from the autoencoder's config.
        """
        self.latents, self.config = latents, SimpleNamespace(**config)
        self.dtype, self._used = latents.dtype, 0

    def encode(self, images: Tensor) -> SimpleNamespace:
        """Return the latents of the next rows: the pipeline encodes one by one, or all at once."""
        rows = slice(self._used, self._used + len(images))
        self._used = rows.stop
        return SimpleNamespace(latents=self.latents[rows])


def blank_images(batch: int, height: int, width: int, like: Tensor) -> Tensor:
    """Return what stands for images that are encoded already: [B, 3, H, W] in [0, 1]."""
    return torch.zeros(batch, 3, height, width, device=like.device, dtype=like.dtype)


def embed_images(
    cache: EmbeddingCache,
    files: Mapping[str, Path],
    backbone: Backbone,
    *,
    blank: bool = False,
    each: Callable[[], object] = lambda: None,
) -> None:
    """Encode the images that a cache lacks, and release the autoencoder.

    Args:
        files: digest of an image's content -> a file that has it.
        blank: encode the blank image too.
        each: called after each shard.
    """

    def encode(keys: list[str]) -> Cond:
        images = [
            backbone.blank_images(1) if key == BLANK else read_images([files[key]], backbone.size)
            for key in keys
        ]
        return backbone.encode_images(torch.cat(images))

    needed = [*([BLANK] if blank else []), *files]
    embed_prompts(
        cache, needed, encode, batch=1, per_shard=IMAGES_PER_SHARD, what="image", each=each
    )
    backbone.release_image()
