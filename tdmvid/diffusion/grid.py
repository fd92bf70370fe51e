"""The K times at which the student is called, 1 >= s_K > ... > s_1 > s_0 = 0."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .process import Process, TabulatedVP


@dataclass(frozen=True)
class TimeGrid:
    """`times[k]` is s_k; `times[0]` is 0. Step k goes from s_k to s_{k-1}."""

    times: tuple[float, ...]
    boundary: float = 0.0
    """The time from which on calls are another network's; 0 where there is one network."""

    def __post_init__(self) -> None:
        ascending = all(a < b for a, b in zip(self.times, self.times[1:]))
        if len(self.times) < 2 or self.times[0] != 0 or self.times[-1] > 1 or not ascending:
            raise ValueError(
                f"a time grid rises from 0 to at most 1 in at least one step, not {self.times}"
            )

    @property
    def steps(self) -> int:
        """K, the number of student calls."""
        return len(self.times) - 1

    def tensor(self, device: torch.device | str = "cpu") -> Tensor:
        """s_0 ... s_K as float32 [K + 1]."""
        return torch.tensor(self.times).to(device, non_blocking=True)

    def sides(self) -> list[list[int]]:
        """Return the steps k of each network's calls, in rising order of k."""
        low = [k for k in range(1, self.steps + 1) if self.times[k] < self.boundary]
        return [side for side in (low, list(range(len(low) + 1, self.steps + 1))) if side]

    def floors(self, device: torch.device | str = "cpu") -> Tensor:
        """Return the lowest time of each step's network, [K + 1]: the boundary above it, else 0."""
        floors = [self.boundary if t >= self.boundary else 0.0 for t in self.times]
        return torch.tensor(floors).to(device, non_blocking=True)

    def descending(self) -> tuple[float, ...]:
        """s_K, ..., s_1: the times of the student's calls in order."""
        return self.times[:0:-1]


def uniform(steps: int, process: Process, *, start: float = 1.0) -> TimeGrid:
    """s_k = start k / K (arXiv 2503.06674: t_i = T i / K); timesteps 999, 749, 499, 249 for K = 4
    of 1000.
    """
    return shifted(steps, 1.0, process, start=start)


def shifted(steps: int, shift: float, process: Process, *, start: float = 1.0) -> TimeGrid:
    """Flow shift, s' = shift s / (1 + (shift - 1) s), on the uniform grid; a table's entries are
    rounded down.

    shift 2 and K = 4 give the timesteps of the released CogVideoX-2B LoRA, 999, 856, 665, 399.
    """
    if steps < 1:
        raise ValueError(f"grid.steps={steps}: a student needs at least one step")
    if shift <= 0:
        raise ValueError(f"grid.shift={shift}: a flow shift is positive; 1 leaves the grid uniform")
    if not 0 < start <= 1:
        raise ValueError(f"grid.start={start}: the trajectory starts at a time in (0, 1]")
    even = [start * k / steps for k in range(steps + 1)]
    times = [s / (s + (1 - s) / shift) for s in even]  # in this form 1 stays exactly 1
    if isinstance(process, TabulatedVP):
        times = [int(t * process.count + 1e-6) / process.count for t in times]
        if len(set(times)) < len(times):
            raise ValueError(
                f"grid.steps={steps}, grid.shift={shift}, grid.start={start}: two steps fall on one"
                f" of the table's {process.count} entries; take fewer steps or a shift nearer to 1"
            )
    return TimeGrid(tuple(times))


def resampled(grid: TimeGrid, steps: int, process: Process) -> TimeGrid:
    """Return another number of steps over the same trajectory: times between those of the grid are
    interpolated in k / K; a table's entries are rounded down.

    Raises:
        ValueError: For more steps than the trajectory has table entries.
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
                f"steps={steps}: two of them fall on one of the table's {process.count} entries;"
                " take fewer"
            )
    return TimeGrid(tuple(times))


def explicit(timesteps: list[float], process: Process) -> TimeGrid:
    """From network timesteps in sampling order, e.g. [999, 856, 665, 399].

    A table's index i is the time (i + 1) / N; a flow's timestep is t times its scale.
    """
    if isinstance(process, TabulatedVP):
        times, rule = (
            [(step + 1) / process.count for step in timesteps],
            f"whole numbers within 0..{process.count - 1}",
        )
        whole = all(step == int(step) for step in timesteps)
    else:
        scale = process.timestep(torch.ones(1)).item()
        times, rule, whole = [step / scale for step in timesteps], f"above 0, up to {scale:g}", True
    if (
        not times
        or sorted(set(times), reverse=True) != times
        or not whole
        or times[0] > 1
        or times[-1] <= 0
    ):
        raise ValueError(
            f"grid.timesteps={timesteps}: list network timesteps in falling order, each once,"
            f" {rule}"
        )
    return TimeGrid((0.0, *reversed(times)))
