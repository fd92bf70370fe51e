"""What the rectified-flow families share: networks that predict the velocity eps - x0, told 1000 t.

t is continuous: nothing is rounded to an entry of a table, neither in training nor at sampling.
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
"""Largest difference between a scheduler's sigma and the grid's time: a few roundings of float32.
"""


class FlowSpec(FamilySpec):
    """A family whose scheduler is one of a rectified flow."""

    def read_process(self, folder: Path) -> RectifiedFlow:
        config = FlowMatchEulerDiscreteScheduler.load_config(folder, subfolder="scheduler")
        name, predicted = config["_class_name"], config.get("prediction_type")
        if not name.startswith("FlowMatch") and predicted != "flow_prediction":
            raise ValueError(
                f"{folder}: {name} is for networks that predict {predicted!r}: this family needs a"
                " scheduler of a flow"
            )
        return RectifiedFlow(float(config.get("num_train_timesteps", 1000)))


class FlowBackbone(PipelineBackbone):
    """A teacher of a rectified flow, whichever flow scheduler its folder names."""

    process: RectifiedFlow

    def clean(self, x_t: Tensor, out: Tensor, t: Tensor) -> Tensor:
        return self.process.x0_from_velocity(x_t, out, t)

    def student_scheduler(self, grid: TimeGrid) -> SchedulerMixin:
        return flow_scheduler_for(grid, self.process)


def flow_scheduler_for(grid: TimeGrid, process: RectifiedFlow) -> SchedulerMixin:
    """Return diffusers' Euler scheduler if two of its settings give exactly this grid in K steps.

    Else return a TrajectoryScheduler.

    As teachers ship it, its K sigmas go from 1 down to nearly 0 (0.009 for K = 4 and shift 3), so
    that the last of few steps does nothing: a student's grid needs settings of its own.
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
    """Return `shift` and `shift_terminal` that put the first, second and last sigma on the grid.

    None if there are none.

    The scheduler spaces K values l_j = 1 - h j evenly, the last being its smallest sigma, shifts
    each to a l / (1 + (a - 1) l), and stretches the distances from 1 so that the last becomes
    shift_terminal: 1 - sigma_j = c h j / (a - (a - 1) h j) with any c. A shifted grid is of this
    form too, with other a and h, so three of its points fix it: with w = 1 - 1 / a and F = (1 -
    sigma_{K-1}) / (1 - sigma_1), h w = (F / (K - 1) - 1) / (F - 1).
    """
    times, last = grid.descending(), grid.steps - 1
    if times[0] != 1:
        return None
    if last < 2:
        return {"shift": 1.0} | ({"shift_terminal": times[-1]} if last else {})
    ratio = (1 - times[-1]) / (1 - times[1])
    # h = (1 - least) / ((K - 1) (1 + (a - 1) least)), as the smallest sigma is shifted as well: a
    # solves a quadratic.
    least, slope = 1 / count, (last - ratio) / (1 - ratio)
    middle = 1 - slope
    square = middle**2 - 4 * slope * least / (1 - least)
    if middle <= 0 or square < 0:
        return None
    return {"shift": 2 / (middle + math.sqrt(square)), "shift_terminal": times[-1]}
