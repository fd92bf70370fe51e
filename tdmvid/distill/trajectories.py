"""Trajectories that an iteration rolls out from noise, and the choice of their steps.

With rollout `stream`, stream.py replaces these.
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
    """Seeded random generators by iteration and name; see `parallel.rng.Streams`."""

    @property
    def device(self) -> torch.device | str:
        """Default device of the generators."""
        ...

    def generator(
        self, step: int, name: str, stream: int = 0, *, device: torch.device | str | None = None
    ) -> torch.Generator:
        """Make a generator; see `parallel.rng.Streams.generator`."""
        ...


@dataclass(frozen=True)
class Place:
    """Position of a trajectory in a run, which determines its random numbers."""

    step: int
    """Iteration."""
    micro: int = 0
    """Index of the micro-batch on its rank: the accumulation step."""
    stream: int = 0
    """Index of the micro-batch among those of all ranks."""
    number: int = 0
    """Number of the set of trajectories: 0 is shared by updates, others belong to one update."""

    def name(self, what: str) -> str:
        """Name a random stream of this trajectory.

        Args:
            what: Purpose of the random numbers, e.g. "z".

        Returns:
            The name.
        """
        return f"{what}/{self.number}" if self.number else what


def pick_k(
    place: Place, objective: Objective, grid: TimeGrid, batch: int, streams: Generators
) -> Tensor:
    """Draw the step k of each sample.

    With rollout `stop`, one k is drawn for the micro-batch. It is the same on all ranks, so all
    ranks make the same number of calls. Otherwise each sample has its own k. With two networks, all
    samples of an iteration use steps of one network, which is chosen with a probability
    proportional to its number of steps.

    Args:
        place: Position of the trajectory in the run.
        objective: The method.
        grid: The student's grid.
        batch: Batch size B.
        streams: Random generators of the run.

    Returns:
        Steps in 1..K, [B] on the host.
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
    """Draw the grid of an iteration.

    Args:
        grids: One grid per number of steps K.
        shared: Generator with the same seed on all ranks, so that all ranks make the same number of
            calls.

    Returns:
        The grid.
    """
    return grids[int(torch.randint(len(grids), (1,), generator=shared))]


def count_swaps(grid: TimeGrid, objective: ObjectiveSettings, micros: int) -> float:
    """Estimate how often the calls of an iteration change between the two networks.

    A rollout begins with the high-noise network. The graded calls use the low-noise network with a
    probability equal to its share of steps. A full rollout always reaches it if it has more than
    one step.

    Args:
        grid: Grid with a boundary.
        objective: Settings of the run.
        micros: Number of micro-batches; each is rolled out.

    Returns:
        An upper bound of the average number of changes per iteration.
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
    """Roll a micro-batch out from noise to a random step k of the student's grid.

    Args:
        place: Position of the trajectory in the run.
        cond: Conditioning of the micro-batch.
        noise_shape: Shape of the micro-batch, [B, ...].
        objective: The method.
        roles: The denoisers; only the student is called.
        grid: The student's grid.
        streams: Random generators of the run.

    Returns:
        The trajectory at s_k, before the call of step k.
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
