"""The table of a run's rewards: how far they rose, and what happened to diversity and the guard's
measures, where reward hacking shows first.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from ..guard.record import GuardRecord
from .meanings import MEASURES, guard_band
from .plots import short

REWARD, SHARE = "reward/", "ess/reward"
PART = 10
"""The first and the last 1 / PART of the steps are compared."""
BLOCKS = 8
"""Blocks of steps of an interval. Neighbouring steps share samples, so steps are no independent
values.
"""
SHOWN = ("seeds", "prompts", "motion", "flicker", "contrast", "saturation", "clipped", "sharpness")
"""Measures of the guard, diversity first."""


@dataclass(frozen=True)
class Row:
    """One line of the table: a value at the start and at the end of a run."""

    name: str
    meaning: str
    start: str
    end: str
    note: str = ""
    """The guard's band, for its measures."""


def reward_table(metrics: Mapping[str, Sequence[float]], record: GuardRecord) -> list[Row]:
    """Return the rows of the table.

    Args:
        metrics: Values of a run by name, one per step.
        record: The guard's checks.

    Returns:
        Rows: rewards with 95 % intervals, the share of the batch in the weights, and the guard's
        measures; empty for a run without rewards.
    """
    names = [name for name in metrics if name.startswith(REWARD)]
    if not names:
        return []
    rows = []
    for name in [*names, *([SHARE] if SHARE in metrics else [])]:
        values = np.array(metrics[name], dtype=float)
        part = max(1, len(values) // PART)
        meaning = "Effective share of the batch in the weights" if name == SHARE else "Mean reward"
        rows.append(Row(name, meaning, _mean(values[:part]), _mean(values[-part:])))
    return rows + _guarded(record)


def _guarded(record: GuardRecord) -> list[Row]:
    """Return the measures of the first and the last check, relative to the teacher's."""
    if not record.checks:
        return []
    first, last = record.checks[0].relative, record.checks[-1].relative
    rows = []
    for measure in SHOWN:
        band = guard_band(f"guard/{measure}")
        if band is None or measure not in first or measure not in last:
            continue
        note = f"band {short(band.low)} to {short(band.high)}"
        meaning = (
            MEASURES[measure] + (", divided by" if band.ratio else ", minus") + " the teacher's"
        )
        values = short(first[measure]), short(last[measure])
        rows.append(Row(f"guard/{measure}", meaning, *values, note))
    return rows


def _mean(values: np.ndarray) -> str:
    """Format a mean with its 95 % interval over blocks of steps (Student's t)."""
    finite = values[np.isfinite(values)]
    if not len(finite):
        return "–"
    mean = short(float(finite.mean()))
    if len(finite) < 2 * BLOCKS:
        return mean
    blocks = [block.mean() for block in np.array_split(finite, BLOCKS)]
    reach = stats.t.ppf(0.975, BLOCKS - 1) * np.std(blocks, ddof=1) / math.sqrt(BLOCKS)
    return f"{mean} [{short(float(finite.mean() - reach))}, {short(float(finite.mean() + reach))}]"
