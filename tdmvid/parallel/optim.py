"""Optimiser of one role, and dynamic loss scaling for float16."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..config import OptimConfig


def build_optimizer(
    settings: OptimConfig, parameters: list[torch.nn.Parameter], *, fused: bool = False
) -> torch.optim.Optimizer:
    """Build a torch optimiser.

    Args:
        settings: Algorithm, learning rate, betas and weight decay.
        parameters: Parameters to update.
        fused: Whether AdamW updates all parameters in one kernel.

    Returns:
        The optimiser.
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
    """Dynamic loss scale for float16, where small gradients underflow and large ones overflow.

    The scale is halved when a gradient overflows, and doubled after `patience` consecutive finite
    steps. For other dtypes it stays 1.
    """

    value: float = 1.0
    """Current scale, at least 1."""
    patience: int = 0
    """Finite steps after which the scale is doubled. 0 never increases it."""
    good: int = 0
    """Consecutive finite steps so far."""

    @classmethod
    def of(cls, dtype: torch.dtype) -> LossScale:
        """Make the initial scale for a data type.

        Args:
            dtype: Data type of the computation.

        Returns:
            2^14 for float16, otherwise a constant 1.
        """
        return cls(2.0**14, 1000) if dtype == torch.float16 else cls()

    def update(self, finite: bool) -> bool:
        """Update the scale after a step.

        Args:
            finite: Whether the gradient was finite.

        Returns:
            Whether the gradient overflowed at a scale above 1. The scale is lower now, so the
            failure may be due to the scale.
        """
        if finite:
            self.good += 1
            if self.patience and self.good % self.patience == 0:
                self.value *= 2
            return False
        explained = self.value > 1
        self.value, self.good = max(self.value / 2, 1.0), 0
        return explained
