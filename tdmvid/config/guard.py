"""Settings of the guard, which compares samples of student and teacher, and of the export."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .ranges import ranges_of
from .rules import Rule, check_rules

RULES = (
    *ranges_of("guard"),
    Rule(
        lambda guard: 0 < guard.cfg < 1,
        "guard.cfg",
        "must be 0, which uses objective.cfg, or at least 1 (guidance scale); 1 means no guidance",
    ),
)


@dataclass(frozen=True)
class GuardConfig:
    """Comparison of samples of student and teacher, every `log.sample_every` iterations."""

    action: Literal["warn", "stop", "off"] = "warn"
    """Reaction to a measure outside its reference band. `warn`: log a warning and continue. `stop`:
    stop the run. `off`: do not compare.
    """
    cfg: float = 0.0
    """Guidance scale of the teacher's reference samples, 1 to 1000. 0 uses `objective.cfg`."""
    pairs: int = 2
    """Number of sample prompts that are also sampled from a second noise, to measure whether
    different seeds give different samples. 0 skips this measure.
    """
    patience: int = 200
    """Iterations after which the student must be closer to the teacher than the untrained network
    with the same number of steps. Until then it may be 1.25 times as far away. 0 skips this check.
    """
    fake_rate: float = 1.0
    """Smallest learning rate of the fake, times its updates per iteration, relative to
    `student.lr`. Below it, a run warns at its start that the fake cannot follow the student. 0
    turns this off. The paper's settings have 5 to 10 (arXiv 2503.06674, Appendix D).
    """
    prompt_uses: float = 50.0
    """Number of uses of each prompt in a run, on average, from which a run warns at its start. 0
    turns this off.
    """

    def __post_init__(self) -> None:
        check_rules(self, RULES)


@dataclass(frozen=True)
class ExportConfig:
    """Export at the end of a run."""

    select: Literal["last", "best"] = "last"
    """Student to export. `last`: after the last iteration. `best`: the one with samples closest to
    the teacher's by the measures of the guard.
    """
