"""Checkpoint folders on disk: which there are, which are whole, and the student in one.

A checkpoint is a folder `step_000123` (123 iterations done) with one folder per trained role.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

META = "checkpoint.json"
_NAME = re.compile(r"step_(\d{6,})")


def step_folder(folder: Path, step: int) -> Path:
    """Return where the checkpoint after `step` iterations lies."""
    return folder / f"step_{step:06d}"


def list_steps(folder: Path) -> list[int]:
    """Return after how many iterations there are complete checkpoints, oldest first."""
    if not folder.is_dir():
        return []
    found = [_NAME.fullmatch(path.name) for path in folder.iterdir() if (path / META).is_file()]
    return sorted(int(match[1]) for match in found if match)


def latest(folder: Path, *, report: bool = True) -> Path | None:
    """Return the newest whole checkpoint; damaged ones are passed over, and reported on stderr."""
    for step in reversed(list_steps(folder)):
        path = step_folder(folder, step)
        damage = _damage(path)
        if not damage:
            return path
        if report:
            print(f"{path} is passed over: {damage}", file=sys.stderr)
    return None


def whole(path: Path) -> Path:
    """Return the path itself.

    Raises:
        ValueError: it is no checkpoint, or a damaged one.
    """
    if not (path / META).is_file():
        raise ValueError(
            f"{path} is no checkpoint: give a folder step_* that holds {META}, or --resume auto"
        )
    damage = _damage(path)
    if damage:
        raise ValueError(f"{path} is damaged: {damage}; resume an earlier one, or --resume auto")
    return path


def read_meta(path: Path) -> dict:
    """Return what a checkpoint says of itself: step, fingerprint, and sizes of its files."""
    return json.loads((path / META).read_text())


def read_student(path: Path, weights: str = "") -> dict[str, Tensor]:
    """Return the student's whole trained tensors by parameter name.

    Args:
        path: a checkpoint.
        weights: "ema" or "raw"; empty takes the average if the checkpoint has one.

    Raises:
        ValueError: there is no average.
    """
    averaged = path / "student" / "average.safetensors"
    if weights == "ema" and not averaged.is_file():
        raise ValueError(f"{path} holds no average, the run had ema=0: export the raw weights")
    raw = weights == "raw" or not averaged.is_file()
    return load_file(path / "student" / "weights.safetensors" if raw else averaged)


def file_sizes(folder: Path) -> dict[str, int]:
    """Return the size in bytes of every file below the folder, by relative name."""
    return {
        str(path.relative_to(folder)): path.stat().st_size
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def _damage(folder: Path) -> str:
    """What a checkpoint lacks of what was written, or ""."""
    for name, size in read_meta(folder).get("files", {}).items():
        here = (folder / name).stat().st_size if (folder / name).is_file() else 0
        if here != size:
            return f"{name} has {here:,} bytes, {size:,} were written"
    return ""
