"""Checkpoint folders: list them, check that they are complete, and read the student.

A checkpoint is a folder `step_000123` (after 123 iterations) with one subfolder per trained role.
`checkpoint.json` holds size and SHA-256 of every file, computed from memory, and a SHA-256 of its
own content. Therefore a single flipped bit is detected before anything is loaded.
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
from .progress import progress

META = "checkpoint.json"
OWN = "sha256"
"""Key of the checksum of checkpoint.json itself, computed with `BLANK` as its value."""
BLANK = 64 * "0"
READERS = 4
"""Number of files that are read in parallel; hashing is slower than a fast disk."""
_NAME = re.compile(r"step_(\d{6,})")


def step_folder(folder: Path, step: int) -> Path:
    """Return the folder of a checkpoint.

    Args:
        folder: Folder of all checkpoints of a run.
        step: Number of iterations done.

    Returns:
        The path, whether it exists or not.
    """
    return folder / f"step_{step:06d}"


def list_steps(folder: Path) -> list[int]:
    """List the checkpoints of a run that have a `checkpoint.json`.

    Args:
        folder: Folder of all checkpoints of a run.

    Returns:
        Numbers of iterations, in ascending order.
    """
    return [step for step in _named_steps(folder) if (step_folder(folder, step) / META).is_file()]


def latest(folder: Path, *, report: bool = True, part: str = "") -> Path | None:
    """Find the latest complete checkpoint, and skip damaged ones.

    Args:
        folder: Folder of all checkpoints of a run.
        report: Whether to print skipped checkpoints and the reason to stderr.
        part: Subfolder to check; "" checks all files.

    Returns:
        Folder of the checkpoint, or None if there is none.
    """
    for step in reversed(_named_steps(folder)):
        path = step_folder(folder, step)
        damage = find_damage(path, part)
        if not damage:
            return path
        if report:
            print(f"skipping checkpoint {path}: {damage}", file=sys.stderr)
    return None


def whole(path: Path, *, part: str = "") -> Path:
    """Check that a checkpoint is complete.

    Args:
        path: Folder of the checkpoint.
        part: Subfolder to check; "" checks all files.

    Returns:
        The folder.

    Raises:
        ValueError: If it is not a checkpoint, or is damaged.
    """
    if not (path / META).is_file():
        raise ValueError(
            f"{path} is not a checkpoint: choose a folder step_* with {META}, or the newest one"
            " (--resume auto when training, no --checkpoint when exporting)"
        )
    damage = find_damage(path, part)
    if damage:
        raise ValueError(f"{path} is damaged: {damage}; choose an earlier checkpoint")
    return path


def write_meta(path: Path, meta: dict[str, Any]) -> None:
    """Write the `checkpoint.json` of a checkpoint.

    Args:
        path: Folder of the checkpoint.
        meta: Step, fingerprint, and the `checksum` of each file under "files".
    """
    text = json.dumps(meta | {OWN: BLANK}, indent=2) + "\n"
    write_text(path / META, text.replace(BLANK, _digest(text.encode())))


def read_meta(path: Path) -> dict[str, Any]:
    """Read the `checkpoint.json` of a checkpoint.

    Args:
        path: Folder of the checkpoint.

    Returns:
        Step, fingerprint, and checksums of the files.

    Raises:
        ValueError: If the file is damaged or has another format.
    """
    file = path / META
    try:
        text = file.read_bytes()
        meta = json.loads(text)
        kinds = [type(meta[key]) for key in ("step", "fingerprint", "files")]
    except (ValueError, LookupError, TypeError, RecursionError):
        kinds = []
    if kinds != [int, dict, dict] or not _is_own(meta, text):
        raise ValueError(f"{file} is damaged: choose an earlier checkpoint")
    return meta


def checksum(data: bytes | memoryview) -> dict[str, Any]:
    """Compute the checksum of a file's content.

    Args:
        data: The content.

    Returns:
        Size under "bytes", and SHA-256 under "sha256".
    """
    return {"bytes": len(data), "sha256": _digest(data)}


def find_damage(path: Path, part: str = "") -> str:
    """Compare a checkpoint with its checksums.

    Args:
        path: Folder of the checkpoint.
        part: Subfolder to check; "" checks all files.

    Returns:
        The first difference, or "" if the checkpoint is complete.
    """
    if not (path / META).is_file():
        return f"it has no {META}"
    try:
        meta = read_meta(path)
    except (ValueError, OSError):
        return f"{META} is damaged"
    inside = f"{part}/" if part else ""
    files = {name: of for name, of in meta["files"].items() if name.startswith(inside)}
    sizes = (_wrong_size(path, name, of) for name, of in files.items())
    if damage := next(filter(None, sizes), ""):
        return damage
    whole = sum(_size(of) for of in files.values())
    shown = progress(f"reading {path.name}", total=whole, unit="B")
    with ThreadPoolExecutor(READERS) as pool, shown as bar:
        found = pool.map(_wrong_content, [path] * len(files), files, files.values())
        for damage, of in zip(found, files.values(), strict=True):
            if damage:
                return damage
            bar.update(_size(of))
    return ""


def read_student(path: Path, weights: str = "") -> dict[str, Tensor]:
    """Read the trained tensors of the student.

    Args:
        path: Folder of the checkpoint.
        weights: `ema` (moving average) or `raw`; empty uses the average if there is one.

    Returns:
        Parameter name -> tensor [...] in the parameter's full shape.

    Raises:
        ValueError: If `ema` is requested and the checkpoint has no average.
    """
    folder = path / "student"
    parts = sorted(file.parent for file in folder.rglob("weights.safetensors"))
    if weights == "ema" and not all((part / "average.safetensors").is_file() for part in parts):
        raise ValueError(
            f"{path} has no average of the weights, because the run had ema=0: export the raw"
            " weights"
        )
    found: dict[str, Tensor] = {}
    for part in parts:  # one, or one per expert
        averaged = part / "average.safetensors"
        raw = weights == "raw" or not averaged.is_file()
        prefix = "".join(f"{name}." for name in part.relative_to(folder).parts)
        tensors = load_file(part / "weights.safetensors" if raw else averaged)
        found |= {prefix + key: tensor for key, tensor in tensors.items()}
    return found


def _named_steps(folder: Path) -> list[int]:
    """Return the steps of all folders with the name of a checkpoint, in ascending order."""
    if not folder.is_dir():
        return []
    found = [_NAME.fullmatch(path.name) for path in folder.iterdir() if path.is_dir()]
    return sorted(int(match[1]) for match in found if match)


def _digest(data: bytes | memoryview) -> str:
    return hashlib.sha256(data).hexdigest()


def _is_own(meta: dict[str, Any], text: bytes) -> bool:
    """Whether the checksum of checkpoint.json is right; old checkpoints have only file sizes."""
    files = meta["files"].values()
    if all(type(of) is int for of in files) and OWN not in meta:
        return True
    own, sums = str(meta.get(OWN)), {"bytes", "sha256"}
    blank = text.replace(own.encode("utf-8", "replace"), BLANK.encode())
    return own == _digest(blank) and all(isinstance(of, dict) and of.keys() == sums for of in files)


def _size(of: Any) -> int:
    """The bytes of a file, by what checkpoint.json says of it."""
    return int(of if isinstance(of, int) else of["bytes"])


def _wrong_size(path: Path, name: str, of: Any) -> str:
    size = _size(of)
    if not (path / name).is_file():
        return f"{name} is missing"
    here = (path / name).stat().st_size
    return "" if here == size else f"{name} has {here:,} bytes instead of {size:,}"


def _wrong_content(path: Path, name: str, of: Any) -> str:
    if isinstance(of, int):
        return ""
    try:
        with (path / name).open("rb") as file:
            here = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        return f"{name} cannot be read ({error.strerror})"
    return "" if here == of["sha256"] else f"{name} does not match its SHA-256"
