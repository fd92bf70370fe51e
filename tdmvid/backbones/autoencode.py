"""Run an autoencoder on a batch, in parts that need little memory.

A part has several samples only if they are small. One at a time would be slow for them: on one CPU
thread PyTorch computes the three-dimensional convolutions of a single small sample several times
slower than those of two.

Shapes: B is the batch size; videos are [B, 3, F, H, W], latents [B, ...].
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..data.progress import progress
from .base import Backbone


def decode_parts(vae: Any, latents: Tensor, at_once: int = 1) -> Tensor:
    """Decode latents, limited to [-1, 1].

    Args:
        vae: Autoencoder of diffusers.
        latents: Latents as the autoencoder takes them, [B, ...].
        at_once: Number of samples that are decoded together.

    Returns:
        What the autoencoder makes of them, [B, 3, ...] float32.
    """
    parts = latents.split(at_once)
    return torch.cat([vae.decode(part).sample.float().clamp(-1, 1) for part in parts])


def encode_parts(vae: Any, samples: Tensor, at_once: int = 1) -> Tensor:
    """Encode samples.

    Args:
        vae: Autoencoder of diffusers.
        samples: Videos [B, 3, F, H, W] or images [B, 3, H, W] in [-1, 1].
        at_once: Number of samples that are encoded together.

    Returns:
        The mode of the autoencoder's distribution, [B, ...].
    """
    return torch.cat([vae.encode(part).latent_dist.mode() for part in samples.split(at_once)])


def decode_shown(backbone: Backbone, latents: Tensor, what: str = "decoding") -> Tensor:
    """Decode latents with progress.

    Args:
        backbone: Their model family.
        latents: Latents [B, ...].
        what: Description of the progress.

    Returns:
        Videos [B, 3, F, H, W] on the CPU.
    """
    videos = []
    with progress(what, total=len(latents), unit="sample") as bar:
        for part in latents.split(backbone.at_once):
            videos.append(backbone.decode(part).cpu())
            bar.update(len(part))
    return torch.cat(videos)
