"""The two sides of every comparison: a student and its teacher, sampled from the same prompts and the same noise."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from ..backbones.base import Backbone, ClipSize, ModelConfig, load_backbone
from ..parallel import launch
from ..sampling import Sampler, Shot, load_for_sampling, sample_videos

NAMES = ("student", "teacher")


class TeacherSteps(Protocol):
    """How the teacher samples."""

    steps: int
    cfg: float


class SidesConfig(Protocol):
    """What sampling needs of a run's settings."""

    model: ModelConfig
    video: ClipSize
    teacher: TeacherSteps
    batch: int
    embeddings: str


def sample_sides(out: Path, shots: list[Shot], config: SidesConfig, student: Path, world: launch.World) -> None:
    """out/student and out/teacher, each file made once, however often and on however many ranks this runs."""
    backbone = _backbone(config, student, world)
    for name, sampler in zip(NAMES, (Sampler(student), Sampler(None, config.teacher.steps, config.teacher.cfg))):
        sample_videos(out / name, shots, backbone=backbone, sampler=sampler, world=world, batch=config.batch, cache=Path(config.embeddings))


def _backbone(config: SidesConfig, student: Path, world: launch.World) -> Backbone:
    if config.model.path:
        return load_backbone(config.model, config.video, device=world.device)
    size = config.video
    return load_for_sampling(world, student=student, size=f"{size.frames}x{size.height}x{size.width}", fps=size.fps)
