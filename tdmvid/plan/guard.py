"""Count the network calls that a run's guard makes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..config import RunConfig

if TYPE_CHECKING:
    from .plan import Plan


def count_samples(config: RunConfig, prompts: int) -> int:
    """Return the number of prompts that a run samples.

    Args:
        config: Settings of the run.
        prompts: Number of training prompts.

    Returns:
        Number of sampled prompts.
    """
    return len(config.log.sample_prompts) or min(config.log.sample_count, prompts)


@dataclass(frozen=True)
class GuardCalls:
    """Network calls, each on one sample, that a run makes only for its guard."""

    once: int
    """Calls for the teacher's many-step samples and the untrained network's few-step ones, which
    the student is compared with."""
    each: int
    """Student calls each time samples are made, in addition to those for the gallery."""
    share: float
    """Ratio of `each` to the training calls between two samplings. A backward pass counts as two
    calls. 0 if only the final student is sampled.
    """

    @staticmethod
    def of(plan: Plan) -> GuardCalls:
        """Count the guard's calls of a planned run.

        Args:
            plan: Plan of the run.

        Returns:
            Number of calls; all 0 if the guard is off.
        """
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
            once=(count + pairs) * (config.log.teacher_steps * guided + config.grid.calls),
            each=each,
            share=each / (every * iteration) if every else 0.0,
        )
