"""Time grids as a config asks for them."""

from __future__ import annotations

from ..config import RunConfig
from ..diffusion.grid import TimeGrid, shifted
from ..diffusion.process import Process


def reference_grid(config: RunConfig, process: Process) -> TimeGrid:
    """The times of the teacher's long samples."""
    try:
        return shifted(config.log.teacher_steps, config.log.teacher_shift, process)
    except ValueError as error:
        raise ValueError(
            f"log.teacher_steps={config.log.teacher_steps}: too many for the teacher, or"
            f" log.teacher_shift={config.log.teacher_shift} is no flow shift ({error})"
        ) from None
