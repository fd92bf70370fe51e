"""Rewards that are simple measures of images and videos and need no network.

Shapes: B samples [B, 3, F, H, W] in [-1, 1]. Prompts are ignored.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def motion(samples: Tensor, prompts: Sequence[str]) -> Tensor:
    """Return the mean absolute difference between successive frames.

    Args:
        samples: Samples [B, 3, F, H, W] in [-1, 1].
        prompts: Ignored.

    Returns:
        Rewards [B]; 0 for images.
    """
    if samples.shape[2] == 1:
        return torch.zeros(len(samples))
    return samples.float().diff(dim=2).abs().flatten(1).mean(1)


def saturation(samples: Tensor, prompts: Sequence[str]) -> Tensor:
    """Return the mean chroma, the largest minus the smallest colour value of a pixel.

    Args:
        samples: Samples [B, 3, F, H, W] in [-1, 1].
        prompts: Ignored.

    Returns:
        Rewards [B].
    """
    pixels = samples.float()
    return (pixels.amax(1) - pixels.amin(1)).flatten(1).mean(1)


def sharpness(samples: Tensor, prompts: Sequence[str]) -> Tensor:
    """Return the mean absolute difference between neighbouring pixels.

    Args:
        samples: Samples [B, 3, F, H, W] in [-1, 1].
        prompts: Ignored.

    Returns:
        Rewards [B].
    """
    pixels = samples.float()
    rows, columns = pixels.diff(dim=3).abs(), pixels.diff(dim=4).abs()
    return (rows.flatten(1).mean(1) + columns.flatten(1).mean(1)) / 2
