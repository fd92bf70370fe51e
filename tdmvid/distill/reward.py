"""A reward that enters through the fake alone.

The fake's loss of a trajectory is weighted by w = exp(-lam r), where r is the reward of the
trajectory's finished sample. Nothing else changes: no further network and no gradient of r.

Why: let p be the law of the student's finished samples, and q the law that the same run reaches
without a reward. The weighted fake's optimum is the score of the noised law of p exp(-lam r). The
student moves along teacher - fake, which vanishes for finished samples where p exp(-lam r) is
proportional to q, that is, for p proportional to q exp(lam r): the maximiser of
E[r] - KL(p || q) / lam.

Weights are divided by a running mean over the global batches, which all ranks share. A mean that
contains the sample itself would weaken the tilt: it holds a share of the sample's own weight.

Shapes: B samples of a micro-batch; tilts, the sums of strength times reward, are [B] on the host.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Mean = Callable[[dict[str, float]], dict[str, float]]
"""Averages scalars over the ranks; see `parallel.launch.mean`."""
DECAY = 0.98
"""Of the running mean: it forgets half of what it knows in 34 iterations."""


class RunningMean:
    """The divisor of the weights: the mean of exp(-tilt) over the global batches so far."""

    def __init__(self, over_ranks: Mean, decay: float = DECAY):
        self.over_ranks, self.decay = over_ranks, decay
        self.log: float | None = None
        """Logarithm of the mean; None before the first batch, which begins it."""

    def weigh(self, tilts: Sequence[Tensor]) -> tuple[list[Tensor], float]:
        """Return exp(-tilt) over the mean of earlier iterations, and take the batch into the mean.

        Args:
            tilts: Of each micro-batch of this rank, [B].

        Returns:
            The weights of each micro-batch, [B], float32, and the effective sample share of the
            global batch: (sum of w)^2 / (n sum of w^2).
        """
        all_tilts = torch.cat([tilt.double() for tilt in tilts])
        if self.log is None:
            middle = self.over_ranks({"tilt": float(all_tilts.mean())})["tilt"]
            spread = self.over_ranks({"w": float(_exp(middle - all_tilts).mean())})["w"]
            self.log = math.log(spread) - middle
        weights = _exp(-all_tilts - self.log)
        means = self.over_ranks({"w": float(weights.mean()), "w2": float(weights.square().mean())})
        # An outlier at most doubles the mean: divided by it, all later weights would vanish.
        heard = min(means["w"], 1 / (1 - self.decay))
        self.log += math.log(self.decay + (1 - self.decay) * heard)
        share = means["w"] ** 2 / means["w2"] if means["w2"] > 0 else 0.0
        return list(torch.split(weights.float(), [len(tilt) for tilt in tilts])), share


def _exp(log: Tensor) -> Tensor:
    """Return the exponential, of what a float64 and its square can hold."""
    return log.clamp(max=300.0).exp()
