"""Find the newest finished run and the evaluation config for its model family."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ..adapters.bundle import FACTS, STUDENT_FOLDERS
from ..config import ClipSize, VBenchConfig, from_dict, read_settings
from ..config.resources import CONFIGS, EVALUATIONS, find_evaluation

RUNS = Path("runs")
FAMILIES = {
    "CogVideoXPipeline": "vbench_cogvideox2b",
    "WanPipeline": "vbench_wan1.3b",
    "HunyuanVideo15Pipeline": "vbench_hunyuan_video1.5",
    "CogVideoXImageToVideoPipeline": "vbench_i2v_cogvideox5b",
    "WanImageToVideoPipeline": "vbench_i2v_wan2.2_5b",
}
"""Evaluation config of the smallest model of each family, by stock pipeline."""
IMAGES = "images"


@dataclass(frozen=True)
class Student:
    """A student on disk, with its export.json and its run's config."""

    folder: Path
    facts: dict[str, Any]
    config: dict[str, Any]
    """Settings of the run; empty for a student outside a run folder."""

    @property
    def size(self) -> dict[str, Any]:
        """The size it was trained on, as settings of `video`."""
        return dict(self.facts.get("video", {}))

    @property
    def is_video(self) -> bool:
        """Whether it generates videos."""
        return self.size.get("frames", 1) > 1


def read_student(folder: Path) -> Student:
    """Read the facts about a student from its folder. Missing files leave them empty.

    Args:
        folder: Folder of the student.

    Returns:
        The student.
    """
    facts, config = _json(folder / FACTS), _json(folder.parent / "config.json")
    own = folder.name in STUDENT_FOLDERS.values()
    return Student(folder, facts, config if own else {})


def newest_student(program: str, runs: Path = RUNS) -> tuple[Student, int]:
    """Find the student of the newest finished run.

    Args:
        program: "vbench" for runs of video models, "image" for runs of image models.
        runs: Folder that contains the run folders.

    Returns:
        The student, and the number of finished runs of this kind.

    Raises:
        ValueError: No run of this kind is finished.
    """
    kind = "video" if program == "vbench" else "image"
    found = [
        path.parent
        for name in STUDENT_FOLDERS.values()
        for depth in ("*", "*/*")
        for path in runs.glob(f"{depth}/{name}/{FACTS}")
        if path.is_file()
    ]
    students = [student for student in map(read_student, found) if student.facts]
    wanted = [student for student in students if student.is_video == (kind == "video")]
    if not wanted:
        example = "cogvideox2b_4nfe" if kind == "video" else "sd15_4nfe"
        raise ValueError(
            f"{runs}/ contains no finished run of {'a' if kind == 'video' else 'an'} {kind} model:"
            f" train one (`tdmvid train --config {example}`), or give the folder of a student"
            " (--lora FOLDER)"
        )
    return max(wanted, key=_finished), len(wanted)


def evaluation_of(student: Student, program: str) -> str:
    """Return the evaluation config for a student: the one of its run, or the one of its model
    family.

    Args:
        student: Student to score.
        program: "vbench" or "image".

    Returns:
        Name of an evaluation config.

    Raises:
        ValueError: The student's model family is unknown or has no evaluation config.
    """
    own = student.config.get("evaluate") or {}
    if own.get("program") == program and own.get("config"):
        return str(own["config"])
    if program == "image":
        return IMAGES
    ready = [_json(path) for path in sorted(CONFIGS.glob("*.json"))]
    ready = [run for run in ready if (run.get("evaluate") or {}).get("program") == program]
    alike = [run for run in ready if _model(run.get("model")) == _model(student.facts.get("model"))]
    if alike:
        return str(alike[0]["evaluate"]["config"])
    pipeline = student.facts.get("pipeline", "")
    if pipeline in FAMILIES:
        return FAMILIES[pipeline]
    known = ", ".join(sorted(path.stem for path in EVALUATIONS.glob("vbench_*.json")))
    lack = f"there is none for {pipeline}" if pipeline else "it does not state its model family"
    raise ValueError(
        f"{student.folder} names no evaluation config, and {lack}: choose one (--config), e.g."
        f" {known}"
    )


def size_overrides(trained: Mapping[str, Any], evaluation: str) -> list[str]:
    """Return `--set` values that score videos of the size a student was trained on.

    Args:
        trained: Settings of `video` in training.
        evaluation: The VBench config. A file of the user is not overridden.

    Returns:
        Overrides; empty if the sizes are equal.
    """
    if Path(evaluation).is_file():
        return []
    theirs = from_dict(VBenchConfig, read_settings(find_evaluation(evaluation))).video
    return [
        f"video.{field.name}={trained[field.name]}"
        for field in fields(ClipSize)
        if trained.get(field.name, getattr(theirs, field.name)) != getattr(theirs, field.name)
    ]


def image_overrides(student: Student) -> list[str]:
    """Return `--set` values that compare an image student with its teacher as it has learned it.

    Args:
        student: A student that is scored with the built-in config of images.

    Returns:
        Overrides of the size, and of the teacher's guidance, flow shift and negative prompt, as far
        as the student states them.
    """
    learned = student.facts.get("teacher") or {}
    sizes = {
        f"video.{key}": student.size[key] for key in ("height", "width") if key in student.size
    }
    names = {"guidance": "teacher.cfg", "shift": "teacher.shift"}
    stated = {names[key]: learned[key] for key in names if key in learned}
    negative = learned.get("negative_prompt") if learned.get("guidance", 1) != 1 else None
    wanted = sizes | stated | ({"teacher.negative": json.dumps(negative)} if negative else {})
    return [f"{key}={value}" for key, value in wanted.items()]


def _model(settings: object) -> tuple[str, str]:
    """Return the name of a model without its owner or folder, and `model.pipeline`."""
    model = settings if isinstance(settings, dict) else {}
    return Path(str(model.get("path") or "")).name.lower(), str(model.get("pipeline") or "")


def _finished(student: Student) -> float:
    return (student.folder / FACTS).stat().st_mtime


def _json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file; empty if it cannot be read."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
