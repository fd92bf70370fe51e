"""A flow student's time grid as a diffusers scheduler, so that a stock pipeline steps exactly as trained.

FlowMatchEulerDiscreteScheduler spaces K sigmas evenly from 1 down to its smallest, 1/1000 shifted, shifts
them (again), and stretches them so that the last is `shift_terminal`. As teachers ship it, without the
stretch, the last of four steps starts at sigma 0.009 and does nothing. Shift and stretch map 1 to 1 and
lines to hyperbolas, so for a shifted grid of K steps there is one pair of them that gives the grid itself.
Any other grid ships as a FlowTrajectoryScheduler, whose config holds the timesteps.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.configuration_utils import register_to_config

from ..diffusion.grid import TimeGrid
from ..diffusion.process import RectifiedFlow

EXACT = 2e-6
"""Largest difference between a scheduler's sigma and the grid's time: a few float32 roundings."""


class FlowTrajectoryScheduler(FlowMatchEulerDiscreteScheduler):
    """Euler's method over a fixed list of timesteps, e.g. [1000, 900, 750, 500].

    `pipe.scheduler = FlowTrajectoryScheduler.from_pretrained(folder)`; sampling with another
    number of steps than the list has is refused.
    """

    _compatibles = ["FlowMatchEulerDiscreteScheduler"]  # what its settings are called that this class does not take

    @register_to_config
    def __init__(self, trajectory: list[float] = (1000.0, 750.0, 500.0, 250.0), num_train_timesteps: int = 1000):
        super().__init__(num_train_timesteps)

    def set_timesteps(self, num_inference_steps: int | None = None, device: str | torch.device | None = None, **_) -> None:
        """The fixed list; ValueError for another number of steps."""
        steps = list(self.config.trajectory)
        if num_inference_steps != len(steps):
            raise ValueError(f"num_inference_steps={num_inference_steps}: this student was trained on {len(steps)} timesteps, {steps}")
        self.num_inference_steps = num_inference_steps
        self.timesteps = torch.tensor(steps, dtype=torch.float32, device=device)
        self.sigmas = torch.cat([self.timesteps / self.config.num_train_timesteps, self.timesteps.new_zeros(1)])
        self._step_index = self._begin_index = None


def flow_scheduler_for(grid: TimeGrid, process: RectifiedFlow) -> FlowMatchEulerDiscreteScheduler:
    """The stock scheduler if a pair of its settings gives the grid, else a FlowTrajectoryScheduler."""
    count, wanted = int(process.scale), torch.tensor([*grid.descending(), 0.0])
    settings = _stock_settings(grid, count)
    if settings is not None:
        stock = FlowMatchEulerDiscreteScheduler(num_train_timesteps=count, **settings)
        stock.set_timesteps(grid.steps)
        if (stock.sigmas - wanted).abs().max() <= EXACT:
            return stock
    return FlowTrajectoryScheduler([process.scale * time for time in grid.descending()], count)


def _stock_settings(grid: TimeGrid, count: int) -> dict | None:
    """shift a and shift_terminal, so that the first, second and last of K sigmas are the grid's; None if no a does it.

    With w = 1 - 1/a, and h the spacing of the K sigmas before the shift, 1 / (1 - sigma_j) is proportional to
    1 / (h j) - w. The ratio F of the last to the first of these, 1 - sigma_1 = F^-1 (1 - sigma_{K-1}), gives w.
    """
    times, least = grid.descending(), 1 / count
    if times[0] != 1:
        return None
    if len(times) == 1:
        return {"shift": 1.0}
    terminal, last = {"shift_terminal": times[-1]}, len(times) - 1
    ratio = (1 - times[-1]) / (1 - times[1])
    if last == 1:
        return {"shift": 1.0} | terminal
    # h itself depends on a: h = (1 - least) / (last (1 + (a - 1) least)), which makes a the root of a quadratic.
    slope = last / (1 - least) * (ratio / last - 1) / (ratio - 1)
    middle = 1 - (1 - least) * slope
    square = middle**2 - 4 * least * slope
    if middle <= 0 or square < 0:
        return None
    return {"shift": 2 / (middle + math.sqrt(square))} | terminal


def load_flow_scheduler(folder: Path) -> FlowMatchEulerDiscreteScheduler:
    """The scheduler that lies beside a LoRA, of whichever of the two classes it is."""
    name = FlowMatchEulerDiscreteScheduler.load_config(folder)["_class_name"]
    return (FlowTrajectoryScheduler if name == FlowTrajectoryScheduler.__name__ else FlowMatchEulerDiscreteScheduler).from_pretrained(folder)
