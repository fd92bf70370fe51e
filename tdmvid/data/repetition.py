"""Compute how often a run uses each of its prompts."""

from __future__ import annotations

import math
from statistics import harmonic_mean

from ..config import RunConfig, global_batch

MOST_USES = 50
"""Uses of each prompt above which a run logs a warning."""


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


def repetition_warning(config: RunConfig, *, prompts: int, ranks: int) -> str:
    """Return a warning if a run repeats its prompts too often.

    Args:
        config: Settings of the run.
        prompts: Number of prompts.
        ranks: Number of data-parallel ranks.

    Returns:
        The warning, or "" if each prompt is used at most `MOST_USES` times.
    """
    uses = prompt_uses(config, prompts=prompts, ranks=ranks)
    if uses <= MOST_USES:
        return ""
    kind = "images" if config.video.frames == 1 else "videos"
    enough = math.ceil(trajectories(config, ranks=ranks) / MOST_USES)
    return (
        f"each of {prompts:,} prompts is used {uses:,.0f} times, more than {MOST_USES}: the student"
        f" may work only for these prompts; use {enough:,} or more, e.g. generated ones"
        f" (prompts.path={kind}:{enough})"
    )
