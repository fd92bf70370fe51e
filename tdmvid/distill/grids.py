"""Time grids as a config asks for them."""

from __future__ import annotations

import dataclasses

import torch

from ..config import GridConfig, RunConfig, short
from ..diffusion.grid import TimeGrid, explicit, shifted, uniform
from ..diffusion.process import Process

NEAR = 0.01
"""How far below the boundary of two experts a grid's time may lie: the margin of the draws above it
is twice as wide, so no time that is trained is left out.
"""


def build_grid(config: GridConfig, process: Process, boundary: float = 0.0) -> TimeGrid:
    """Build the student's grid.

    Args:
        config: The run's.
        process: The teacher's.
        boundary: The time from which on its high-noise expert is called, of a teacher of two.

    Raises:
        ValueError: For times that the process does not have, or that do not suit the boundary.
    """
    if config.kind == "explicit":
        grid = explicit(list(config.timesteps), process)
    elif config.kind == "uniform":
        grid = uniform(config.steps, process, start=config.start)
    else:
        grid = shifted(config.steps, config.shift, process, start=config.start)
    if not boundary:
        return grid
    grid = dataclasses.replace(grid, boundary=boundary)
    below = max(t for t in grid.times if t < boundary)
    if len(grid.sides()) < 2 or boundary - below > NEAR:
        raise ValueError(_misplaced(config, grid, process))
    return grid


def _misplaced(config: GridConfig, grid: TimeGrid, process: Process) -> str:
    """Say that no time lies just below the boundary, and which shifts would put one there."""
    times = [f"{t:.4g}" for t in process.timestep(torch.tensor(grid.descending())).tolist()]
    edge, scale = grid.boundary - NEAR / 10, process.timestep(torch.ones(1)).item()
    shifts = [edge * (grid.steps - k) / (k * (1 - edge)) for k in range(1, grid.steps)]
    if config.kind == "explicit":
        remedy = f"list one of {edge * scale:g}, and others on both sides"
    elif not shifts:
        remedy = "use at least 2 steps"
    else:
        remedy = f"use grid.kind='shifted' and grid.shift={' or '.join(f'{a:.2f}' for a in shifts)}"
    name = "timesteps" if config.kind == "explicit" else "shift"
    return (
        f"grid.{name}={short(getattr(config, name))} gives the times {', '.join(times)}: the"
        f" teacher's two experts meet at {grid.boundary * scale:g}, and the largest time below it"
        f" must lie within {NEAR * scale:g} of it: {remedy}"
    )


def build_grids(
    config: GridConfig, process: Process, step_set: tuple[int, ...], boundary: float = 0.0
) -> tuple[TimeGrid, ...]:
    """Build the grids that are trained: the student's, or one for each K of the set.

    Args:
        config: The run's.
        process: The teacher's.
        step_set: The objective's.
        boundary: As of `build_grid`.

    Raises:
        ValueError: If the set does not go with the grid.
    """
    if not step_set:
        return (build_grid(config, process, boundary),)
    if config.kind == "explicit":
        raise ValueError(
            f"objective.step_set={list(step_set)} needs a grid for each K, and grid.kind='explicit'"
            " has the timesteps of one: use kind 'uniform' or 'shifted'"
        )
    if config.steps not in step_set:
        raise ValueError(
            f"grid.steps={config.steps} is not in objective.step_set={list(step_set)}: samples use"
            " it, so choose a number of the set"
        )
    return tuple(
        build_grid(dataclasses.replace(config, steps=k), process, boundary) for k in step_set
    )


def reference_grid(config: RunConfig, process: Process) -> TimeGrid:
    """Build the times of the teacher's long samples."""
    try:
        return shifted(config.log.teacher_steps, config.log.teacher_shift, process)
    except ValueError as error:
        raise ValueError(
            f"log.teacher_steps={config.log.teacher_steps}: too many for the teacher, or"
            f" log.teacher_shift={config.log.teacher_shift} is no flow shift ({error})"
        ) from None
