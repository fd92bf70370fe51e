"""Rewards that need no network: what a picture or a video shows to simple measures.

Shapes: B samples [B, 3, F, H, W] in [-1, 1]; prompts are not read.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def motion(samples: Tensor, prompts: Sequence[str]) -> Tensor:
    """Return the mean absolute difference of neighbouring frames: [B]; 0 for images."""
    if samples.shape[2] == 1:
        return torch.zeros(len(samples))
    return samples.float().diff(dim=2).abs().flatten(1).mean(1)


def saturation(samples: Tensor, prompts: Sequence[str]) -> Tensor:
    """Return the mean spread of a pixel's colours, max - min over the channels: [B]."""
    pixels = samples.float()
    return (pixels.amax(1) - pixels.amin(1)).flatten(1).mean(1)


def sharpness(samples: Tensor, prompts: Sequence[str]) -> Tensor:
    """Return the mean absolute difference of neighbouring pixels: [B]."""
    pixels = samples.float()
    rows, columns = pixels.diff(dim=3).abs(), pixels.diff(dim=4).abs()
    return (rows.flatten(1).mean(1) + columns.flatten(1).mean(1)) / 2
