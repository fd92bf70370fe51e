"""Optimiser settings of one role, and its learning rate as a function of the step."""

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
        "must be two numbers",
    ),
)


@dataclass(frozen=True)
class OptimConfig:
    """AdamW; the defaults for betas and clipping are those of arXiv 2503.06674, Appendix D."""

    lr: float = 1e-4
    """Learning rate after the warm-up."""
    betas: tuple[float, float] = (0.0, 0.999)
    """Both betas of AdamW."""
    weight_decay: float = 0.0
    """Weight decay of AdamW."""
    clip: float = 1.0
    """Largest gradient norm; 0 turns clipping off."""
    warmup: int = 0
    """Iterations over which the learning rate rises linearly; 0 turns warm-up off."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Learning rate after the warm-up: constant, or a linear or cosine decay to 0 at the last
    iteration.
    """
    algorithm: Literal["adamw", "sgd"] = "adamw"
    """sgd is for tests: it does not hide a wrong gradient scale."""

    def __post_init__(self) -> None:
        check_rules(self, RULES)

    def rate(self, step: int, total: int) -> float:
        """Return the learning rate of 0-based `step` of `total`: linear warm-up, then the schedule
        down to 0.
        """
        warm = min(1.0, (step + 1) / (self.warmup + 1))
        progress = min(step / max(total, 1), 1.0)
        decay = {
            "constant": 1.0,
            "linear": 1 - progress,
            "cosine": 0.5 * (1 + math.cos(math.pi * progress)),
        }
        return self.lr * warm * decay[self.schedule]
