"""Measured values with 95 % confidence intervals: bootstraps over prompts, and shares of votes.

Shapes: N samples, G prompts (groups of samples that belong together), R resamples.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

RESAMPLES, SEED = 1000, 2024


@dataclass(frozen=True)
class Measure:
    """A measured value and the ends of its 95 % confidence interval."""

    value: float
    low: float
    high: float


def percentiles(value: float, resampled: Tensor) -> Measure:
    """Return `value` with the 2.5th and 97.5th percentile of what the resamples [R] gave."""
    low, high = torch.quantile(
        resampled.double(), torch.tensor([0.025, 0.975], dtype=torch.float64)
    ).tolist()
    return Measure(value, low, high)


def resamples(count: int) -> Tensor:
    """Draw indices [R, count] with repetition, the same in every call: what is compared is
    resampled together.
    """
    return torch.randint(count, (RESAMPLES, count), generator=torch.Generator().manual_seed(SEED))


def mean_over_groups(values: Tensor, group: Tensor) -> Measure:
    """Average values [N], with percentiles of a bootstrap over the G groups that group [N] numbers
    from 0.
    """
    count = int(group.max()) + 1
    sums = torch.zeros(count, dtype=torch.float64).index_add_(0, group, values.double())
    sizes = torch.zeros(count, dtype=torch.float64).index_add_(
        0, group, torch.ones(len(group), dtype=torch.float64)
    )
    picks = resamples(count)
    return percentiles((sums.sum() / sizes.sum()).item(), sums[picks].sum(1) / sizes[picks].sum(1))


def paired_difference(ours: Tensor, theirs: Tensor) -> Measure:
    """Average ours - theirs [G], one value a prompt each, with percentiles of a bootstrap over the
    prompts.
    """
    if ours.shape != theirs.shape or ours.ndim != 1 or not len(ours):
        raise ValueError(
            f"{list(ours.shape)} and {list(theirs.shape)} values: a paired difference takes one of"
            " each side for every prompt"
        )
    return mean_over_groups(ours.double() - theirs.double(), torch.arange(len(ours)))


def binomial(wins: int, votes: int) -> Measure:
    """Return the share of votes won, with Wilson's score interval."""
    from scipy.stats import binomtest

    if not 0 <= wins <= votes or not votes:
        raise ValueError(f"{wins} of {votes} votes: at least one vote, and no more won than cast")
    ends = binomtest(wins, votes).proportion_ci(0.95, method="wilson")
    return Measure(wins / votes, ends.low, ends.high)
