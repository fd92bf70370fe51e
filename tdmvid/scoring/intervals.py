"""Values with 95 % confidence intervals: bootstraps over prompts, and shares of votes.

Shapes: N samples, G prompts (groups of samples that belong together), R resamples.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

RESAMPLES, SEED = 1000, 2024


@dataclass(frozen=True)
class Measure:
    """A value and the ends of its 95 % confidence interval."""

    value: float
    low: float | None = None
    """None, like `high`, if no interval can be estimated, for example from one prompt."""
    high: float | None = None

    @property
    def interval(self) -> tuple[float, float] | None:
        """Both ends, or None without an interval."""
        return None if self.low is None or self.high is None else (self.low, self.high)

    def holds(self, value: float) -> bool:
        """Return whether the interval contains a value. Without an interval, any value is possible.

        Args:
            value: The value.
        """
        return self.interval is None or self.interval[0] <= value <= self.interval[1]

    def text(self, form: str, *, scale: float = 1.0, unit: str = "") -> str:
        """Format the value, and the interval in square brackets if there is one.

        Args:
            form: Format of each number, e.g. ".2f".
            scale: Factor of each number.
            unit: Text after the value.

        Returns:
            The text, e.g. "0.50 [0.40, 0.60]".
        """
        value, *ends = (format(scale * x, form) for x in (self.value, *(self.interval or ())))
        return f"{value}{unit} [{', '.join(ends)}]" if ends else f"{value}{unit}"


def measure_of(stored: Mapping[str, Any]) -> Measure:
    """Return a measure that was stored as JSON.

    Args:
        stored: Its `value`, and its `low` and `high` if it has an interval.

    Returns:
        The measure.
    """
    return Measure(stored["value"], stored.get("low"), stored.get("high"))


def percentiles(value: float, resampled: Tensor) -> Measure:
    """Return a value with the 2.5th and 97.5th percentiles of its bootstrap.

    Args:
        value: The value.
        resampled: Values [R] of the resamples.

    Returns:
        Value and interval.
    """
    low, high = torch.quantile(
        resampled.double(), torch.tensor([0.025, 0.975], dtype=torch.float64)
    ).tolist()
    return Measure(value, low, high)


def resamples(count: int) -> Tensor:
    """Draw bootstrap indices with repetition.

    They are the same in every call, so values that are compared are resampled together.

    Args:
        count: Number of groups G.

    Returns:
        Indices [R, G].
    """
    return torch.randint(count, (RESAMPLES, count), generator=torch.Generator().manual_seed(SEED))


def mean_over_pairs(values: Tensor, first: Tensor, second: Tensor) -> Measure:
    """Average values of pairs, with a bootstrap interval over the groups on both sides.

    A group that is drawn twice counts twice in all of its pairs. Pairs within one group are left
    out of the resamples.

    Args:
        values: Value of each pair [P].
        first: Group of its first sample, numbered from 0, [P].
        second: Group of its second sample [P].

    Returns:
        Mean and interval. There is no interval if all pairs are of the same two groups, because
        every resample has the same mean.
    """
    mean = values.double().mean().item()
    count = int(torch.maximum(first, second).max()) + 1
    sums, sizes = (torch.zeros(count * count, dtype=torch.float64) for _ in range(2))
    places, across = first * count + second, first != second
    sums.index_add_(0, places[across], values[across].double())
    sizes.index_add_(0, places[across], torch.ones(int(across.sum()), dtype=torch.float64))
    sides = torch.minimum(first, second) * count + torch.maximum(first, second)
    if len(sides[across].unique()) < 2:
        return Measure(mean)
    picks = resamples(count)
    drawn = torch.zeros(len(picks), count, dtype=torch.float64)
    drawn.scatter_add_(1, picks, torch.ones_like(picks, dtype=torch.float64))
    total, weight = (((drawn @ table.view(count, count)) * drawn).sum(1) for table in (sums, sizes))
    return percentiles(mean, (total / weight)[weight > 0])


def mean_over_groups(values: Tensor, group: Tensor) -> Measure:
    """Average values, with a bootstrap interval over groups. With one group, it is over its values.

    Args:
        values: Values [N].
        group: Group of each value, numbered from 0, [N].

    Returns:
        Mean and interval. There is no interval with a single value.
    """
    if len(values) == 1:
        return Measure(values.double().item())
    count = int(group.max()) + 1
    if count == 1:
        count, group = len(values), torch.arange(len(values))
    sums = torch.zeros(count, dtype=torch.float64).index_add_(0, group, values.double())
    sizes = torch.zeros(count, dtype=torch.float64).index_add_(
        0, group, torch.ones(len(group), dtype=torch.float64)
    )
    picks = resamples(count)
    return percentiles((sums.sum() / sizes.sum()).item(), sums[picks].sum(1) / sizes[picks].sum(1))


def mean_over_samples(values: Tensor, group: Tensor) -> Measure:
    """Average values, with an interval over new samples of the same groups.

    The groups are fixed: only what varies within them counts. The interval is 1.96 standard errors
    of the stratified mean to both sides.

    Args:
        values: Values [N].
        group: Group of each value, numbered from 0, [N]. Every group has at least two.

    Returns:
        Mean and interval.

    Raises:
        ValueError: A group has fewer than two values.
    """
    values, sizes = values.double(), group.bincount().double()
    if sizes.min() < 2:
        raise ValueError(
            f"a group has {int(sizes.min())} values: an interval over its samples needs two"
        )
    middle = torch.zeros_like(sizes).index_add_(0, group, values) / sizes
    squares = torch.zeros_like(sizes).index_add_(0, group, (values - middle[group]).square())
    spread = 1.96 * (sizes * squares / (sizes - 1)).sum().sqrt().item() / len(values)
    mean = values.mean().item()
    return Measure(mean, mean - spread, mean + spread)


def paired_difference(ours: Tensor, theirs: Tensor) -> Measure:
    """Average the differences between paired values, with a bootstrap interval over prompts.

    Args:
        ours: One value per prompt [G].
        theirs: One value per prompt [G].

    Returns:
        Mean of `ours - theirs` and its interval, which one prompt does not have.

    Raises:
        ValueError: The values are not paired.
    """
    if ours.shape != theirs.shape or ours.ndim != 1 or not len(ours):
        raise ValueError(
            f"{list(ours.shape)} and {list(theirs.shape)} values: a paired difference needs one"
            " value of each side per prompt"
        )
    return mean_over_groups(ours.double() - theirs.double(), torch.arange(len(ours)))


def binomial(wins: int, votes: int) -> Measure:
    """Return the share of votes won, with Wilson's score interval.

    Args:
        wins: Number of votes won.
        votes: Number of votes.

    Returns:
        Share and interval.

    Raises:
        ValueError: There are no votes, or more wins than votes.
    """
    from scipy.stats import binomtest

    if not 0 <= wins <= votes or not votes:
        raise ValueError(f"{wins} of {votes} votes: needs at least one vote, and at most all won")
    ends = binomtest(wins, votes).proportion_ci(0.95, method="wilson")
    return Measure(wins / votes, ends.low, ends.high)
