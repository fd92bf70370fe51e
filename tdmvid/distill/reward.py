"""Rewards that act only through the fake.

The fake's loss of a trajectory is weighted by w = exp(-lam r), where r is the reward of the
finished sample of the trajectory. Nothing else changes: there is no additional network, and no
gradient of r.

Derivation: let p be the distribution of the student's finished samples, and q the distribution that
the same run reaches without a reward. The optimum of the weighted fake is the score of the noised
distribution p exp(-lam r). The student moves along teacher - fake. For finished samples, this is
zero where p exp(-lam r) is proportional to q, so p is proportional to q exp(lam r). This p is the
maximiser of E[r] - KL(p || q) / lam.

Weights are divided by a running mean over the global batches, which all ranks share. A mean that
includes the current sample would contain a share of its own weight, and would weaken the effect.

Shapes: B is the number of samples in a micro-batch. Tilts, the sums of strength times reward, are
[B] on the host.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Mean = Callable[[dict[str, float]], dict[str, float]]
"""Function that averages named scalars over the ranks; see `parallel.collectives.mean`."""
DECAY = 0.98
"""Decay of the running mean, which halves the weight of a batch in 34 iterations."""


class RunningMean:
    """Running mean of exp(-tilt) over the global batches, the divisor of the weights.

    Args:
        over_ranks: Averages named scalars over the ranks.
        decay: Decay per iteration.
    """

    def __init__(self, over_ranks: Mean, decay: float = DECAY):
        self.over_ranks, self.decay = over_ranks, decay
        self.log: float | None = None
        """Logarithm of the mean; None before the first batch, which initialises it."""

    def weigh(self, tilts: Sequence[Tensor]) -> tuple[list[Tensor], float]:
        """Compute the weights exp(-tilt) / mean, and update the mean with the batch afterwards.

        Args:
            tilts: Tilts of each micro-batch of this rank, [B].

        Returns:
            The weights of each micro-batch, [B] float32, and the effective sample size of the
            global batch as a share of its size n: (sum of w)^2 / (n sum of w^2).
        """
        all_tilts = torch.cat([tilt.double() for tilt in tilts])
        if self.log is None:
            middle = self.over_ranks({"tilt": float(all_tilts.mean())})["tilt"]
            spread = self.over_ranks({"w": float(_exp(middle - all_tilts).mean())})["w"]
            self.log = math.log(spread) - middle
        weights = _exp(-all_tilts - self.log)
        means = self.over_ranks({"w": float(weights.mean()), "w2": float(weights.square().mean())})
        # An outlier at most doubles the mean. Otherwise all later weights would be close to 0.
        heard = min(means["w"], 1 / (1 - self.decay))
        self.log += math.log(self.decay + (1 - self.decay) * heard)
        share = means["w"] ** 2 / means["w2"] if means["w2"] > 0 else 0.0
        return list(torch.split(weights.float(), [len(tilt) for tilt in tilts])), share


def _exp(log: Tensor) -> Tensor:
    """Return the exponential, limited so that its square is finite in float64."""
    return log.clamp(max=300.0).exp()
