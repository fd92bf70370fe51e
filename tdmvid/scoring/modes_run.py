"""Sample a teacher and several students with the same prompts and noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..adapters.bundle import ADAPTER_FILES, FACTS, read_facts
from ..config import ModelConfig, from_dict
from ..config.resources import find_model
from ..config.rules import shown
from ..parallel import launch
from ..sampling.sample import CACHE, Sampler, sample_videos
from ..sampling.shots import Shot
from ..sampling.side_by_side import teacher_of
from ..sampling.student import load_for_sampling

OF_THE_BASE = ("revision", "variant", "pipeline", "dtype", "guidance", "tiling")
"""Settings of the model that change samples, in addition to its path and LoRAs."""


@dataclass(frozen=True)
class SharedShots:
    """What to sample from the teacher and from every student."""

    shots: list[Shot]
    steps: int | None = None
    """Steps of the teacher; None for the stock pipeline's default."""
    cfg: float | None = None
    """Guidance scale of the teacher; None for that of the first student's training."""
    batch: int = 8
    cache: Path = CACHE
    """Folder of cached text embeddings."""


def is_student(folder: Path) -> bool:
    """Return whether a folder is an exported student, not a folder of samples.

    Args:
        folder: The folder.

    Returns:
        True if it has an export.json.
    """
    return (folder / FACTS).is_file()


def sample_students(
    students: Sequence[Path],
    out: Path,
    wanted: SharedShots,
    base: Mapping[str, Any] | None = None,
) -> list[Path]:
    """Sample the teacher and each student.

    Args:
        students: Exported students of the same base and size.
        out: Folder for one folder of samples each. Existing samples are kept.
        wanted: What to sample.
        base: Arguments of `load_for_sampling`, instead of what the first student states.

    Returns:
        The folders of samples, the teacher's first.

    Raises:
        ValueError: The students have different bases or sizes.
    """
    check_comparable(students)
    world = launch.start_alone()
    backbone = load_for_sampling(world, student=students[0], **(base or {}))
    teacher = teacher_of(backbone, students[0], steps=wanted.steps, cfg=wanted.cfg)
    samplers = {out / "teacher": teacher} | {
        out / f"student_{number}": Sampler(folder) for number, folder in enumerate(students, 1)
    }
    for folder, sampler in samplers.items():
        sample_videos(
            folder,
            wanted.shots,
            backbone=backbone,
            sampler=sampler,
            world=world,
            batch=wanted.batch,
            cache=wanted.cache,
        )
    return list(samplers)


def check_comparable(students: Sequence[Path]) -> None:
    """Check that students were trained on the same base with the same LoRAs, and for the same size.

    Args:
        students: Exported students.

    Raises:
        ValueError: Two of them differ. The message has the first difference.
    """
    first, *others = students
    ours = _sampled_from(first)
    for folder in others:
        theirs = _sampled_from(folder)
        for name, value in ours.items():
            if theirs[name] != value:
                raise ValueError(
                    f"{folder} has {name}={shown(theirs[name])}, but {first} has {shown(value)}:"
                    " choose students of one base and size, or sample each with `tdmvid sample` and"
                    " compare these folders"
                )


def _sampled_from(student: Path) -> dict[str, Any]:
    """Return what determines the samples of a student beside its own weights, by setting."""
    facts = read_facts(student)
    model = from_dict(ModelConfig, facts.get("model", {}), "model")
    path, size = Path(find_model(model.path)), facts.get("video", {})
    places = [(one.path, one.path_2) for one in model.adapters]
    return {
        "model.path": str(path.resolve()) if path.is_dir() else model.path,
        **{f"model.{name}": getattr(model, name) for name in OF_THE_BASE},
        "model.adapters.scale": [(one.scale, one.second_scale) for one in model.adapters],
        ADAPTER_FILES: facts.get(ADAPTER_FILES, places),  # digests: files may have moved
        **{f"video.{name}": size.get(name) for name in ("frames", "height", "width")},
    }
