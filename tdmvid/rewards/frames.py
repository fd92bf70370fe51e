"""Frames that rewards of images see."""

from __future__ import annotations

from torch import Tensor


def chosen_frames(samples: Tensor) -> Tensor:
    """Return the first, the middle and the last frame, without repeats.

    Args:
        samples: Samples [B, 3, F, H, W].

    Returns:
        Frames [B, 3, f, H, W], f at most 3.
    """
    count = samples.shape[2]
    return samples[:, :, sorted({0, count // 2, count - 1})]
