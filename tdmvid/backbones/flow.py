"""Shared code of the rectified-flow families (arXiv 2209.03003): networks that predict eps - x0.

The network's timestep is 1000 t. t is continuous: it is not rounded to entries of a table, neither
in training nor in sampling.

Shapes: B batch, K steps.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SchedulerMixin
from torch import Tensor

from ..diffusion.grid import TimeGrid
from ..diffusion.process import RectifiedFlow
from .pipeline import PipelineBackbone
from .scheduler import TrajectoryScheduler
from .spec import FamilySpec

EXACT = 2e-6
"""Allowed difference of a scheduler's sigma from the grid's time: a few float32 roundings."""


class FlowSpec(FamilySpec):
    """Describes a family with a rectified-flow scheduler."""

    def read_process(self, folder: Path) -> RectifiedFlow:
        """Return the process, with the scheduler's number of training timesteps.

        Raises:
            ValueError: The scheduler is not for a flow.
        """
        config = FlowMatchEulerDiscreteScheduler.load_config(folder, subfolder="scheduler")
        name, predicted = config["_class_name"], config.get("prediction_type")
        if not name.startswith("FlowMatch") and predicted != "flow_prediction":
            raise ValueError(
                f"{folder}: {name} is for networks that predict {predicted!r}; this family needs a"
                " flow-matching scheduler (FlowMatch..., or prediction_type='flow_prediction')"
            )
        return RectifiedFlow(float(config.get("num_train_timesteps", 1000)))


class FlowBackbone(PipelineBackbone):
    """Backbone of a rectified-flow teacher, whichever flow scheduler its folder names."""

    process: RectifiedFlow

    def clean(self, x_t: Tensor, out: Tensor, t: Tensor) -> Tensor:
        """Return x0 = x_t - t v, [B, ...] float32."""
        return self.process.x0_from_velocity(x_t, out, t)

    def student_scheduler(self, grid: TimeGrid) -> SchedulerMixin:
        """Return diffusers' Euler scheduler or a TrajectoryScheduler over `grid`."""
        even = self.stock_class.even_sigmas
        return (even_scheduler_for if even else flow_scheduler_for)(grid, self.process)


def flow_scheduler_for(grid: TimeGrid, process: RectifiedFlow) -> SchedulerMixin:
    """Return a scheduler that steps over exactly this grid.

    Settings shipped with teachers do not fit a student: the K sigmas go from 1 down to nearly 0
    (0.009 for K = 4 and shift 3), so that the last of few steps does nothing.

    Args:
        grid: The student's times.
        process: Gives the timestep of t = 1.

    Returns:
        diffusers' Euler scheduler if two of its settings reproduce the grid in K steps, else a
        TrajectoryScheduler.
    """
    count, wanted = int(process.scale), torch.tensor([*grid.descending(), 0.0])
    settings = euler_settings(grid, count)
    if settings is not None:
        stock = FlowMatchEulerDiscreteScheduler(num_train_timesteps=count, **settings)
        stock.set_timesteps(grid.steps)
        if (stock.sigmas - wanted).abs().max() <= EXACT:
            return stock
    return TrajectoryScheduler.of(grid, process, "flow_prediction", count)


def euler_settings(grid: TimeGrid, count: int) -> dict[str, float] | None:
    """Compute `shift` and `shift_terminal` of diffusers' Euler scheduler for a grid.

    The scheduler spaces K values l_j = 1 - h j evenly; the last is its smallest sigma. It shifts
    each to a l / (1 + (a - 1) l) and stretches the distances from 1 so that the last becomes
    shift_terminal: 1 - sigma_j = c h j / (a - (a - 1) h j) with any c. A shifted grid has this form
    too, with other a and h, so three of its points determine it: with w = 1 - 1 / a and F = (1 -
    sigma_{K-1}) / (1 - sigma_1), h w = (F / (K - 1) - 1) / (F - 1).

    Args:
        grid: The student's times.
        count: Number of training timesteps.

    Returns:
        Settings that put the first, second and last sigma on the grid; None if there are none.
    """
    times, last = grid.descending(), grid.steps - 1
    if times[0] != 1:
        return None
    if last < 2:
        return {"shift": 1.0} | ({"shift_terminal": times[-1]} if last else {})
    ratio = (1 - times[-1]) / (1 - times[1])
    # The smallest sigma is shifted too: h = (1 - least) / ((K - 1) (1 + (a - 1) least)), so a
    # solves a quadratic equation.
    least, slope = 1 / count, (last - ratio) / (1 - ratio)
    middle = 1 - slope
    square = middle**2 - 4 * slope * least / (1 - least)
    if middle <= 0 or square < 0:
        return None
    return {"shift": 2 / (middle + math.sqrt(square)), "shift_terminal": times[-1]}


def even_scheduler_for(grid: TimeGrid, process: RectifiedFlow) -> SchedulerMixin:
    """Return a scheduler for a pipeline that passes evenly spaced sigmas, K / K to 1 / K.

    Args:
        grid: The student's times.
        process: Gives the timestep of t = 1.

    Returns:
        diffusers' Euler scheduler with the grid's shift, or a TrajectoryScheduler for a grid that
        no shift of the even sigmas gives.
    """
    shift, count = shift_of(grid), int(process.scale)
    if shift is None:
        return TrajectoryScheduler.of(grid, process, "flow_prediction", count)
    return FlowMatchEulerDiscreteScheduler(count, shift=shift)


def shift_of(grid: TimeGrid) -> float | None:
    """Return the flow shift of a grid that starts at 1, None for any other grid."""
    times = grid.descending()
    if times[0] != 1:
        return None
    if grid.steps == 1:
        return 1.0
    even, last = 1 / grid.steps, times[-1]
    shift = last * (1 - even) / (even * (1 - last))
    made = [shift * k / (grid.steps + (shift - 1) * k) for k in range(grid.steps, 0, -1)]
    exact = all(abs(one - other) <= EXACT for one, other in zip(made, times, strict=True))
    return shift if exact else None
