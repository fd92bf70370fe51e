"""The shape of the LoRA adapters of student and fake."""

from __future__ import annotations

from dataclasses import dataclass

from .ranges import ranges_of
from .rules import check_rules

RULES = ranges_of("lora")


@dataclass(frozen=True)
class LoraSettings:
    """Shape of both adapters."""

    rank: int = 64
    """Rank of the LoRA matrices."""
    alpha: float = 64.0
    """Scale of the LoRA: its update is multiplied by alpha / rank."""
    targets: tuple[str, ...] = ()
    """Module names; empty takes the family's own (attention projections)."""

    def __post_init__(self) -> None:
        check_rules(self, RULES)
