"""How often a run writes checkpoints and samples, and of which prompts."""

from __future__ import annotations

from dataclasses import dataclass

from .ranges import ranges_of
from .rules import check_rules

RULES = ranges_of("log")


@dataclass(frozen=True)
class LogConfig:
    """How often, in steps; 0 turns a thing off. The last step always has all of them."""

    checkpoint_every: int = 100
    keep_checkpoints: int = 2
    sample_every: int = 100
    sample_prompts: tuple[str, ...] = ()
    """Prompts of the samples and of the report's gallery; empty takes the first training prompts.
    """
    sample_count: int = 4
    seed: int = 1234
    """Of the noise of samples and gallery."""
    teacher_steps: int = 50
    teacher_shift: float = 1.0
    """Flow shift of the teacher's long samples: what its own scheduler has, 1 for an even grid."""

    def __post_init__(self) -> None:
        check_rules(self, RULES)
