"""How often a run uses each of its prompts."""

from __future__ import annotations

from ..config import RunConfig, global_batch

MOST_USES = 50
"""A run that uses each of its prompts more often is warned about."""


def prompt_uses(config: RunConfig, *, prompts: int, ranks: int) -> float:
    """Return how often a run uses each of its prompts, on average.

    Args:
        config: The run.
        prompts: How many it has.
        ranks: The number of data-parallel ranks.
    """
    return config.steps * global_batch(config.batch, ranks) / prompts


def repetition_warning(config: RunConfig, *, prompts: int, ranks: int) -> str:
    """Return what to tell a user whose run repeats its prompts too often; "" if it does not."""
    uses = prompt_uses(config, prompts=prompts, ranks=ranks)
    if uses <= MOST_USES:
        return ""
    kind = "images" if config.video.frames == 1 else "videos"
    enough = -(-config.steps * global_batch(config.batch, ranks) // MOST_USES)
    return (
        f"each of {prompts:,} prompts is used {uses:,.0f} times, more than {MOST_USES}: the student"
        f" may serve these captions only; use {enough:,} or more, e.g. generated ones"
        f" (prompts.path={kind}:{enough})"
    )
