"""Mean rewards of the global batch, for samples that could not be scored.

Shapes: B is the number of samples in a micro-batch, R the number of rewards.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .functions import RewardFailed, Scorer

Mean = Callable[[dict[str, float]], dict[str, float]]
"""Function that averages named scalars over the ranks; see `parallel.collectives.mean`."""


class GlobalMeans:
    """Last mean of each reward over a global batch.

    Args:
        scorers: The rewards.
        over_ranks: Averages named scalars over the ranks.
    """

    def __init__(self, scorers: Sequence[Scorer], over_ranks: Mean):
        self.scorers, self.over_ranks = scorers, over_ranks
        self.values: list[float | None] = [None] * len(scorers)
        """Means; None before the first sample."""

    def fill(self, found: Sequence[Tensor]) -> list[Tensor]:
        """Give samples without a reward the mean of the global batch. All ranks call this together.

        If no sample of the batch was scored, the mean of the last batch is used.

        Args:
            found: Rewards of each micro-batch of this rank, [B, R]; NaN where a function failed.

        Returns:
            Finite rewards of each micro-batch, [B, R].

        Raises:
            RewardFailed: A function failed before any sample was scored. All ranks raise it.
        """
        every = torch.cat([torch.zeros(0, len(self.scorers)).double(), *found])
        known = every.isfinite()
        counted = {"known": known.double(), "sum": torch.where(known, every, 0.0)}
        mine = {
            f"{name}/{index}": total
            for name, values in counted.items()
            for index, total in enumerate(values.sum(0).tolist())
        }
        failed = {f"failed/{i}": float(scorer.failed) for i, scorer in enumerate(self.scorers)}
        shared = self.over_ranks(mine | failed)
        for index, scorer in enumerate(self.scorers):
            if shared[f"known/{index}"]:
                self.values[index] = shared[f"sum/{index}"] / shared[f"known/{index}"]
            elif shared[f"failed/{index}"] and self.values[index] is None:
                raise RewardFailed(scorer.message(first=True))
        means = torch.tensor([value or 0.0 for value in self.values], dtype=torch.float64)
        return [torch.where(each.isfinite(), each, means) for each in found]
