"""Guidance that changes with time, as stock calls have it.

Shapes: B batch; t is [B] in [0, 1].
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class GuidanceSchedule:
    """What becomes of a guidance scale at a time."""

    low: float = 0.0
    high: float = 1.0
    """Guidance is on from `low` to `high`, both included, and 1 elsewhere (arXiv 2404.07724)."""
    cosine_steps: int = 0
    """Of CogVideoX's `use_dynamic_cfg`: the number of steps of its call; 0 is off."""
    boundary: float = 0.0
    second: float | None = None
    """The scale below `boundary`, as of a second expert; None is no other."""

    def __call__(self, cfg: float, t: Tensor, timestep: Tensor) -> Tensor:
        """Return the scale of each sample, [B] float32.

        Args:
            cfg: the scale of the stock call.
            t: times, [B].
            timestep: the same times as the network counts them, [B].
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
"""The same scale at all times."""
