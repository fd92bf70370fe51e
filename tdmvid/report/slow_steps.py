"""Steps that took far longer than the others, and what happened just before them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

SLOW = 3.0
"""A step is slow if it takes more than this many times the median."""
UNKNOWN = "cause not recorded"
_SHOWN = 6


@dataclass(frozen=True)
class SlowStep:
    """A slow step."""

    step: int
    seconds: float
    cause: str
    """For example "checkpoint" or "samples, guard"."""


def find_slow_steps(
    metrics: Mapping[str, list[float]], log: Mapping[str, Any]
) -> tuple[float, list[SlowStep]]:
    """Find the steps that took more than SLOW times the median.

    Step n runs when n iterations are done, so what the run does after n iterations, such as a
    checkpoint, comes just before it.

    Args:
        metrics: columns of metrics.jsonl, equally long.
        log: settings `log.*` of the run.

    Returns:
        The median in seconds (0.0 if no step was timed), and the slow steps in their order.
    """
    timed = [
        (int(step), seconds)
        for step, seconds in zip(metrics["step"], metrics.get("seconds", []))
        if math.isfinite(seconds)
    ]
    if not timed:
        return 0.0, []
    median = statistics.median(seconds for _, seconds in timed)
    compared = {
        int(step) + 1
        for step, distance in zip(metrics["step"], metrics.get("guard/distance", []))
        if math.isfinite(distance)
    }
    return median, [
        SlowStep(step, seconds, _cause(step, log, compared))
        for step, seconds in timed
        if seconds > SLOW * median
    ]


def _cause(step: int, log: Mapping[str, Any], compared: set[int]) -> str:
    """What happened just before a step; checkpoints are written while the next two steps run."""
    if step == 0:
        return "first step"
    found = []
    if step in compared or _happened(log.get("sample_every"), step):
        found.append("samples")
    if step in compared:
        found.append("guard")
    every = log.get("checkpoint_every")
    if _happened(every, step) or _happened(every, step - 1):
        found.append("checkpoint")
    return ", ".join(found) or UNKNOWN


def _happened(every: int | None, done: int) -> bool:
    return every is not None and every > 0 and done > 0 and done % every == 0


def summarize(slow: list[SlowStep]) -> list[str]:
    """Return a line for each cause with its steps, the most frequent cause first."""
    causes: dict[str, list[int]] = {}
    for one in slow:
        causes.setdefault(one.cause, []).append(one.step)
    lines = []
    for cause, steps in sorted(causes.items(), key=lambda item: -len(item[1])):
        shown = ", ".join(f"{step:,}" for step in steps[:_SHOWN])
        more = f" and {len(steps) - _SHOWN:,} more" if len(steps) > _SHOWN else ""
        lines.append(f"{cause}: step{'s' * (len(steps) > 1)} {shown}{more}")
    return lines
