"""Time grids as a config asks for them."""

from __future__ import annotations

import dataclasses

from ..config import GridConfig, RunConfig
from ..diffusion.grid import TimeGrid, explicit, shifted, uniform
from ..diffusion.process import Process


def build_grid(config: GridConfig, process: Process) -> TimeGrid:
    """Build the student's grid.

    Raises:
        ValueError: For times that the process does not have.
    """
    if config.kind == "explicit":
        return explicit(list(config.timesteps), process)
    if config.kind == "uniform":
        return uniform(config.steps, process, start=config.start)
    return shifted(config.steps, config.shift, process, start=config.start)


def build_grids(
    config: GridConfig, process: Process, step_set: tuple[int, ...]
) -> tuple[TimeGrid, ...]:
    """Build the grids that are trained: the student's, or one for each K of the set.

    Raises:
        ValueError: If the set does not go with the grid.
    """
    if not step_set:
        return (build_grid(config, process),)
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
    return tuple(build_grid(dataclasses.replace(config, steps=k), process) for k in step_set)


def reference_grid(config: RunConfig, process: Process) -> TimeGrid:
    """Build the times of the teacher's long samples."""
    try:
        return shifted(config.log.teacher_steps, config.log.teacher_shift, process)
    except ValueError as error:
        raise ValueError(
            f"log.teacher_steps={config.log.teacher_steps}: too many for the teacher, or"
            f" log.teacher_shift={config.log.teacher_shift} is no flow shift ({error})"
        ) from None
