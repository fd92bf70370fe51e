"""Score finished samples with reward functions, and weight what the fake learns from.

With objective.rollout="stream", a completed trajectory is scored once, after the iteration in which
it ended, and the fake learns from states of completed trajectories. Otherwise the student completes
each rollout for scoring, and the fake learns from the same state that the student is trained on.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..config import (
    RewardConfig,
    RunConfig,
    TDMSettings,
    decoded_frames,
    global_batch,
    names_of,
)
from ..data.progress import progress
from ..data.prompts import PromptOrder
from ..diffusion.denoiser import Cond
from ..diffusion.grid import TimeGrid
from ..diffusion.sampler import finish, sample
from ..distill.iteration import GradedPath, Reweigh
from ..distill.objective import Roles, build_objective
from ..distill.reward import RunningMean
from ..distill.stream import Stream
from ..distill.trajectories import Place
from ..parallel import collectives, launch
from ..parallel.engine import naming
from ..parallel.rng import Streams
from ..rewards import GlobalMeans, Scorer

FILE = "rewards.json"
"""File in a checkpoint with the state of the rewards."""
LOW_SHARE = 0.1
"""A run warns once if the effective sample share of the weights is below this."""


@dataclass
class Rewards:
    """The rewards of a run and everything they need from it."""

    config: RunConfig
    world: launch.World
    streams: Streams
    decode: Callable[[Tensor], Tensor]
    """Decodes latents [B, ...] to samples [B, 3, F, H, W] in [-1, 1]."""
    conds: Callable[[list[int]], Cond]
    """Returns the conditioning of prompts given by index."""
    prompts: Sequence[str]
    order: PromptOrder
    stream: Stream | None
    leading: Callable[[Tensor, int], Tensor] = lambda latents, frames: latents
    """Returns the part of latents from which the first frames are decoded."""
    scorers: list[Scorer] = field(init=False)
    mean: RunningMean = field(init=False)
    """Divisor of the weights."""
    means: GlobalMeans = field(init=False)
    """Rewards of samples that could not be scored."""
    scale: list[float] = field(init=False)
    """Divisor of each reward's strength."""
    failed_before: list[float] = field(init=False)
    """Samples of all ranks that each reward could not score until the last resume."""
    scalars: dict[str, float] = field(default_factory=dict)
    """Numbers to log for the last iteration."""
    warned: bool = False

    def __post_init__(self) -> None:
        self.scorers = [Scorer(reward) for reward in self.config.rewards]
        self.mean = RunningMean(collectives.mean)
        self.means = GlobalMeans(self.scorers, collectives.mean)
        self.scale = [1.0] * len(self.scorers)
        self.failed_before = [0.0] * len(self.scorers)

    def prepare(self, student: Any, grid: TimeGrid, shape: tuple[int, ...]) -> None:
        """Measure the scale of rewards with `normalise="prompt"` at the start of a run.

        The scale is the standard deviation of the reward within a prompt, over samples of the
        initial student.

        Args:
            student: The student.
            grid: Times of the sampling steps.
            shape: Shape of one latent, without the batch dimension.
        """
        rewards, device = self.config.rewards, self.streams.device
        wanted = [i for i, reward in enumerate(rewards) if reward.normalise == "prompt"]
        if not wanted:
            return
        prompts = max(rewards[i].deviation_prompts for i in wanted)
        each = max(rewards[i].deviation_samples for i in wanted)
        variances = torch.zeros(len(rewards), dtype=torch.float64)
        with progress("measuring rewards", total=prompts, unit="prompt") as bar:
            for number in range(prompts):
                noise = self.streams.generator(0, "reward/deviation", number)
                z = torch.randn((each, *shape), generator=noise, device=device)
                index = number % len(self.prompts)
                cond = self.conds([index] * each)
                objective = build_objective(self.config.objective)
                if objective.conditioned_on_steps:
                    cond = cond.with_step_count(grid.steps, each, device)
                micro = self.config.batch.micro
                found = [
                    self._score(
                        sample(
                            student,
                            z[rows],
                            cond.rows(rows),
                            grid,
                            solver=objective.solver,
                            generator=noise,
                        ),
                        [self.prompts[index]] * len(z[rows]),
                    )
                    for rows in (slice(first, first + micro) for first in range(0, each, micro))
                ]
                variances += torch.cat(self.means.fill(found)).var(0)
                bar.update()
        for scorer in self.scorers:
            scorer.failed = 0  # every rank measured the same samples; count those of iterations
        deviations = collectives.broadcast_from_rank0((variances / prompts).sqrt().tolist())
        for i in wanted:
            self.scale[i] = max(deviations[i], rewards[i].floor)

    def reweigh(self, step: int, grid: TimeGrid, indices: Sequence[Sequence[int]]) -> Reweigh:
        """Return the function that weights the trajectories of an iteration.

        Args:
            step: The iteration.
            grid: Times of the sampling steps.
            indices: Prompt indices of each micro-batch.

        Returns:
            The function that `iterate` calls.
        """
        return partial(self._learned, step, grid, indices)

    def score_ended(self) -> None:
        """Score the trajectories of a stream that have ended and are not scored yet."""
        assert self.stream is not None, "only a stream keeps ended trajectories"
        ends = [(ended, ended.unscored) for ended in self.stream.ended]
        found = []
        for ended, slots in ends:
            texts = [self.prompts[self.order.at(ended.position[slot])] for slot in slots]
            found.append(self._score(ended.past.x0[0, slots], texts))
        for (ended, slots), rewards in zip(ends, self.means.fill(found)):
            ended.rewards[slots] = rewards.float()

    def save(self) -> dict[str, bytes]:
        """Serialize the state of the rewards for a checkpoint. All ranks call this together.

        Returns:
            Contents by file name; empty on all ranks except rank 0.
        """
        counts = collectives.mean({str(i): count for i, count in enumerate(self._failed())})
        state = {
            "log_mean": self.mean.log,
            "scale": self.scale,
            "means": self.means.values,
            "failed": [round(count) for count in counts.values()],
        }
        return {FILE: json.dumps(state).encode()} if self.world.primary else {}

    def load(self, folder: Path) -> None:
        """Restore the state of the rewards from a checkpoint.

        Args:
            folder: Folder of the checkpoint.

        Raises:
            ValueError: The checkpoint contains no state of rewards.
        """
        with naming(folder / FILE) as path:
            state = json.loads(path.read_text())
        self.mean.log, self.scale = state["log_mean"], list(state["scale"])
        self.means.values = list(state["means"])
        self.failed_before = [float(count) for count in state.get("failed", self.failed_before)]
        for scorer in self.scorers:
            scorer.failed = 0

    def _failed(self) -> list[float]:
        """Return numbers whose mean over the ranks is how often each reward had no result."""
        return [
            before + scorer.failed * self.world.data_size
            for before, scorer in zip(self.failed_before, self.scorers)
        ]

    def close(self) -> None:
        """Stop the processes of reward functions."""
        for scorer in self.scorers:
            scorer.close()

    def _learned(
        self,
        step: int,
        grid: TimeGrid,
        indices: Sequence[Sequence[int]],
        number: int,
        calls: list[GradedPath],
    ) -> list[GradedPath]:
        if self.stream is not None:
            found = [ended.rewards for ended in self.stream.ended]
            weights = self._weigh(step, found)
            return [
                self._past(step, micro, weight, calls[micro].roles)
                for micro, weight in enumerate(weights)
            ]
        # Only one graph may be alive if each micro-batch takes all its turns before the next.
        known = self.config.objective.rollout == "stop" and not (len(calls) > 1 and calls[0].keep)
        found = [
            self._score(
                self._finished(step, grid, number, micro, call, known=known),
                [self.prompts[index] for index in chosen],
            )
            for micro, (call, chosen) in enumerate(zip(calls, indices))
        ]
        for call, weight in zip(calls, self._weigh(step, self.means.fill(found))):
            call.weight = weight
        return calls

    def _past(self, step: int, micro: int, weight: Tensor, roles: Roles) -> GradedPath:
        """Return a state of each slot's last completed trajectory."""
        assert self.stream is not None
        positions = self.stream.ended[micro].position
        cond = self.conds([self.order.at(position) for position in positions])
        path, stored = self.stream.past(step, micro, cond)
        x0 = stored if self.config.objective.finished_predictions == "stored" else None
        return GradedPath.of_past(path, x0, weight * self.stream.past_share(micro), roles)

    def _finished(
        self, step: int, grid: TimeGrid, number: int, micro: int, call: GradedPath, *, known: bool
    ) -> Tensor:
        """Return the completed samples of a micro-batch's rollout. `known`: whether the call at the
        rollout's end is made now and reused later.
        """
        objective, first = build_objective(self.config.objective), self._first_stream()
        place = Place(step, micro, first + micro, number)
        return finish(
            call.roles.student,
            call.path,
            grid,
            x0_hat=call.x0_hat(graded=False) if known else None,
            solver=objective.solver,
            generator=self.streams.generator(step, place.name("finish"), place.stream),
        )

    def _first_stream(self) -> int:
        return self.world.data_rank * self.config.batch.accumulation

    def _weigh(self, step: int, found: Sequence[Tensor]) -> list[Tensor]:
        """Return the weights [B] of each micro-batch from its rewards [B, R], and store what to
        log.
        """
        strengths = torch.tensor(
            [
                reward.strength / scale * min(1.0, (step + 1) / max(1, reward.warmup))
                for reward, scale in zip(self.config.rewards, self.scale)
            ],
            dtype=torch.float64,
        )
        objective = self.config.objective
        if isinstance(objective, TDMSettings) and objective.reward_weights == "student":
            strengths = -strengths
        weights, share = self.mean.weigh([each.double() @ strengths for each in found])
        means = torch.cat(list(found)).double().mean(0).tolist()
        names = names_of(self.config.rewards)
        self.scalars = {f"reward/{name}": mean for name, mean in zip(names, means)}
        self.scalars["ess/reward"] = share
        self.scalars |= {  # scalars are averaged over the ranks
            f"failed/{name}": count
            for name, reward, count in zip(names, self.config.rewards, self._failed())
            if reward.on_failure == "mean"
        }
        self._warn(share, step)
        return [weight.to(self.streams.device) for weight in weights]

    def _warn(self, share: float, step: int) -> None:
        samples = global_batch(self.config.batch, self.world.data_size)
        low = share < max(LOW_SHARE, 1.5 / samples) and samples > 1  # one sample has all weight
        if not low or self.warned or not self.world.primary:
            return
        self.warned = True
        print(
            f"warning: step {step}: the effective sample share of the reward weights is"
            f" {share:.0%} of the batch (ess/reward): lower rewards.strength or use a larger batch",
            file=sys.stderr,
        )

    @torch.no_grad()
    def _score(self, latents: Tensor, prompts: list[str]) -> Tensor:
        """Return the rewards [B, R] of completed latents [B, ...], float64 on the CPU; NaN where
        there is none.

        Ranks of a sequence-parallel group use the rewards of its first rank.
        """
        rewards = torch.full((len(latents), len(self.scorers)), math.nan, dtype=torch.float64)
        if not len(latents):
            return rewards
        finite = latents.flatten(1).isfinite().all(1).cpu()
        if finite.any():  # samples that are not finite fail the iteration; they are not scored
            known = latents[finite.to(latents.device)]
            texts = [prompt for prompt, fine in zip(prompts, finite.tolist()) if fine]
            samples = self._decoded(known)
            columns = [
                scorer(_given(scorer.config, known, samples), texts) for scorer in self.scorers
            ]
            rewards[finite] = torch.stack(columns, dim=1)
        return collectives.first_of_sequence(self.world, rewards)

    def _decoded(self, latents: Tensor) -> Tensor | None:
        """Return the frames that the rewards see, [B, 3, F, H, W]; None if they see latents."""
        whole = self.config.video.frames
        frames = decoded_frames(self.config.rewards, whole)
        if not frames:
            return None
        return self.decode(latents if frames == whole else self.leading(latents, frames))


def _given(reward: RewardConfig, latents: Tensor, samples: Tensor | None) -> Tensor:
    """Return the input of a reward."""
    if samples is None or reward.input == "latents":
        return latents
    return samples[:, :, : reward.frames or None]


def check_rewards(config: RunConfig, prompts: Sequence[str]) -> None:
    """Check that the reward functions of a run can be found, and can score its prompts.

    Args:
        config: Settings of the run.
        prompts: Training prompts.

    Raises:
        ValueError: A function cannot be found, or can score no prompt.
    """
    for reward in config.rewards:
        Scorer(reward).check_prompts(prompts)
