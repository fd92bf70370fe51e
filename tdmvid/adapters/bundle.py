"""Bundles of students on disk: what they are called, and what their export.json says."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import short
from ..config.json_files import read_object

if TYPE_CHECKING:
    from ..diffusion.grid import TimeGrid

FACTS = "export.json"
ADAPTER_FILES = "adapter_files"
"""What it calls the digests of the LoRAs that a student is loaded beside."""
STUDENT_FOLDERS = {"lora": "lora", "full": "student"}
"""Where a run writes its student, by what it trains."""
CLOSE = 1e-3
"""Difference of two timesteps that is rounding, as a share of the first one."""


def student_folder(run: Path, training: str) -> Path:
    """Return the folder in a run's own that holds its student; training: "lora" or "full"."""
    return run / STUDENT_FOLDERS[training]


def folders_of_set(out: Path, grids: Sequence[TimeGrid], own: TimeGrid) -> list[Path]:
    """Return a folder for the student of each grid: `out` for `own`, `out`_2steps for another."""
    return [
        out if grid == own else out.with_name(f"{out.name}_{grid.steps}steps") for grid in grids
    ]


def find_conditions(folder: Path) -> dict[int, Path]:
    """Return the students of the run that `folder` is of, by the number of steps K they were told.

    A run with `objective.step_set` writes one student for each K into neighbouring folders.
    """
    stem = re.sub(r"_\d+steps$", "", folder.name)
    own = re.compile(re.escape(stem) + r"(_\d+steps)?")
    neighbours = [path for path in sorted(folder.parent.iterdir()) if own.fullmatch(path.name)]
    found = [(read_facts(path).get("steps"), path) for path in neighbours if path.is_dir()]
    return dict(sorted((steps, path) for steps, path in found if steps))


def find_condition(folder: Path, steps: int) -> Path:
    """Return the student of the run of `folder` that was told `steps` in training.

    Raises:
        ValueError: No student beside `folder` was trained for this number.
    """
    found = find_conditions(folder)
    if steps not in found:
        trained = ", ".join(map(str, found)) or "none"
        raise ValueError(
            f"condition_steps={steps}: no student beside {folder} was trained for {steps} steps;"
            f" choose one of: {trained}"
        )
    return found[steps]


def read_facts(folder: Path) -> dict[str, Any]:
    """Return what export.json says of a student (steps, timesteps, model, video, ...).

    It is empty for a LoRA from elsewhere.

    Raises:
        ValueError: there is no such folder, or it is a run's.
    """
    if not Path(folder).is_dir():
        raise ValueError(
            f"{folder} is no folder: give the lora/ or student/ folder of a finished run, or an"
            " exported one"
        )
    path = Path(folder) / FACTS
    if not path.is_file():
        for name in STUDENT_FOLDERS.values():
            if (Path(folder) / name / FACTS).is_file():
                raise ValueError(
                    f"{folder} is a run's folder: give its student, {Path(folder) / name}"
                )
    return read_object(path) if path.is_file() else {}


def check_times(scheduler: Any, folder: Path) -> None:
    """Check that the scheduler beside a student steps over the times that it was trained for.

    Raises:
        ValueError: It steps over others.
    """
    trained = read_facts(folder).get("timesteps")
    if not trained:
        return
    scheduler.set_timesteps(len(trained))
    found = [float(time) for time in scheduler.timesteps]
    near = len(found) == len(trained) and all(
        abs(one - other) <= CLOSE * max(trained) for one, other in zip(found, trained, strict=True)
    )
    if not near:
        ours, theirs = (
            short(", ".join(f"{time:g}" for time in times)) for times in (trained, found)
        )
        raise ValueError(
            f"{Path(folder) / 'scheduler_config.json'} samples at timesteps={theirs}, and the"
            f" student was trained at {ours}: put the exported file back, or export it again"
            " (`tdmvid export`)"
        )
