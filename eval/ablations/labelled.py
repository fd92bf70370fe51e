"""Two labelled fakes of finished samples, another way for a reward to act.

The fake is that of a run without a reward. A further network is trained on finished samples, noised
afresh to any time. It has a label: A for the samples as they are, B for the samples weighted by w =
exp(-lam r) / running mean. The student moves along teacher - fake + A - B.

Let p be the distribution of the finished samples and q the teacher's. At the optimum, A - B is the
score of noised p minus the score of noised p exp(-lam r). Where p is proportional to q exp(lam r),
p exp(-lam r) is q, so teacher + A - B is the score of the noised rewarded distribution. This holds
at every time, so the states of all steps are those of the rewarded teacher. An iteration makes 3
additional forward passes and 1 backward pass.

Shapes: B is the batch; samples are [B, 2], times and weights [B].
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tdmvid.backbones.gaussian import VelocityNetwork
from tdmvid.config import OptimConfig
from tdmvid.diffusion.denoiser import Cond
from tdmvid.distill.iteration import GradedPath, Outcome, iterate
from tdmvid.distill.losses import per_sample_mean, velocity_weight
from tdmvid.parallel.engine import TorchEngine

from .rewarded import Rewarded

PLAIN, WEIGHTED = 1, 2
"""Labels. They reach the network as a number of steps, which is its only condition."""
EARLIEST = 0.02
"""Smallest time to which finished samples are noised."""


@dataclass(frozen=True)
class Labelled(Rewarded):
    """Settings of a distillation with two labelled fakes of finished samples."""

    def turns(self, start: VelocityNetwork):
        """Return the iteration function.

        Args:
            start: Pretrained network, from which the labelled network starts.

        Returns:
            The function.
        """
        return LabelledFakes(start, self) if self.rewarded else iterate


class LabelledFakes:
    """Iterations with two labelled fakes, which are one network.

    Args:
        start: Pretrained network.
        recipe: Settings.
    """

    def __init__(self, start: VelocityNetwork, recipe: Labelled):
        self.network = VelocityNetwork(
            start.process, width=recipe.width, seed=recipe.seed, conditioned_on_steps=True
        )
        self.network.load_state_dict({**self.network.state_dict(), **start.state_dict()})
        settings = OptimConfig(lr=recipe.lr_fake, schedule="linear", clip=0)
        self.engine = TorchEngine(self.network, settings, total_steps=recipe.iterations)
        self.ceiling = recipe.objective.snr_ceiling

    def __call__(self, step, conds, shape, *, roles, streams, stream, reweigh, **rest) -> Outcome:
        """Update the labelled fakes on finished samples, then fake and student as without a reward.

        Args:
            step: Iteration.
            conds: Conditioning of the only micro-batch.
            shape: Its shape.
            roles: The networks.
            streams: Random generators.
            stream: The stream of trajectories.
            reweigh: Weights finished trajectories.
            **rest: Other arguments of `iterate`.

        Returns:
            Result of the iteration.
        """
        [past] = reweigh(0, [GradedPath(stream.path(0, conds[0]), roles, keep=False)])
        finished = stream.ended[0].past.x0[0]
        loss = self.loss(finished, past.weight, streams.generator(step, "labelled"))
        self.engine.backward(loss)
        self.engine.step()
        moved = replace(roles, teacher=Rewarding(roles.teacher, self.network))
        return iterate(
            step, conds, shape, roles=moved, streams=streams, stream=stream, reweigh=None, **rest
        )

    def loss(self, finished: Tensor, weight: Tensor, generator: torch.Generator) -> Tensor:
        """Compute the denoising loss of a batch in which each sample has one label at random.

        Args:
            finished: Finished samples, [B, 2].
            weight: Weights of the reward, [B].
            generator: Generator of labels, times and noise.

        Returns:
            The loss, a scalar.
        """
        process, count = self.network.process, len(finished)
        weighted = torch.rand(count, generator=generator) < 0.5
        tau = process.snap(torch.rand(count, generator=generator).clamp(min=EARLIEST))
        noise = torch.randn(finished.shape, generator=generator)
        x_tau = process.noise(finished, noise, tau)
        labels = torch.where(weighted, WEIGHTED, PLAIN)
        error = self.network(x_tau, tau, Cond({}).with_step_counts(labels)) - finished
        counted = torch.where(weighted, weight, 1.0)
        over_time = velocity_weight(process.alpha_sigma(tau)[1], self.ceiling)
        return (counted * over_time * per_sample_mean(error.square())).mean()


class Rewarding:
    """Teacher plus A - B.

    Args:
        teacher: The teacher.
        network: The labelled fakes.
    """

    def __init__(self, teacher, network: VelocityNetwork):
        self.teacher, self.network, self.process = teacher, network, teacher.process

    def __call__(self, x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """Predict x0 of the rewarded teacher.

        Args:
            x_t: Noised samples, [B, 2].
            t: Times, [B].
            cond: Conditioning of the teacher.

        Returns:
            Predictions, [B, 2].
        """
        labels = torch.tensor([PLAIN, WEIGHTED]).repeat_interleave(len(x_t))
        both = self.network(x_t.repeat(2, 1), t.repeat(2), Cond({}).with_step_counts(labels))
        plain, weighted = both.chunk(2)
        return self.teacher(x_t, t, cond) + plain - weighted
