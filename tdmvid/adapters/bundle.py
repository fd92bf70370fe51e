"""Layout of exported students on disk: folder names and the contents of export.json."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import short
from ..config.json_files import read_object

if TYPE_CHECKING:
    from ..diffusion.grid import TimeGrid

FACTS = "export.json"
"""File in a bundle that describes the student."""
ADAPTER_FILES = "adapter_files"
"""Entry of export.json with the digests of the user's LoRAs that the student needs beside it."""
TEXT_PARTS = "text_encoders"
"""Entry of export.json with the text encoders that the LoRA file changes."""
SET = "set"
"""Entry of export.json with the folder names of all students that one run conditioned on K."""
FLOAT32_PARTS = "float32_parts"
"""Entry of export.json with the pipeline's components that are loaded in float32 in any case."""
STUDENT_FOLDERS = {"lora": "lora", "full": "student"}
"""Folder in a run where the student is written, by `training`."""
VARIANTS = "variants"
"""Entry of export.json with the variant of the base's weight files: `default`, and by component."""
ABSENT_PARTS = "absent_parts"
"""Entry of export.json with the pipeline's components that the base lacked in training."""
CLOSE = 1e-3
"""Relative difference of two timesteps or states that counts as rounding."""
RESTORE = "restore the exported files (download them again), or export the student again"


def student_folder(run: Path, training: str) -> Path:
    """Return the folder inside a run's folder that holds its student.

    Args:
        run: The run's folder.
        training: "lora" or "full".
    """
    return run / STUDENT_FOLDERS[training]


def folders_of_set(out: Path, grids: Sequence[TimeGrid], own: TimeGrid) -> list[Path]:
    """Return the folder of each grid's student: `out` for `own`, `out_2steps` and so on for others.

    Args:
        out: Folder of the student with the grid `own`.
        grids: One per number of steps.
        own: The run's own grid.
    """
    return [
        out if grid == own else out.with_name(f"{out.name}_{grid.steps}steps") for grid in grids
    ]


def find_conditions(folder: Path) -> dict[int, Path]:
    """Return the folders of all students that the same run trained, by number of steps K.

    A run with `objective.step_set` writes one student for each K into neighbouring folders.

    Args:
        folder: Folder of any of these students.
    """
    names, here = read_facts(folder).get(SET, []), Path(folder).resolve()
    others = [name for name in map(str, names) if name and Path(name).name == name != here.name]
    students = [folder, *(here.with_name(name) for name in others)]
    found = [(read_facts(path).get("steps"), path) for path in students if path.is_dir()]
    return dict(sorted((steps, path) for steps, path in found if steps))


def find_condition(folder: Path, steps: int) -> Path:
    """Return the student that the same run conditioned on another number of steps K.

    Args:
        folder: Folder of any student of the run.
        steps: The K that the student was conditioned on in training.

    Raises:
        ValueError: No neighbouring student was trained for this K.
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
    """Read export.json of a student (steps, timesteps, model, video, ...).

    Args:
        folder: The student's folder.

    Returns:
        The contents; empty for a LoRA from elsewhere.

    Raises:
        ValueError: There is no such folder, or it is a run's folder instead of a student's.
    """
    if not Path(folder).is_dir():
        raise ValueError(
            f"{folder} is not a folder: use the lora/ or student/ folder of a finished run, or an"
            " exported student"
        )
    path = Path(folder) / FACTS
    if not path.is_file():
        for name in STUDENT_FOLDERS.values():
            if (Path(folder) / name / FACTS).is_file():
                raise ValueError(
                    f"{folder} is a run's folder: use its student, {Path(folder) / name}"
                )
    return read_object(path) if path.is_file() else {}


def require_facts(folder: Path, instead: Mapping[str, object]) -> None:
    """Check that a student has its export.json, or that options give what it would state.

    Args:
        folder: The student's folder.
        instead: Options that replace export.json, with their values, e.g. {"--size": None}. Empty
            if none do.

    Raises:
        ValueError: It has none, and an option lacks a value. The message has all remedies.
    """
    read_facts(folder)  # raises an error if it is not a student
    files = [FACTS, *([] if _is_network(folder) else ["scheduler_config.json"])]
    lacking = [name for name in files if not (Path(folder) / name).is_file()]
    replaceable = lacking == [FACTS] and instead and not _is_network(folder)
    if FACTS not in lacking or (replaceable and None not in instead.values()):
        return
    options = ", ".join(instead)
    raise ValueError(
        f"{folder} has no {' and no '.join(lacking)}: copy {'them' if lacking[1:] else 'it'} too,"
        " or write the student again with `tdmvid export --run RUN`"
        + (f", or give {' and '.join(options.rsplit(', ', 1))}" if replaceable else "")
    )


def _is_network(folder: Path) -> bool:
    """Return whether a student is a whole network, whose times only export.json states."""
    return any(Path(folder).glob("diffusion_pytorch_model*"))


def check_scheduler(scheduler: Any, folder: Path, *, even_sigmas: bool = False) -> None:
    """Check that the scheduler of a student samples as in training.

    Its timesteps, and the states that it passes through, must be those in export.json. If the model
    card lists timesteps, they must be the same.

    Args:
        scheduler: A diffusers scheduler, loaded from `folder`.
        folder: The student's folder.
        even_sigmas: See `StockPipeline.even_sigmas`.

    Raises:
        ValueError: One of them differs.
    """
    from ..backbones.scheduler import set_steps, states_of  # torch: commands load it late

    facts, file = read_facts(folder), Path(folder) / "scheduler_config.json"
    trained = facts.get("timesteps")
    if not trained:
        return
    if facts.get("steps", len(trained)) != len(trained):
        raise ValueError(
            f"{Path(folder) / FACTS} states steps={short(facts['steps'])}, but lists"
            f" {len(trained)} timesteps: {RESTORE}"
        )
    set_steps(scheduler, len(trained), even_sigmas=even_sigmas)
    _compare_times(file, "samples at", [float(time) for time in scheduler.timesteps], trained)
    kind = facts.get("scheduler", {})
    if kind and type(scheduler).__name__ != kind["name"]:
        raise ValueError(
            f"{file} is a {type(scheduler).__name__}, but {FACTS} says {kind['name']}: {RESTORE}"
        )
    stated = kind.get("states")
    if stated and not _near(states_of(scheduler, len(trained), even_sigmas=even_sigmas), stated):
        raise ValueError(
            f"{file} has the trained timesteps, but other noise levels or another prediction type"
            f" than {FACTS} describes: {RESTORE}"
        )
    check_card(folder)


def check_card(folder: Path) -> None:
    """Check that a model card lists the timesteps of export.json, if it lists any.

    Args:
        folder: The student's folder.

    Raises:
        ValueError: It lists others.
    """
    card, trained = Path(folder) / "README.md", read_facts(folder).get("timesteps")
    text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    listed = re.search(r"^\| timesteps \| \[([-+.,e\d ]*)\]", text, re.MULTILINE)
    if listed and trained:
        found = [float(time) for time in listed[1].replace(",", " ").split()]
        _compare_times(card, "lists", found, trained)


def check_grid(timesteps: Sequence[float], place: Path) -> None:
    """Check that a student is exported with the timesteps of its own export.json, if it has one.

    Args:
        timesteps: Timesteps to export it with.
        place: The student's folder, or its file. export.json beside a file counts if it lists it.

    Raises:
        ValueError: export.json has others.
    """
    folder = place if place.is_dir() else place.parent
    beside = folder / FACTS
    facts = read_facts(folder) if place.is_dir() or beside.is_file() else {}
    own = place.is_dir() or place.name in facts.get("files", ())
    trained = facts.get("timesteps") if own else None
    if trained and not _near(timesteps, trained):
        raise ValueError(
            f"timesteps={_listed(timesteps)}: {beside} says that this student was"
            f" trained at {_listed(trained)}: use these"
        )


def _compare_times(file: Path, verb: str, found: Sequence[float], trained: Sequence[float]) -> None:
    if not _near(found, trained):
        raise ValueError(
            f"{file} {verb} timesteps={_listed(found)}, but {FACTS} says that the student was"
            f" trained at {_listed(trained)}: {RESTORE}"
        )


def _near(found: Sequence[float], expected: Sequence[float]) -> bool:
    """Return whether numbers are equal up to rounding."""
    size = max(map(abs, expected))
    return len(found) == len(expected) and all(
        abs(one - other) <= CLOSE * size for one, other in zip(found, expected, strict=True)
    )


def _listed(times: Sequence[float]) -> str:
    return short(", ".join(f"{time:g}" for time in times))
