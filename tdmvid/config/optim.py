"""Optimiser settings of one role, and its learning rate schedule."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from .ranges import ranges_of
from .rules import Rule, check_rules

RULES = (
    *ranges_of("optim"),
    Rule(
        lambda optim: optim.algorithm == "sgd" and optim.weight_decay,
        "weight_decay",
        "has no effect with algorithm='sgd': use algorithm='adamw' or weight_decay=0",
    ),
    Rule(
        lambda optim: len(optim.betas) != 2,
        "betas",
        "must be two numbers, e.g. [0.0, 0.999]",
    ),
)


@dataclass(frozen=True)
class OptimConfig:
    """Optimiser of one role.

    The defaults of `betas` and `clip` are those of arXiv 2503.06674, Appendix D.
    """

    lr: float = 1e-4
    """Learning rate, above 0."""
    betas: tuple[float, float] = (0.0, 0.999)
    """AdamW's beta1 and beta2, each in [0, 1)."""
    weight_decay: float = 0.0
    """Weight decay of AdamW. 0 turns it off."""
    clip: float = 1.0
    """Largest gradient norm. 0 turns clipping off."""
    warmup: int = 0
    """Iterations of linear warm-up. 0 turns it off."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Learning rate after the warm-up: `constant`, or a `linear` or `cosine` decay to 0."""
    algorithm: Literal["adamw", "sgd"] = "adamw"
    """Optimiser: `adamw` or `sgd`. `sgd` is for tests, because it does not hide a wrong gradient
    scale.
    """

    def __post_init__(self) -> None:
        check_rules(self, RULES)

    def rate(self, step: int, total: int) -> float:
        """Compute the learning rate: linear warm-up, then the schedule.

        Args:
            step: Iteration, from 0.
            total: Number of iterations of the run.

        Returns:
            The learning rate of this iteration.
        """
        warm = min(1.0, (step + 1) / (self.warmup + 1))
        progress = min(step / max(total, 1), 1.0)
        decay = {
            "constant": 1.0,
            "linear": 1 - progress,
            "cosine": 0.5 * (1 + math.cos(math.pi * progress)),
        }
        return self.lr * warm * decay[self.schedule]
