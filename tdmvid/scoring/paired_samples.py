"""Sample both sides of a comparison: a student and its teacher, with the same prompts and noise."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path

from ..adapters.bundle import ADAPTER_FILES, read_facts
from ..adapters.teacher import load_teacher
from ..backbones.base import Backbone
from ..config import ImageConfig, ModelConfig, VBenchConfig, from_dict, short
from ..config.json_files import read_object
from ..parallel import launch
from ..sampling.manifest import SETTINGS
from ..sampling.sample import Sampler, sample_videos
from ..sampling.shots import Shot
from ..sampling.student import load_for_sampling, weights_of

NAMES = ("student", "teacher")
PROMPTS = "prompts"
"""Entry of results.json with a digest of the prompts."""
EvaluationConfig = VBenchConfig | ImageConfig


def sample_sides(
    out: Path, shots: list[Shot], config: EvaluationConfig, student: Path, world: launch.World
) -> None:
    """Sample student and teacher into out/student and out/teacher.

    Existing files are kept, so sampling can be interrupted and continued on any number of ranks.

    Args:
        out: Folder to write to.
        shots: Samples to make.
        config: Settings of the evaluation.
        student: Folder of the student.
        world: Processes of the run.
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
    """Check that the samples in a folder belong to this student, teacher and size.

    Args:
        out: Folder of the samples.
        config: Settings of the evaluation.
        student: Folder of the student.

    Raises:
        ValueError: There are no samples, or they were made with other settings.
    """
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
                f"{path.parent} has no {SETTINGS}: sample first (--stage sample), or choose another"
                " --out"
            )
        there = read_object(path)
        there["model"] = there["model"]["path"]
        for key, value in (wanted | both).items():
            if there.get(key) != value:
                raise ValueError(
                    f"{path.parent} contains videos made with {key}={there.get(key)!r}, but this"
                    f" evaluation has {value!r}: use the same value, or another --out"
                )


def sample_metadata(out: Path, shots: Iterable[Shot]) -> dict:
    """Return facts about the samples in a folder.

    Args:
        out: Folder of the samples.
        shots: The samples.

    Returns:
        The student's `weights` (a digest of its folder), the `model` used for both sides, and
        `prompts`, a digest of all texts and first frames.
    """
    settings = read_object(out / NAMES[0] / SETTINGS)
    given = [[shot.prompt, shot.seed, shot.file, shot.image_sha256] for shot in shots]
    digest = hashlib.sha256(json.dumps(given).encode()).hexdigest()[:24]
    return {key: settings[key] for key in ("weights", "model")} | {PROMPTS: digest}


def config_mismatches(config: EvaluationConfig, student: Path) -> tuple[str, ...]:
    """Describe where the evaluation differs from the student's training.

    Args:
        config: Settings of the evaluation.
        student: Folder of the student.

    Returns:
        Sentences to show next to every result.
    """
    trained, size = read_facts(student), asdict(config.video)
    pairs = (
        ("base", trained.get("model", {}).get("path"), config.model.path),
        ("size", _words(trained.get("video")), _words(size)),
    )
    found = tuple(
        f"The student was trained on {what} {own}, and is scored on {asked}."
        for what, own, asked in pairs
        if own and asked and own != asked
    )
    if not (learned := trained.get("teacher")):
        return found
    own = _guidance(
        learned["guidance"],
        learned.get("guidance_2"),
        learned.get("use_dynamic_cfg", False),
        learned["negative_prompt"],
    )
    side = config.teacher
    asked = _guidance(side.cfg, side.cfg_2, side.use_dynamic_cfg, side.negative)
    if own != asked:
        differs = f"The student was trained with {own}, and its teacher is sampled with {asked}."
        found = (*found, differs)
    if learned.get("shift", side.shift) != side.shift:
        shifts = map(_shift, (learned["shift"], side.shift))
        differs = "In training the teacher was sampled with {}, and here with {}.".format(*shifts)
        found = (*found, differs)
    return found


def _shift(shift: float) -> str:
    """Describe the flow shift of a teacher's times."""
    return f"flow shift {shift:g}" if shift else "its scheduler's flow shift"


def _guidance(cfg: float, cfg_2: float | None, dynamic: bool, negative: str) -> str:
    """Describe the guidance of a teacher."""
    if cfg == 1 and cfg_2 in (None, 1):
        return "no guidance"
    second = "" if cfg_2 in (None, cfg) else f" and {cfg_2:g} by expert"
    away = f" and the negative prompt {short(negative)}" if negative else ""
    return f"guidance {cfg:g}{second}{', dynamic,' * dynamic}{away}"


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
        if not model.adapters:  # the student was trained on top of the base's LoRAs
            facts = read_facts(student)
            stated = {"adapters": facts.get("model", {}).get("adapters", ())}
            model = replace(model, adapters=from_dict(ModelConfig, stated, "model").adapters)
            trained = facts.get(ADAPTER_FILES)
        return load_teacher(model, config.video, device=world.device, trained=trained)
    if config.model != ModelConfig():
        raise ValueError(
            "model.path is empty, so the student's own base is used and other settings of `model`"
            " have no effect: set model.path too, or remove them"
        )
    size = config.video
    return load_for_sampling(
        world,
        student=student,
        size=f"{size.frames}x{size.height}x{size.width}",
        fps=size.fps,
        setting="model.path",
    )
