"""What compares the student's samples with the teacher's while it trains, and what is exported."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .ranges import ranges_of
from .rules import check_rules

RULES = ranges_of("guard")


@dataclass(frozen=True)
class GuardConfig:
    """The comparison that is made whenever samples are (`log.sample_every`)."""

    action: Literal["warn", "stop", "off"] = "warn"
    """What happens when a measure leaves its band: warn and go on, stop the run, or compare
    nothing.
    """
    cfg: float = 0.0
    """Guidance of the teacher's long samples that the student's are compared with; 0 takes
    objective.cfg.
    """
    pairs: int = 2
    """Sample prompts that are sampled from a second noise too, to tell whether seeds differ."""
    patience: int = 200
    """Iterations during which the student may be as far from its teacher as the untrained network
    is in as many steps, and after which it must be closer; 0 does not look at that network.
    """

    def __post_init__(self) -> None:
        check_rules(self, RULES)


@dataclass(frozen=True)
class ExportConfig:
    """What the end of a run exports."""

    select: Literal["last", "best"] = "last"
    """The student after the last iteration, or the one whose samples were closest to the teacher's
    by the guard's measures.
    """
