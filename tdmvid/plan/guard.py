"""What the guard of a run costs, in network calls of one sample."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..config import RunConfig

if TYPE_CHECKING:
    from .plan import Plan


def count_samples(config: RunConfig, prompts: int) -> int:
    """Count the prompts of a run's samples; prompts: how many it trains on."""
    return len(config.log.sample_prompts) or min(config.log.sample_count, prompts)


@dataclass(frozen=True)
class GuardCalls:
    """Network calls of one sample that a run makes for its guard alone."""

    once: int
    """The teacher's, for the long samples that the student's are compared with."""
    each: int
    """The student's, whenever samples are made: those beyond the gallery."""
    share: float
    """Of `each` in the calls of the iterations between two samplings, a backward counted as two;
    0 if only the last student is sampled.
    """

    @staticmethod
    def of(plan: Plan) -> GuardCalls:
        """Count the calls of a planned run."""
        config, calls = plan.config, plan.calls
        if config.guard.action == "off":
            return GuardCalls(0, 0, 0.0)
        count = count_samples(config, plan.prompts)
        pairs = min(config.guard.pairs, count)
        guided = 2 if (config.guard.cfg or config.objective.cfg) != 1 else 1
        each = pairs * config.grid.calls
        samples = config.batch.micro * config.batch.accumulation
        iteration = samples * (calls.forwards + 2 * calls.backwards)
        every = config.log.sample_every
        return GuardCalls(
            once=(count + pairs) * config.log.teacher_steps * guided,
            each=each,
            share=each / (every * iteration) if every else 0.0,
        )
