"""The shape of the LoRA adapters of student and fake."""

from __future__ import annotations

from dataclasses import dataclass

from .rules import Rule, check_rules

WIDEST = 2**15
"""No layer is wider than this, so no rank is larger."""
RULES = (
    Rule(
        lambda lora: not 1 <= lora.rank <= WIDEST,
        "lora.rank",
        f"must lie between 1 and {WIDEST}, which is wider than any layer",
    ),
    Rule(lambda lora: not lora.alpha > 0, "lora.alpha", "must be positive; the rank is usual"),
)


@dataclass(frozen=True)
class LoraSettings:
    """Shape of both adapters."""

    rank: int = 64
    alpha: float = 64.0
    targets: tuple[str, ...] = ()
    """Module names; empty takes the family's own (attention projections)."""

    def __post_init__(self) -> None:
        check_rules(self, RULES)
