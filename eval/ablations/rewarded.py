"""A distillation of the mixture with a reward that favours some of its modes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from tdmvid.backbones.gaussian import Mixture
from tdmvid.config import BatchConfig, RewardConfig, RunConfig
from tdmvid.data.prompts import PromptOrder
from tdmvid.distill.iteration import iterate
from tdmvid.distill.reward import RunningMean
from tdmvid.parallel import launch
from tdmvid.train.rewards import Rewards

from .toy import toy

FAVOURED = (1, 3, 7)
"""Modes with reward 1; the others have reward 0. They hold 7 / 20 of the teacher's samples."""


def ring(radius: float) -> Mixture:
    """Return the mixture of the other ablations on a ring of another radius.

    Args:
        radius: Distance of the modes from 0.

    Returns:
        The mixture.
    """
    circle = Mixture.circle()
    return Mixture(circle.means * (radius / 1.5), circle.weights, circle.std)


def favoured(samples: Tensor, prompts: list[str]) -> Tensor:
    """Return 1 for samples whose nearest mode is favoured, else 0; the radius does not matter.

    Args:
        samples: Samples [B, 2].
        prompts: Ignored.

    Returns:
        Rewards [B].
    """
    angle = torch.atan2(samples[:, 1], samples[:, 0])
    mode = (angle / (2 * math.pi / 8)).round().long() % 8
    return torch.isin(mode, torch.tensor(FAVOURED)).double()


class OnePrompt(PromptOrder):
    """The order of a single prompt."""

    def at(self, position: int) -> int:
        """Return the only index.

        Args:
            position: Not used.

        Returns:
            0.
        """
        return 0


class BatchMean(RunningMean):
    """Divides by the mean over the batch itself, which contains the sample's own weight."""

    def weigh(self, tilts):
        """Compute weights with a mean of 1 over the batch.

        Args:
            tilts: Tilts of each micro-batch, [B].

        Returns:
            Weights of each micro-batch, [B], and their effective sample share.
        """
        self.log = None  # a first batch is divided by its own mean
        return super().weigh(tilts)


@dataclass(frozen=True)
class Rewarded(toy.Recipe):
    """Settings of a distillation with a reward."""

    strength: float = 0.0
    """Strength lam; 0 trains without a reward."""
    divisor: str = "running"
    """Divisor of the weights: the `running` mean, or the mean of the `batch`."""
    radius: float = 1.5
    """Radius of the ring of modes."""

    def data(self) -> Mixture:
        """Return the distribution of the teacher.

        Returns:
            The mixture.
        """
        return ring(self.radius)

    @property
    def rewarded(self) -> bool:
        """Whether a run has the reward."""
        return self.strength != 0

    @property
    def aimed(self) -> float | None:
        """Strength that the run should show, which the results are compared with."""
        return self.strength

    def turns(self, start):
        """Return the iteration function.

        Args:
            start: Pretrained network.

        Returns:
            The function.
        """
        return iterate

    def rewards(self, streams, stream) -> Rewards | None:
        """Make the rewards of a run, as `tdmvid train` makes them.

        Args:
            streams: Random generators of the run.
            stream: Its stream of trajectories, if it has one.

        Returns:
            The rewards; None without a strength.
        """
        if not self.rewarded:
            return None
        function = f"{__name__}:{favoured.__name__}"
        config = RunConfig(
            objective=self.objective,
            rewards=(RewardConfig(function=function, strength=self.strength, input="latents"),),
            batch=BatchConfig(micro=self.batch),
        )
        conds, order = (lambda indices: toy.NULL), OnePrompt(1, 0)
        world = launch.start("none")
        made = Rewards(config, world, streams, lambda x: x, conds, [""], order, stream)
        if self.divisor == "batch":
            made.mean = BatchMean(dict)
        return made


@dataclass(frozen=True)
class Raised(Rewarded):
    """Settings of a run whose strength is raised because only a part of it arrives."""

    arriving: float = 1.0
    """Part of the strength that arrives."""

    @property
    def aimed(self) -> float:
        """Strength that should arrive."""
        return self.strength * self.arriving
