"""Sample a teacher and several students with the same prompts and noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..adapters.bundle import FACTS, read_facts
from ..parallel import launch
from ..sampling.sample import Sampler, sample_videos
from ..sampling.shots import plan_shots
from ..sampling.student import load_for_sampling


@dataclass(frozen=True)
class SeedsOfPrompts:
    """What to sample from the teacher and from every student."""

    prompts: Sequence[str]
    seeds: Sequence[int]
    steps: int | None = None
    """Steps of the teacher; None for the stock pipeline's default."""
    cfg: float | None = None
    """Guidance scale of the teacher; None for the stock pipeline's default."""
    batch: int = 8


def is_student(folder: Path) -> bool:
    """Return whether a folder is an exported student, not a folder of samples.

    Args:
        folder: The folder.

    Returns:
        True if it has an export.json.
    """
    return (folder / FACTS).is_file()


def sample_students(students: Sequence[Path], out: Path, wanted: SeedsOfPrompts) -> list[Path]:
    """Sample the teacher and each student.

    Args:
        students: Exported students of the same base.
        out: Folder for one folder of samples each. Existing samples are kept.
        wanted: What to sample.

    Returns:
        The folders of samples, the teacher's first.

    Raises:
        ValueError: The students have different bases.
    """
    bases = {folder: read_facts(folder).get("model", {}).get("path") for folder in students}
    if len(set(bases.values())) > 1:
        told = ", ".join(f"{folder}: {base}" for folder, base in bases.items())
        raise ValueError(
            f"students of different bases cannot be compared ({told}): choose one base"
        )
    world = launch.start("none")
    backbone = load_for_sampling(world, student=students[0])
    shots = plan_shots(wanted.prompts, wanted.seeds, frames=backbone.size.frames)
    samplers = {out / "teacher": Sampler(steps=wanted.steps, cfg=wanted.cfg)}
    samplers |= {
        out / f"student_{number}": Sampler(folder) for number, folder in enumerate(students, 1)
    }
    for folder, sampler in samplers.items():
        sample_videos(
            folder, shots, backbone=backbone, sampler=sampler, world=world, batch=wanted.batch
        )
    return list(samplers)
