"""LoRA settings that student and fake share."""

from __future__ import annotations

from dataclasses import dataclass

from .ranges import ranges_of
from .rules import check_rules

RULES = ranges_of("lora")


@dataclass(frozen=True)
class LoraSettings:
    """Shape of the LoRA adapters of student and fake."""

    rank: int = 64
    """Rank of the LoRA matrices, 1 to 4096."""
    alpha: float = 64.0
    """LoRA alpha, above 0. The update is scaled by `alpha / rank`; `alpha` is usually `rank`."""
    targets: tuple[str, ...] = ()
    """Names of the modules that get an adapter. An empty list uses the default of the model family
    (the attention projections).
    """

    def __post_init__(self) -> None:
        check_rules(self, RULES)
