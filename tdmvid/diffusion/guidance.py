"""Classifier-free guidance as in diffusers pipelines: how branches are combined, and the scale.

Shapes: B is the batch size; x_t and x0 are [B, ...] with any trailing shape; t is [B] in [0, 1].
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Combine = Callable[[Tensor, Tensor, Tensor, float | Tensor], Tensor]
"""Function (x_t, x0 without the prompt, x0 with it, scale) -> guided x0."""
TINY = 1e-30
"""Smallest norm to divide by: a velocity of zero stays zero."""


def extrapolate(x_t: Tensor, without: Tensor, with_: Tensor, scale: float | Tensor) -> Tensor:
    """Combine the two branches of guidance (arXiv 2207.12598).

    Args:
        x_t: Noisy samples, [B, ...]; not used.
        without: Unconditional prediction of x0, [B, ...].
        with_: Conditional prediction of x0, [B, ...].
        scale: Guidance scale, one number or [B, 1, ...]; 1 means no guidance.

    Returns:
        without + scale (with_ - without), [B, ...].
    """
    return without + scale * (with_ - without)


def extrapolate_at_norm(
    x_t: Tensor, without: Tensor, with_: Tensor, scale: float | Tensor
) -> Tensor:
    """Combine the two branches of guidance, and keep the norm of the conditional one in each token.

    It is for the velocity v = (x_t - x0) / t of a rectified flow (`QwenImagePipeline.__call__` of
    diffusers). With v = v_without + scale (v_with - v_without), the guided velocity of a token is
    v |v_with| / |v|, where |.| is the L2 norm over its C channels. The factor 1 / t cancels, so
    x_t - x0 takes the place of v.

    Args:
        x_t: Noisy samples, [B, C, ...] with one token at each place.
        without: Unconditional prediction of x0, [B, C, ...].
        with_: Conditional prediction of x0, [B, C, ...].
        scale: Guidance scale, one number or [B, 1, ...]; 1 means no guidance.

    Returns:
        x0 of the guided velocity, [B, C, ...].
    """
    step = x_t - extrapolate(x_t, without, with_, scale)
    wanted = (x_t - with_).norm(dim=1, keepdim=True)
    guided: Tensor = x_t - step * (wanted / step.norm(dim=1, keepdim=True).clamp_min(TINY))
    return guided


@dataclass(frozen=True)
class GuidanceSchedule:
    """Guidance scale as a function of time."""

    low: float = 0.0
    """First time with guidance, in [0, 1]."""
    high: float = 1.0
    """Last time with guidance, in [0, 1]. Outside [low, high] the scale is 1 (arXiv 2404.07724)."""
    cosine_steps: int = 0
    """Number of sampling steps in the formula of CogVideoX's `use_dynamic_cfg`. 0 turns it off."""
    boundary: float = 0.0
    """Time below which `second` applies."""
    second: float | None = None
    """Scale below `boundary`, for a second expert. None uses one scale at all times."""

    def __call__(self, cfg: float, t: Tensor, timestep: Tensor) -> Tensor:
        """Compute the scale of each sample.

        Args:
            cfg: Guidance scale as passed to the pipeline.
            t: Times, [B].
            timestep: The same times in units of the network, [B].

        Returns:
            The scale, [B] float32.
        """
        scale = torch.full_like(t, cfg, dtype=torch.float64)
        if self.cosine_steps:
            steps = self.cosine_steps  # CogVideoXPipeline.__call__
            phase = math.pi * ((steps - timestep.double()) / steps) ** 5.0
            scale = 1 + cfg * (1 - phase.cos()) / 2
        if self.second is not None:
            scale = torch.where(t >= self.boundary, scale, self.second)
        inside = (self.low <= t) & (t <= self.high)
        return torch.where(inside, scale, 1.0).float()


CONSTANT = GuidanceSchedule()
"""Schedule with the same scale at all times."""
