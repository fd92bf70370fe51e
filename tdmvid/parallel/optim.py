"""Optimiser settings of one role, and its learning rate as a function of the step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch


@dataclass(frozen=True)
class OptimConfig:
    """AdamW; the defaults for betas and clipping are those of arXiv 2503.06674, Appendix D."""

    lr: float = 1e-4
    betas: tuple[float, float] = (0.0, 0.999)
    weight_decay: float = 0.0
    clip: float = 1.0
    """Largest gradient norm; 0 turns clipping off."""
    warmup: int = 0
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    algorithm: Literal["adamw", "sgd"] = "adamw"
    """sgd is for tests: it does not hide a wrong gradient scale."""

    def __post_init__(self):
        if not self.lr > 0:
            raise ValueError(f"lr={self.lr}: a learning rate is positive")
        if self.clip < 0 or self.warmup < 0:
            raise ValueError(f"clip={self.clip}, warmup={self.warmup}: neither may be negative; 0 turns them off")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas={self.betas}: two numbers in [0, 1)")

    def rate(self, step: int, total: int) -> float:
        """Learning rate of 0-based `step` of `total`: linear warm-up, then the schedule down to 0."""
        warm = min(1.0, (step + 1) / (self.warmup + 1))
        progress = min(step / max(total, 1), 1.0)
        decay = {"constant": 1.0, "linear": 1 - progress, "cosine": 0.5 * (1 + math.cos(math.pi * progress))}
        return self.lr * warm * decay[self.schedule]

    def build(self, parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
        """The torch optimiser over `parameters`."""
        if self.algorithm == "sgd":
            return torch.optim.SGD(parameters, lr=self.lr)
        return torch.optim.AdamW(parameters, lr=self.lr, betas=self.betas, weight_decay=self.weight_decay)
