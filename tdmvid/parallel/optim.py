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
            raise ValueError(
                f"clip={self.clip}, warmup={self.warmup}: neither may be negative; 0 turns them off"
            )
        if self.weight_decay < 0:
            raise ValueError(f"weight_decay={self.weight_decay}: not negative; 0 is none")
        if self.algorithm == "sgd" and self.weight_decay:
            raise ValueError(
                f"weight_decay={self.weight_decay} with algorithm='sgd', which has none: use"
                " 'adamw', or leave it out"
            )
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas={self.betas}: two numbers in [0, 1)")

    def rate(self, step: int, total: int) -> float:
        """Learning rate of 0-based `step` of `total`: linear warm-up, then the schedule down to 0."""
        warm = min(1.0, (step + 1) / (self.warmup + 1))
        progress = min(step / max(total, 1), 1.0)
        decay = {
            "constant": 1.0,
            "linear": 1 - progress,
            "cosine": 0.5 * (1 + math.cos(math.pi * progress)),
        }
        return self.lr * warm * decay[self.schedule]

    def build(
        self, parameters: list[torch.nn.Parameter], *, fused: bool = False
    ) -> torch.optim.Optimizer:
        """The torch optimiser over `parameters`; `fused` in one kernel for all of them."""
        if self.algorithm == "sgd":
            return torch.optim.SGD(parameters, lr=self.lr)
        return torch.optim.AdamW(
            parameters, lr=self.lr, betas=self.betas, weight_decay=self.weight_decay, fused=fused
        )


@dataclass
class LossScale:
    """Dynamic loss scaling for float16 arithmetic, whose small gradients vanish and large ones
    overflow.

    Halved when a gradient overflows, doubled after `patience` good steps in a row; 1 and
    constant in every other arithmetic.
    """

    value: float = 1.0
    patience: int = 0
    """0: the scale never grows."""
    good: int = 0

    @classmethod
    def of(cls, dtype: torch.dtype) -> LossScale:
        """The scale that arithmetic in `dtype` starts with."""
        return cls(2.0**14, 1000) if dtype == torch.float16 else cls()

    def update(self, finite: bool) -> bool:
        """Learn from a step; whether it overflowed for the scale's sake, which is lower now."""
        if finite:
            self.good += 1
            if self.patience and self.good % self.patience == 0:
                self.value *= 2
            return False
        explained = self.value > 1
        self.value, self.good = max(self.value / 2, 1.0), 0
        return explained
