"""Time grids: the times of the student's K calls, 1 >= s_K > ... > s_1 > s_0 = 0."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .process import Process, TabulatedVP


@dataclass(frozen=True)
class TimeGrid:
    """Times of a trajectory with K steps. Step k goes from s_k to s_{k-1}.

    Raises:
        ValueError: If the times do not rise from 0 to at most 1.
    """

    times: tuple[float, ...]
    """s_0, ..., s_K in ascending order; s_0 is 0."""
    boundary: float = 0.0
    """Time from which the high-noise network is called, for a teacher with two experts. 0 means one
    network.
    """

    def __post_init__(self) -> None:
        ascending = all(a < b for a, b in zip(self.times, self.times[1:]))
        if len(self.times) < 2 or self.times[0] != 0 or self.times[-1] > 1 or not ascending:
            raise ValueError(
                f"times={self.times}: a time grid must rise from 0 to at most 1 in one step or more"
            )

    @property
    def steps(self) -> int:
        """Number of student calls K."""
        return len(self.times) - 1

    def tensor(self, device: torch.device | str = "cpu") -> Tensor:
        """Return the times as a tensor.

        Args:
            device: Device of the tensor.

        Returns:
            s_0, ..., s_K, [K + 1] float32.
        """
        return torch.tensor(self.times).to(device, non_blocking=True)

    def sides(self) -> list[list[int]]:
        """Group the steps by the network that they call.

        Returns:
            Lists of steps k in ascending order: of the low-noise network, then of the high-noise
            network. Empty lists are left out, so one network gives one list.
        """
        low = [k for k in range(1, self.steps + 1) if self.times[k] < self.boundary]
        return [side for side in (low, list(range(len(low) + 1, self.steps + 1))) if side]

    def floors(self, device: torch.device | str = "cpu") -> Tensor:
        """Return the lowest time of the network that is called at each time of the grid.

        Args:
            device: Device of the tensor.

        Returns:
            The boundary for times at or above it, otherwise 0, [K + 1].
        """
        floors = [self.boundary if t >= self.boundary else 0.0 for t in self.times]
        return torch.tensor(floors).to(device, non_blocking=True)

    def descending(self) -> tuple[float, ...]:
        """Return the times of the student's calls in order: s_K, ..., s_1."""
        return self.times[:0:-1]


def uniform(steps: int, process: Process, *, start: float = 1.0) -> TimeGrid:
    """Build an even grid, s_k = start k / K (arXiv 2503.06674: t_i = T i / K).

    K = 4 on a table of 1000 entries gives the timesteps 999, 749, 499, 249.

    Args:
        steps: Number of steps K.
        process: Process of the network.
        start: Time s_K at which the trajectory starts, in (0, 1].

    Returns:
        The grid.

    Raises:
        ValueError: See `shifted`.
    """
    return shifted(steps, 1.0, process, start=start)


def shifted(steps: int, shift: float, process: Process, *, start: float = 1.0) -> TimeGrid:
    """Build an even grid and apply a flow shift, s' = shift s / (1 + (shift - 1) s).

    Times of a tabulated process are rounded down to its entries. Shift 2 and K = 4 give the
    timesteps of the released CogVideoX-2B LoRA: 999, 856, 665, 399.

    Args:
        steps: Number of steps K.
        shift: Flow shift, above 0; 1 keeps the grid even.
        process: Process of the network.
        start: Time s_K at which the trajectory starts, in (0, 1].

    Returns:
        The grid.

    Raises:
        ValueError: If an argument is out of range, or two steps fall on one table entry.
    """
    if steps < 1:
        raise ValueError(f"grid.steps={steps} must be at least 1")
    if shift <= 0:
        raise ValueError(f"grid.shift={shift} must be above 0; 1 gives an even grid")
    if not 0 < start <= 1:
        raise ValueError(f"grid.start={start} must be in (0, 1]")
    even = [start * k / steps for k in range(steps + 1)]
    times = [s / (s + (1 - s) / shift) for s in even]  # this form maps 1 exactly to 1
    if isinstance(process, TabulatedVP):
        times = [int(t * process.count + 1e-6) / process.count for t in times]
        if len(set(times)) < len(times):
            raise ValueError(
                f"grid.steps={steps}, grid.shift={shift}, grid.start={start}: two steps fall on the"
                f" same one of {process.count} timesteps: use fewer steps or a shift nearer to 1"
            )
    return TimeGrid(tuple(times))


def resampled(grid: TimeGrid, steps: int, process: Process) -> TimeGrid:
    """Change the number of steps of a grid.

    Times are interpolated linearly in k / K. Times of a tabulated process are rounded down to its
    entries.

    Args:
        grid: Grid to resample.
        steps: New number of steps.
        process: Process of the network.

    Returns:
        A grid with the same start and end.

    Raises:
        ValueError: If two steps fall on one table entry.
    """
    times = []
    for k in range(steps + 1):
        place = k * grid.steps / steps
        below = min(int(place), grid.steps - 1)
        low, high = grid.times[below], grid.times[below + 1]
        times.append(low + (place - below) * (high - low))
    if isinstance(process, TabulatedVP):
        times = [int(t * process.count + 1e-6) / process.count for t in times]
        if len(set(times)) < len(times):
            raise ValueError(
                f"steps={steps}: two steps fall on the same one of {process.count} timesteps: use"
                " fewer steps"
            )
    return TimeGrid(tuple(times))


def explicit(timesteps: list[float], process: Process) -> TimeGrid:
    """Build a grid from timesteps of the network.

    Index i of a table with N entries is the time (i + 1) / N. A timestep of a flow is t times its
    scale.

    Args:
        timesteps: Timesteps in sampling order, e.g. [999, 856, 665, 399].
        process: Process of the network.

    Returns:
        The grid.

    Raises:
        ValueError: If the timesteps do not fall, are out of range, or are not whole numbers for a
            tabulated process.
    """
    if isinstance(process, TabulatedVP):
        times, rule = (
            [(step + 1) / process.count for step in timesteps],
            f"whole numbers from 0 to {process.count - 1}",
        )
        whole = all(step == int(step) for step in timesteps)
    else:
        scale = process.timestep(torch.ones(1)).item()
        times, rule, whole = (
            [step / scale for step in timesteps],
            f"above 0, at most {scale:g}",
            True,
        )
    if (
        not times
        or sorted(set(times), reverse=True) != times
        or not whole
        or times[0] > 1
        or times[-1] <= 0
    ):
        raise ValueError(
            f"grid.timesteps={timesteps}: list timesteps of the network in descending order, each"
            f" once, {rule}"
        )
    return TimeGrid((0.0, *reversed(times)))
