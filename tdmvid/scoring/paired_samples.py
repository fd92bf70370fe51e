"""The two sides of every comparison: a student and its teacher, sampled from the same prompts and
the same noise.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

from ..adapters.bundle import ADAPTER_FILES, read_facts
from ..adapters.teacher import load_teacher
from ..backbones.base import Backbone
from ..config import ImageConfig, ModelConfig, VBenchConfig, from_dict
from ..config.json_files import read_object
from ..parallel import launch
from ..sampling.manifest import SETTINGS
from ..sampling.sample import Sampler, sample_videos
from ..sampling.shots import Shot
from ..sampling.student import load_for_sampling, weights_of

NAMES = ("student", "teacher")
EvaluationConfig = VBenchConfig | ImageConfig


def sample_sides(
    out: Path, shots: list[Shot], config: EvaluationConfig, student: Path, world: launch.World
) -> None:
    """Sample out/student and out/teacher; each file is made once, however often and on however many
    ranks this runs.
    """
    backbone = _backbone(config, student, world)
    teacher = Sampler(None, **asdict(config.teacher))
    for name, sampler in zip(NAMES, (Sampler(student), teacher), strict=True):
        sample_videos(
            out / name,
            shots,
            backbone=backbone,
            sampler=sampler,
            world=world,
            batch=config.batch,
            cache=Path(config.embeddings),
        )


def check_sides(out: Path, config: EvaluationConfig, student: Path) -> None:
    """Raise ValueError if the videos in `out` are of another student, teacher or size."""
    teacher = {key: value or None for key, value in asdict(config.teacher).items()}
    teacher |= {"cfg": config.teacher.cfg, "weights": None}
    both: dict = {"video": asdict(config.video)}
    if config.model.path:
        both["model"] = config.model.path
    own: dict = {"weights": weights_of(student)}
    for name, wanted in zip(NAMES, (own, teacher), strict=True):
        path = out / name / SETTINGS
        if not path.is_file():
            raise ValueError(
                f"{path.parent} has no {SETTINGS}: sample first (--stage sample), or give another"
                " --out"
            )
        there = read_object(path)
        there["model"] = there["model"]["path"]
        for key, value in (wanted | both).items():
            if there.get(key) != value:
                raise ValueError(
                    f"{path.parent} holds videos of {key}={there.get(key)!r}, these have {value!r}:"
                    " use the same, or another --out"
                )


def sample_metadata(out: Path) -> dict:
    """Return whose samples lie in `out`: the student's `weights` (a digest of its folder) and the
    `model` that both sides were computed with.
    """
    settings = read_object(out / NAMES[0] / SETTINGS)
    return {key: settings[key] for key in ("weights", "model")}


def config_mismatches(config: EvaluationConfig, student: Path) -> tuple[str, ...]:
    """Return sentences on what the config sets otherwise than the student's training; they belong
    beside every figure.
    """
    trained, size = read_facts(student), asdict(config.video)
    pairs = (
        ("base", trained.get("model", {}).get("path"), config.model.path),
        ("size", _words(trained.get("video")), _words(size)),
    )
    return tuple(
        f"The student was trained on {what} {own}, and is scored on {asked}."
        for what, own, asked in pairs
        if own and asked and own != asked
    )


def _words(size: dict | None) -> str:
    return (
        ""
        if not size
        else "{frames} x {height} x {width}".format(**size)
        + (f" at {size['fps']} fps" if size["frames"] > 1 else "")
    )


def _backbone(config: EvaluationConfig, student: Path, world: launch.World) -> Backbone:
    for line in config_mismatches(config, student) if world.primary else ():
        print(line, flush=True)
    if config.model.path:
        model, trained = config.model, None
        if not model.adapters:  # whatever names the base anew, the student has them beneath it
            facts = read_facts(student)
            stated = {"adapters": facts.get("model", {}).get("adapters", ())}
            model = replace(model, adapters=from_dict(ModelConfig, stated, "model").adapters)
            trained = facts.get(ADAPTER_FILES)
        return load_teacher(model, config.video, device=world.device, trained=trained)
    if config.model != ModelConfig():
        raise ValueError(
            "model.path is empty, so the student names its base, and other settings of `model`"
            " would do nothing: give the path too, or leave them out"
        )
    size = config.video
    return load_for_sampling(
        world, student=student, size=f"{size.frames}x{size.height}x{size.width}", fps=size.fps
    )
