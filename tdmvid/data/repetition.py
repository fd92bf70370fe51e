"""Compute how often a run uses each of its prompts."""

from __future__ import annotations

import math
from statistics import harmonic_mean

from ..config import RunConfig, global_batch


def trajectories(config: RunConfig, *, ranks: int) -> int:
    """Count the trajectories that a run starts. Each uses one prompt.

    A rollout starts one trajectory per sample of an iteration. With objective.rollout "stream", a
    trajectory lasts K iterations, on average the harmonic mean of the set of K. The first
    trajectory of each sample starts in the middle.

    Args:
        config: Settings of the run.
        ranks: Number of data-parallel ranks.

    Returns:
        The number of trajectories.
    """
    batch = global_batch(config.batch, ranks)
    if config.objective.rollout != "stream":
        return config.steps * batch
    lasts = harmonic_mean(config.objective.step_set or [config.grid.calls])
    return batch * max(1, math.ceil(config.steps / lasts))


def prompt_uses(config: RunConfig, *, prompts: int, ranks: int) -> float:
    """Compute how often a run uses each of its prompts, on average.

    Args:
        config: Settings of the run.
        prompts: Number of prompts.
        ranks: Number of data-parallel ranks.

    Returns:
        Uses per prompt.
    """
    return trajectories(config, ranks=ranks) / prompts
