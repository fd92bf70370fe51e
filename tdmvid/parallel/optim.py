"""The optimiser of one role, and the loss scale of float16."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..config import OptimConfig


def build_optimizer(
    settings: OptimConfig, parameters: list[torch.nn.Parameter], *, fused: bool = False
) -> torch.optim.Optimizer:
    """Build torch's optimiser.

    Args:
        settings: Algorithm and rates.
        parameters: What it updates.
        fused: Whether one kernel updates all parameters.
    """
    if settings.algorithm == "sgd":
        return torch.optim.SGD(parameters, lr=settings.lr)
    return torch.optim.AdamW(
        parameters,
        lr=settings.lr,
        betas=settings.betas,
        weight_decay=settings.weight_decay,
        fused=fused,
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
