"""Read the samplers that `shapes_reward.py` compares, and the pairs of them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tdmvid.config.json_files import read_json
from tdmvid.config.paths import home_path
from tdmvid.shapes.evaluate import ScoredSampler

RESERVED = ("truth", "ground truth", "teacher")
"""Names that students cannot have."""


def read_sampler(text: str) -> ScoredSampler:
    """Read an item of --samplers.

    Args:
        text: "teacher", or NAME=FOLDER of a student.

    Returns:
        The sampler.

    Raises:
        ValueError: The text is neither, or the name cannot be used.
    """
    if text == "teacher":
        return ScoredSampler("teacher", 50, 2.0)
    name, _, folder = text.partition("=")
    if not name or not folder:
        raise ValueError(f"--samplers {text!r}: use `teacher`, or NAME=FOLDER of a LoRA")
    if name in RESERVED or "/" in name or ":" in name:
        raise ValueError(f"--samplers {text!r}: use another name, without `/` and `:`")
    return ScoredSampler(name, 4, 1.0, home_path(folder))


def read_samplers(texts: list[str]) -> dict[str, ScoredSampler]:
    """Read --samplers.

    Args:
        texts: Its items.

    Returns:
        Samplers by name.

    Raises:
        ValueError: An item is invalid, a name is given twice, or a folder does not exist.
    """
    found: dict[str, ScoredSampler] = {}
    for text in texts:
        sampler = read_sampler(text)
        if sampler.name in found:
            raise ValueError(f"--samplers {text!r}: the name is given twice: use another one")
        if sampler.student and not sampler.student.is_dir():
            raise ValueError(f"--samplers {text!r}: no such folder: use the LoRA folder of a run")
        found[sampler.name] = sampler
    return found


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
