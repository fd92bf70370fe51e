"""Read the samplers that `shapes_reward.py` compares, and the pairs of them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tdmvid.adapters.bundle import ADAPTER_FILES, read_facts
from tdmvid.adapters.teacher import load_teacher
from tdmvid.backbones.base import Backbone
from tdmvid.cli.shapes import kept, model_of
from tdmvid.config import ModelConfig, from_dict
from tdmvid.config.json_files import read_json
from tdmvid.config.paths import home_path
from tdmvid.config.resources import find_model
from tdmvid.shapes.evaluate import SIZE, ScoredSampler

RESERVED = ("truth", "ground truth", "teacher")
"""Names that students cannot have."""
STEPS = 4
"""Steps of a student that does not state its own."""


def read_sampler(text: str) -> ScoredSampler:
    """Read an item of --samplers.

    Args:
        text: "teacher", or NAME=FOLDER of a student.

    Returns:
        The sampler.

    Raises:
        ValueError: The text is neither, the name cannot be used, or the folder does not exist.
    """
    if text == "teacher":
        return ScoredSampler("teacher", 50, 2.0)
    name, _, folder = text.partition("=")
    if not name or not folder:
        raise ValueError(f"--samplers {text!r}: use `teacher`, or NAME=FOLDER of a LoRA")
    if name in RESERVED or "/" in name or ":" in name:
        raise ValueError(f"--samplers {text!r}: use another name, without `/` and `:`")
    student = home_path(folder)
    if not student.is_dir():
        raise ValueError(f"--samplers {text!r}: no such folder: use the LoRA folder of a run")
    return ScoredSampler(name, read_facts(student).get("steps", STEPS), 1.0, student)


def read_samplers(texts: list[str]) -> dict[str, ScoredSampler]:
    """Read --samplers.

    Args:
        texts: Its items.

    Returns:
        Samplers by name.

    Raises:
        ValueError: An item is invalid, or a name is given twice.
    """
    found: dict[str, ScoredSampler] = {}
    for text in texts:
        sampler = read_sampler(text)
        if sampler.name in found:
            raise ValueError(f"--samplers {text!r}: the name is given twice: use another one")
        found[sampler.name] = sampler
    return found


def load_base(samplers: Iterable[ScoredSampler], given: str | None) -> Backbone:
    """Load the base that all students name, in float32.

    Args:
        samplers: The samplers.
        given: --model. It replaces the base that the students name.

    Returns:
        The base; the embedded teacher if no student names one.

    Raises:
        ValueError: The students name different bases, theirs is not on this machine, or it starts
            from an image.
    """
    first, base, trained = "", {}, None
    for sampler in samplers:
        if sampler.student is None:
            continue
        facts = read_facts(sampler.student)
        own = _base(sampler.student, facts, given), facts.get(ADAPTER_FILES)
        if first and own != (base, trained):
            raise ValueError(
                f"--samplers {sampler.name!r} has another base than {first!r} ({own[0]['path']},"
                f" {base['path']}): compare students of one base, or give a base to use for all"
                " with --model"
            )
        first, (base, trained) = first or sampler.name, own
    base = base or _base(None, {}, given)
    backbone = load_teacher(from_dict(ModelConfig, base, "model"), SIZE, trained=trained)
    if backbone.takes_images:
        raise ValueError(
            f"--samplers: the base {base['path']} starts from an image, which this program does not"
            " give: use students of a text-to-video base"
        )
    return backbone


def _base(student: Path | None, facts: dict, given: str | None) -> dict:
    base = kept(model_of(student, facts, given))
    return base | {"path": find_model(base["path"])}


def check_names(option: str, given: Iterable[str], names: Iterable[str]) -> None:
    """Check that an option names samplers of --samplers.

    Args:
        option: The option.
        given: Names in it.
        names: Names of --samplers.

    Raises:
        ValueError: A name is not among them.
    """
    known = list(names)
    for name in given:
        if name not in known:
            raise ValueError(
                f"{option} {name!r} is not in --samplers: use {', '.join(map(repr, known))}"
            )


def read_pair(text: str, names: Iterable[str]) -> tuple[str, str]:
    """Read an item of --pairs.

    Args:
        text: REWARDED:PLAIN.
        names: Names of --samplers.

    Returns:
        The two names.

    Raises:
        ValueError: It is not two names of --samplers.
    """
    ours, colon, theirs = text.partition(":")
    if not colon:
        raise ValueError(f"--pairs {text!r}: use REWARDED:PLAIN with two names of --samplers")
    check_names("--pairs", (ours, theirs), names)
    return ours, theirs


def strength_of(sampler: ScoredSampler) -> float | None:
    """Read the strength of a student's reward from the run folder of its LoRA.

    Args:
        sampler: A student.

    Returns:
        Strength of the reward; None if the folder is not in a run folder, or the run had no reward,
        several, or one whose strength is in units of its deviation.
    """
    path = (sampler.student or Path()).parent / "config.json"
    rewards = read_json(path).get("rewards", []) if path.is_file() else []
    if len(rewards) != 1 or rewards[0].get("normalise", "none") != "none":
        return None
    return float(rewards[0]["strength"])
