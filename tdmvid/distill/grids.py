"""Build time grids from the settings of a run."""

from __future__ import annotations

import dataclasses
import math

import torch

from ..config import GridConfig, RunConfig, short
from ..config.ranges import SHIFT
from ..diffusion.grid import TimeGrid, explicit, shifted, uniform
from ..diffusion.process import Process

NEAR = 0.01
"""Largest distance of a grid time below the boundary of two experts.

The margin of draws above that time is twice as wide, so no trained time is left out.
"""

NAMED = 3
"""Largest number of shifts that a message suggests: those nearest to the configured one."""


def build_grid(
    config: GridConfig, process: Process, boundary: float = 0.0, step_set: tuple[int, ...] = ()
) -> TimeGrid:
    """Build the student's grid.

    Args:
        config: Grid settings of the run.
        process: Process of the teacher.
        boundary: Time from which the high-noise expert is called; 0 for one network.
        step_set: Other numbers of steps that are trained. A remedy in the error message must suit
            these grids too.

    Returns:
        The grid.

    Raises:
        ValueError: If the process does not have the times, or they do not suit the boundary.
    """
    grid = _any_grid(config, process)
    if not boundary:
        return grid
    grid = dataclasses.replace(grid, boundary=boundary)
    if not _suits(grid):
        raise ValueError(_misplaced(config, grid, process, step_set))
    return grid


def _any_grid(config: GridConfig, process: Process) -> TimeGrid:
    """Build the grid of a config, regardless of a boundary."""
    if config.kind == "explicit":
        return explicit(list(config.timesteps), process)
    if config.kind == "uniform":
        return uniform(config.steps, process, start=config.start)
    return shifted(config.steps, config.shift, process, start=config.start)


def _suits(grid: TimeGrid) -> bool:
    """Whether both experts have steps and a time is just below their boundary."""
    below = max(t for t in grid.times if t < grid.boundary)
    return len(grid.sides()) == 2 and grid.boundary - below <= NEAR


def _misplaced(
    config: GridConfig, grid: TimeGrid, process: Process, step_set: tuple[int, ...]
) -> str:
    """Return the error message for a grid without a time just below the boundary."""
    times = [f"{t:.4g}" for t in process.timestep(torch.tensor(grid.descending())).tolist()]
    scale = process.timestep(torch.ones(1)).item()
    shifts = _fitting_shifts(config, grid, process, step_set)
    if config.kind == "explicit":
        below = (grid.boundary - NEAR / 10) * scale
        remedy = f"list {below:g}, and timesteps on both sides of it"
    elif min((config.steps, *step_set)) < 2:
        remedy = "use at least 2 steps"
    elif not shifts and step_set:
        remedy = (
            f"no grid.shift does this for every K of objective.step_set={short(list(step_set))}:"
            " choose multiples of one K, e.g. [2, 4]"
        )
    elif not shifts:
        remedy = "no grid.shift does this: use another grid.start"
    else:
        remedy = f"use grid.kind='shifted' and grid.shift={' or '.join(shifts)}"
    name = "timesteps" if config.kind == "explicit" else "shift"
    return (
        f"grid.{name}={short(getattr(config, name))} gives the timesteps {', '.join(times)}. The"
        f" teacher changes experts at {grid.boundary * scale:g}, and the largest timestep below"
        f" must be within {NEAR * scale:g} of it: {remedy}"
    )


def _fitting_shifts(
    config: GridConfig, grid: TimeGrid, process: Process, step_set: tuple[int, ...]
) -> list[str]:
    """Return the shifts for which the grid of every K has a time just below the boundary."""
    edge, fitting = grid.boundary - NEAR / 10, []
    for k in range(1, grid.steps):
        even = config.start * k / grid.steps
        shift = edge * (1 - even) / (even * (1 - edge))
        if not SHIFT.holds(shift):
            continue
        text = f"{shift:.2f}" if shift >= 1 else f"{shift:.3g}"
        others = [
            shifted(steps, float(text), process, start=config.start)
            for steps in (grid.steps, *step_set)
        ]
        if all(_suits(dataclasses.replace(other, boundary=grid.boundary)) for other in others):
            fitting.append(text)
    near = sorted(fitting, key=lambda text: abs(math.log(float(text) / config.shift)))[:NAMED]
    return sorted(near, key=float, reverse=True)


def build_grids(
    config: GridConfig, process: Process, step_set: tuple[int, ...], boundary: float = 0.0
) -> tuple[TimeGrid, ...]:
    """Build all grids that are trained.

    Args:
        config: Grid settings of the run.
        process: Process of the teacher.
        step_set: Numbers of steps to train; empty for the grid's own.
        boundary: Time from which the high-noise expert is called; 0 for one network.

    Returns:
        One grid per number of steps.

    Raises:
        ValueError: If a grid is invalid, or `step_set` does not match the grid settings.
    """
    if not step_set:
        return (build_grid(config, process, boundary),)
    if config.kind == "explicit":
        raise ValueError(
            f"objective.step_set={list(step_set)} needs a grid for each K, but grid.kind='explicit'"
            " lists the timesteps of one grid: use kind 'uniform' or 'shifted'"
        )
    if config.steps not in step_set:
        raise ValueError(
            f"grid.steps={config.steps} is not in objective.step_set={list(step_set)}, and is the"
            " number of steps of samples: choose a number of the set"
        )
    return tuple(
        build_grid(dataclasses.replace(config, steps=k), process, boundary, step_set)
        for k in step_set
    )


def reference_grid(config: RunConfig, process: Process) -> TimeGrid:
    """Build the grid of the teacher's reference samples.

    Args:
        config: Settings of the run: `log.teacher_steps` and `log.teacher_shift`.
        process: Process of the teacher.

    Returns:
        The grid.

    Raises:
        ValueError: If the process does not have the times.
    """
    try:
        return shifted(config.log.teacher_steps, config.log.teacher_shift, process)
    except ValueError as error:
        raise ValueError(
            f"log.teacher_steps={config.log.teacher_steps} is too large for the teacher, or"
            f" log.teacher_shift={config.log.teacher_shift} is not a valid flow shift ({error})"
        ) from None
