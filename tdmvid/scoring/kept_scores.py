"""Keep the scores of a metric as soon as they are computed, so that an interrupted evaluation goes
on after the last one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from ..config.json_files import read_object
from ..data.files import write_json
from ..data.saved_work import note_saved_work
from .image_metrics.base import ImageSet
from .preflight import Needed

FOLDER = "kept_scores"
"""Folder in the output folder of an image evaluation."""
_CODE = Path(__file__).parent / "image_metrics"


def keep(path: Path, key: str, compute: Callable[[], dict[str, float]]) -> dict[str, float]:
    """Return scores from a file, or compute them and write the file.

    Args:
        path: The file.
        key: Digest of everything that determines the scores. A file with another key is replaced.
        compute: Computes the scores.

    Returns:
        The scores.
    """
    if path.is_file():
        kept = read_object(path)
        if kept.get("key") == key:
            scores: dict[str, float] = kept["scores"]
            return scores
    found = compute()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {"key": key, "scores": found})
    note_saved_work()
    return found


def key_of(
    metrics: Mapping[str, Iterable[Needed]], images: ImageSet, contents: Iterable[str], *more: Any
) -> str:
    """Return a digest of what determines the scores of an image set.

    Args:
        metrics: Names of the metrics, and the files that each needs.
        images: The images; their prompts, size and weights count.
        contents: Digest of each image.
        more: Other JSON values that count.

    Returns:
        SHA-256 as hexadecimal digits.
    """
    weights = [
        stamp(images.cache / need.path)
        for needs in metrics.values()
        for need in needs
        if not need.package
    ]
    code = [path.read_text(encoding="utf-8") for path in sorted(_CODE.glob("*.py"))]
    parts = [list(metrics), list(images.prompts), images.side, weights, list(contents), code, more]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def stamp(path: Path) -> list[Any]:
    """Return name, size and time of change of a file, or of the files in a folder."""
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    facts = [(str(one.relative_to(path.parent)), one.stat()) for one in files if one.is_file()]
    return [[name, fact.st_size, fact.st_mtime_ns] for name, fact in facts]
