"""Guidance scales that change with time, as in diffusers pipelines.

Shapes: B is the batch size; t is [B] in [0, 1].
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


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
