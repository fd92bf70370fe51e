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


def build_grid(
    config: GridConfig, process: Process, boundary: float = 0.0, step_set: tuple[int, ...] = ()
) -> TimeGrid:
    """Build the student's grid.

    Args:
        config: The run's.
        process: The teacher's.
        boundary: The time from which on its high-noise expert is called, of a teacher of two.
        step_set: The objective's, whose other grids a remedy has to suit as well.

    Raises:
        ValueError: For times that the process does not have, or that do not suit the boundary.
    """
    grid = _any_grid(config, process)
    if not boundary:
        return grid
    grid = dataclasses.replace(grid, boundary=boundary)
    if not _suits(grid):
        raise ValueError(_misplaced(config, grid, process, step_set))
    return grid


def _any_grid(config: GridConfig, process: Process) -> TimeGrid:
    """The grid of a config, whatever the boundary is."""
    if config.kind == "explicit":
        return explicit(list(config.timesteps), process)
    if config.kind == "uniform":
        return uniform(config.steps, process, start=config.start)
    return shifted(config.steps, config.shift, process, start=config.start)


def _suits(grid: TimeGrid) -> bool:
    """Whether both experts have steps, and a time lies just below their boundary."""
    below = max(t for t in grid.times if t < grid.boundary)
    return len(grid.sides()) == 2 and grid.boundary - below <= NEAR


def _misplaced(
    config: GridConfig, grid: TimeGrid, process: Process, step_set: tuple[int, ...]
) -> str:
    """Say that no time lies just below the boundary, and which shifts would put one there."""
    times = [f"{t:.4g}" for t in process.timestep(torch.tensor(grid.descending())).tolist()]
    scale = process.timestep(torch.ones(1)).item()
    shifts = _fitting_shifts(config, grid, process, step_set)
    if config.kind == "explicit":
        below = (grid.boundary - NEAR / 10) * scale
        remedy = f"list one of {below:g}, and others on both sides"
    elif min((config.steps, *step_set)) < 2:
        remedy = "use at least 2 steps"
    elif not shifts and step_set:
        remedy = (
            f"no grid.shift does that for every K of objective.step_set={short(list(step_set))}:"
            " choose multiples of one K, e.g. [2, 4]"
        )
    elif not shifts:
        remedy = "no grid.shift does that: use another grid.start"
    else:
        remedy = f"use grid.kind='shifted' and grid.shift={' or '.join(shifts)}"
    name = "timesteps" if config.kind == "explicit" else "shift"
    return (
        f"grid.{name}={short(getattr(config, name))} gives the times {', '.join(times)}: the"
        f" teacher's two experts meet at {grid.boundary * scale:g}, and the largest time below it"
        f" must lie within {NEAR * scale:g} of it: {remedy}"
    )


def _fitting_shifts(
    config: GridConfig, grid: TimeGrid, process: Process, step_set: tuple[int, ...]
) -> list[str]:
    """The shifts that put a time just below the boundary in the grid of every K."""
    edge, fitting = grid.boundary - NEAR / 10, []
    for k in range(1, grid.steps):
        even = config.start * k / grid.steps
        shift = edge * (1 - even) / (even * (1 - edge))
        text = f"{shift:.2f}" if shift >= 1 else f"{shift:.3g}"
        others = [
            shifted(steps, float(text), process, start=config.start)
            for steps in (grid.steps, *step_set)
        ]
        if all(_suits(dataclasses.replace(other, boundary=grid.boundary)) for other in others):
            fitting.append(text)
    return fitting


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
        build_grid(dataclasses.replace(config, steps=k), process, boundary, step_set)
        for k in step_set
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
