"""Pass cached image conditions to a stock pipeline.

A stock image-to-video pipeline encodes its image in every call. With `EncodedImages` in place of
its autoencoder it uses a cached condition instead; the rest of its code runs unchanged.

Shapes: B batch. Latents are [B, ...] in the autoencoder's layout.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from diffusers.image_processor import VaeImageProcessor
from PIL.Image import Image
from torch import Tensor

from ..data.conditions import BLANK
from ..data.embeddings import EmbeddingCache, embed_prompts
from ..data.items import read_images
from ..diffusion.denoiser import Cond

if TYPE_CHECKING:
    from .base import Backbone

IMAGES_PER_SHARD = 64
"""Image conditions per cache file. One may take megabytes, a prompt's less than one."""


class EncodedImages:
    """A stand-in for an autoencoder that returns given latents, whatever it is asked to encode.

    Args:
        latents: [B, ...], one row per image of the call.
        config: Entries that the pipeline reads from the autoencoder's config.
    """

    def __init__(self, latents: Tensor, **config: Any):

        self.latents, self.config = latents, SimpleNamespace(**config)
        self.dtype, self._used = latents.dtype, 0

    def encode(self, images: Tensor) -> SimpleNamespace:
        """Return the latents [b, ...] of the next b rows as `latents`, for images [b, 3, ...].

        A pipeline may encode its images one by one or all at once.
        """
        rows = slice(self._used, self._used + len(images))
        self._used = rows.stop
        return SimpleNamespace(latents=self.latents[rows])


def blank_images(batch: int, height: int, width: int, like: Tensor) -> Tensor:
    """Return placeholders for images that are encoded already, zeros [B, 3, H, W] like `like`."""
    return torch.zeros(batch, 3, height, width, device=like.device, dtype=like.dtype)


def as_pil(images: Tensor) -> list[Image]:
    """Return images [B, 3, H, W] in [-1, 1] as 8-bit PIL images."""
    pixels = VaeImageProcessor.pt_to_numpy((images.clamp(-1, 1).float() + 1) / 2)
    made: list[Image] = VaeImageProcessor.numpy_to_pil(pixels)
    return made


def embed_images(
    cache: EmbeddingCache,
    files: Mapping[str, Path],
    backbone: Backbone,
    *,
    blank: bool = False,
    each: Callable[[], object] = lambda: None,
) -> None:
    """Encode the images that the cache lacks, then release the autoencoder.

    Args:
        cache: Where conditions are kept, by the digest of an image.
        files: Digest of an image's content -> a file with that content.
        backbone: Encodes the images.
        blank: Also encode the blank image.
        each: Called after each shard.
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
