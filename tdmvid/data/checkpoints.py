"""Checkpoint folders on disk: which there are, which are whole, and the student in one.

A checkpoint is a folder `step_000123` (123 iterations done) with one folder per trained role.
`checkpoint.json` holds size and SHA-256 of every file as it was in memory, and a SHA-256 of its
own content: one flipped bit anywhere is found before anything is loaded.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from .files import write_text

META = "checkpoint.json"
OWN = "sha256"
"""The key of checkpoint.json's checksum of its own text, in which that is blank."""
BLANK = 64 * "0"
READERS = 4
"""Files that are read at a time; hashing takes longer than a fast disk."""
_NAME = re.compile(r"step_(\d{6,})")


def step_folder(folder: Path, step: int) -> Path:
    """Return where the checkpoint after `step` iterations lies."""
    return folder / f"step_{step:06d}"


def list_steps(folder: Path) -> list[int]:
    """Return after how many iterations there are complete checkpoints, oldest first."""
    return [step for step in _named_steps(folder) if (step_folder(folder, step) / META).is_file()]


def latest(folder: Path, *, report: bool = True, part: str = "") -> Path | None:
    """Return the newest whole checkpoint; others are passed over, and reported on stderr.

    Args:
        folder: of a run's checkpoints.
        report: whether to name what is passed over, and why.
        part: a folder of the checkpoint; only its files need to be whole.
    """
    for step in reversed(_named_steps(folder)):
        path = step_folder(folder, step)
        damage = find_damage(path, part)
        if not damage:
            return path
        if report:
            print(f"{path} is passed over: {damage}", file=sys.stderr)
    return None


def whole(path: Path, *, part: str = "") -> Path:
    """Return the path itself.

    Args:
        path: a checkpoint.
        part: a folder of it; only its files need to be whole.

    Raises:
        ValueError: it is no checkpoint, or a damaged one.
    """
    if not (path / META).is_file():
        raise ValueError(
            f"{path} is no checkpoint: give a folder step_* that holds {META}, or --resume auto"
        )
    damage = find_damage(path, part)
    if damage:
        raise ValueError(f"{path} is damaged: {damage}; resume an earlier one, or --resume auto")
    return path


def write_meta(path: Path, meta: dict[str, Any]) -> None:
    """Write what a checkpoint says of itself; step, fingerprint and `checksum`s of its files."""
    text = json.dumps(meta | {OWN: BLANK}, indent=2) + "\n"
    write_text(path / META, text.replace(BLANK, _digest(text.encode())))


def read_meta(path: Path) -> dict[str, Any]:
    """Return what a checkpoint says of itself: step, fingerprint, and checksums of its files.

    Raises:
        ValueError: it is damaged, or no checkpoint's.
    """
    file = path / META
    try:
        text = file.read_bytes()
        meta = json.loads(text)
        kinds = [type(meta[key]) for key in ("step", "fingerprint", "files")]
    except (ValueError, LookupError, TypeError, RecursionError):
        kinds = []
    if kinds != [int, dict, dict] or not _is_own(meta, text):
        raise ValueError(f"{file} is damaged: resume an earlier checkpoint, or --resume auto")
    return meta


def checksum(data: bytes | memoryview) -> dict[str, Any]:
    """Return the size in bytes and the SHA-256 of what is written to a file."""
    return {"bytes": len(data), "sha256": _digest(data)}


def find_damage(path: Path, part: str = "") -> str:
    """Return the first difference between a checkpoint and what was written, or "".

    Args:
        path: a checkpoint.
        part: a folder of it; only its files are read.
    """
    if not (path / META).is_file():
        return f"it has no {META}"
    try:
        meta = read_meta(path)
    except (ValueError, OSError):
        return f"{META} does not say what was written"
    inside = f"{part}/" if part else ""
    files = {name: of for name, of in meta["files"].items() if name.startswith(inside)}
    sizes = (_wrong_size(path, name, of) for name, of in files.items())
    if damage := next(filter(None, sizes), ""):
        return damage
    with ThreadPoolExecutor(READERS) as pool:
        found = pool.map(_wrong_content, [path] * len(files), files, files.values())
        return next(filter(None, found), "")


def read_student(path: Path, weights: str = "") -> dict[str, Tensor]:
    """Return the student's whole trained tensors by parameter name.

    Args:
        path: a checkpoint.
        weights: "ema" or "raw"; empty takes the average if the checkpoint has one.

    Raises:
        ValueError: there is no average.
    """
    folder = path / "student"
    parts = sorted(file.parent for file in folder.rglob("weights.safetensors"))
    if weights == "ema" and not all((part / "average.safetensors").is_file() for part in parts):
        raise ValueError(f"{path} holds no average, the run had ema=0: export the raw weights")
    found: dict[str, Tensor] = {}
    for part in parts:  # one, or one for each of two experts
        averaged = part / "average.safetensors"
        raw = weights == "raw" or not averaged.is_file()
        prefix = "".join(f"{name}." for name in part.relative_to(folder).parts)
        tensors = load_file(part / "weights.safetensors" if raw else averaged)
        found |= {prefix + key: tensor for key, tensor in tensors.items()}
    return found


def _named_steps(folder: Path) -> list[int]:
    """The steps of all folders with a checkpoint's name, oldest first."""
    if not folder.is_dir():
        return []
    found = [_NAME.fullmatch(path.name) for path in folder.iterdir() if path.is_dir()]
    return sorted(int(match[1]) for match in found if match)


def _digest(data: bytes | memoryview) -> str:
    return hashlib.sha256(data).hexdigest()


def _is_own(meta: dict[str, Any], text: bytes) -> bool:
    """Whether it is what was written; before there were checksums, a file had only its size."""
    files = meta["files"].values()
    if all(type(of) is int for of in files) and OWN not in meta:
        return True
    own, sums = str(meta.get(OWN)), {"bytes", "sha256"}
    blank = text.replace(own.encode("utf-8", "replace"), BLANK.encode())
    return own == _digest(blank) and all(isinstance(of, dict) and of.keys() == sums for of in files)


def _wrong_size(path: Path, name: str, of: Any) -> str:
    size = of if isinstance(of, int) else of["bytes"]
    if not (path / name).is_file():
        return f"{name} is missing"
    here = (path / name).stat().st_size
    return "" if here == size else f"{name} has {here:,} bytes, {size:,} were written"


def _wrong_content(path: Path, name: str, of: Any) -> str:
    if isinstance(of, int):
        return ""
    try:
        with (path / name).open("rb") as file:
            here = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        return f"{name} cannot be read ({error.strerror})"
    return "" if here == of["sha256"] else f"{name} has other content than was written (SHA-256)"
