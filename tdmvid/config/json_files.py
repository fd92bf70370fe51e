"""JSON as people write it: what is wrong with it is said in one line that names the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .rules import short

BIGGEST = 2**26
"""Bytes of a file of settings."""


def read_json(path: Path | str, *, unique: bool = False) -> Any:
    """Read a JSON file.

    Args:
        path: The file.
        unique: Refuse an object that has a key twice.

    Raises:
        ValueError: With the file, and the line where it is known, for what is not JSON.
        OSError: For a file that cannot be read.
    """
    path = Path(path)
    if unique and path.is_file() and path.stat().st_size > BIGGEST:
        raise ValueError(f"{path} has more than {BIGGEST:,} bytes: it is no file of settings")
    try:
        return parse_json(path.read_text(encoding="utf-8-sig"), path, unique=unique)
    except UnicodeDecodeError:
        raise ValueError(f"{path}: not UTF-8: save the file as UTF-8") from None


def read_object(path: Path | str, *, unique: bool = False) -> dict[str, Any]:
    """Read a JSON file that holds an object; see `read_json`.

    Raises:
        ValueError: For anything else in it.
    """
    data = read_json(path, unique=unique)
    if not isinstance(data, dict):
        raise ValueError(f"{path} must hold a JSON object, not {short(data)}")
    return data


def parse_json(text: str, source: Path | str, *, unique: bool = False) -> Any:
    """Parse JSON; `source` is what a message names as its origin.

    Raises:
        ValueError: For what is not JSON, is nested too deeply, or (`unique`) has a key twice.
    """
    try:
        return json.loads(text, object_pairs_hook=_unique if unique else None)
    except json.JSONDecodeError as error:
        raise ValueError(f"{source}, line {error.lineno}: not JSON ({error.msg})") from None
    except RecursionError:
        raise ValueError(f"{source}: lists or objects are nested too deeply") from None
    except ValueError as error:  # of `_unique`, or of a number with thousands of digits
        reason = str(error) if str(error).startswith("the key") else "a number is far too long"
        raise ValueError(f"{source}: {reason}") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object; ValueError for a key that comes twice."""
    made: dict[str, Any] = {}
    for key, value in pairs:
        if key in made:
            raise ValueError(f"the key {short(key)} is given twice: leave one of them out")
        made[key] = value
    return made
