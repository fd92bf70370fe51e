"""Which trajectories an iteration rolls out, if none go on from iteration to iteration: their noise
and their steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..config import ObjectiveSettings
from ..diffusion.denoiser import Cond
from ..diffusion.grid import TimeGrid
from ..diffusion.sampler import Trajectory, rollout
from .objective import Objective, Roles


class Generators(Protocol):
    """Seeded randomness by step and name; see `parallel.rng.Streams`."""

    @property
    def device(self) -> torch.device | str: ...
    def generator(
        self, step: int, name: str, stream: int = 0, *, device: torch.device | str | None = None
    ) -> torch.Generator: ...


@dataclass(frozen=True)
class Place:
    """Which trajectory of a run it is, on which its random numbers depend."""

    step: int
    micro: int = 0
    """Number of the micro-batch among those of its rank: the accumulation step."""
    stream: int = 0
    """Number of the micro-batch among those of all ranks."""
    number: int = 0
    """0 for the trajectory that turns of an iteration share, else that of a turn's own."""

    def name(self, what: str) -> str:
        """Return the name of a random stream."""
        return f"{what}/{self.number}" if self.number else what


def pick_k(
    place: Place, objective: Objective, grid: TimeGrid, batch: int, streams: Generators
) -> Tensor:
    """Draw the step of each sample, [B] in 1..K on the host.

    Where the rollout stops it is one for the micro-batch, and the same on all ranks, which then
    make as many calls; else one per sample. Of a grid for two networks all samples of an iteration
    have steps of one of them, each with the probability of its steps' number.
    """
    first, last = 1, grid.steps
    if grid.boundary:
        shared = streams.generator(place.step, "side", device="cpu")
        some = int(torch.randint(1, grid.steps + 1, (1,), generator=shared))
        side = next(side for side in grid.sides() if some in side)
        first, last = side[0], side[-1]
    if objective.rollout == "stop":
        shared = streams.generator(place.step, place.name("k"), place.micro, device="cpu")
        return torch.randint(first, last + 1, (1,), generator=shared).expand(batch)
    own = streams.generator(place.step, place.name("k"), place.stream, device="cpu")
    return torch.randint(first, last + 1, (batch,), generator=own)


def pick_grid(grids: Sequence[TimeGrid], shared: torch.Generator) -> TimeGrid:
    """The grid of one iteration, the same on all ranks: it decides how many calls are made."""
    return grids[int(torch.randint(len(grids), (1,), generator=shared))]


def count_swaps(grid: TimeGrid, objective: ObjectiveSettings, micros: int) -> float:
    """Return how often the calls of an iteration change from one of two networks to the other, on
    average and at most.

    A rollout begins at the high side. The iteration's graded calls are at the low side with the
    share of its steps; a full rollout has been there before.

    Args:
        grid: With a boundary.
        objective: The run's.
        micros: Micro-batches, each of which is rolled out.
    """
    low = len(grid.sides()[0])
    if objective.rollout == "stream":
        return 2 / grid.steps
    passes = objective.rollout == "full" and low > 1
    return 2 * (1.0 if passes else low / grid.steps) * micros * (objective.own_trajectories + 1)


def advance(
    place: Place,
    cond: Cond,
    noise_shape: tuple[int, ...],
    objective: Objective,
    roles: Roles,
    grid: TimeGrid,
    streams: Generators,
) -> Trajectory:
    """Roll one micro-batch, [B, ...] of `noise_shape`, out from noise up to a step k of the
    student's grid.
    """
    step, stream, device = place.step, place.stream, streams.device
    k = pick_k(place, objective, grid, noise_shape[0], streams)
    noise = streams.generator(step, place.name("z"), stream)
    z = torch.randn(noise_shape, generator=noise, device=device)
    if objective.conditioned_on_steps:
        cond = cond.with_step_count(grid.steps, len(z), device)
    calls = grid.steps - int(k[0]) if objective.rollout == "stop" else grid.steps - 1
    return rollout(
        roles.student,
        z,
        cond,
        grid,
        k.to(device, non_blocking=True),
        calls=calls,
        solver=objective.solver,
        generator=streams.generator(step, place.name("renoise"), stream),
    )
