"""How often a run uses each of its prompts."""

from __future__ import annotations

import math
from statistics import harmonic_mean

from ..config import RunConfig, global_batch

MOST_USES = 50
"""A run that uses each of its prompts more often is warned about."""


def trajectories(config: RunConfig, *, ranks: int) -> int:
    """Return the number of trajectories that a run starts, each with a prompt of its own.

    A rollout starts one for each sample of an iteration. With objective.rollout "stream" it lasts
    K iterations, on average the harmonic mean of the set of K; the first of each sample starts in
    the midst of it.

    Args:
        config: The run.
        ranks: The number of data-parallel ranks.
    """
    batch = global_batch(config.batch, ranks)
    if config.objective.rollout != "stream":
        return config.steps * batch
    lasts = harmonic_mean(config.objective.step_set or [config.grid.calls])
    return batch * max(1, math.ceil(config.steps / lasts))


def prompt_uses(config: RunConfig, *, prompts: int, ranks: int) -> float:
    """Return how often a run uses each of its prompts, on average.

    Args:
        config: The run.
        prompts: How many it has.
        ranks: The number of data-parallel ranks.
    """
    return trajectories(config, ranks=ranks) / prompts


def repetition_warning(config: RunConfig, *, prompts: int, ranks: int) -> str:
    """Return what to tell a user whose run repeats its prompts too often; "" if it does not."""
    uses = prompt_uses(config, prompts=prompts, ranks=ranks)
    if uses <= MOST_USES:
        return ""
    kind = "images" if config.video.frames == 1 else "videos"
    enough = math.ceil(trajectories(config, ranks=ranks) / MOST_USES)
    return (
        f"each of {prompts:,} prompts is used {uses:,.0f} times, more than {MOST_USES}: the student"
        f" may serve these captions only; use {enough:,} or more, e.g. generated ones"
        f" (prompts.path={kind}:{enough})"
    )
