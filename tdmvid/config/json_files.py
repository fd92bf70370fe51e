"""Read JSON files that users write. Every error is one line that names the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .rules import short

BIGGEST = 2**26
"""Largest size of a settings file, in bytes."""


def read_json(path: Path | str, *, unique: bool = False) -> Any:
    """Read a JSON file.

    Args:
        path: Path of the file.
        unique: Refuse objects with duplicate keys, and files above `BIGGEST` bytes.

    Returns:
        The parsed value.

    Raises:
        ValueError: If the file is not valid JSON; the message names the file and, if known, the
            line.
        OSError: If the file cannot be read.
    """
    path = Path(path)
    if unique and path.is_file() and path.stat().st_size > BIGGEST:
        raise ValueError(
            f"{path} is larger than {BIGGEST:,} bytes and cannot be a settings file: choose another"
        )
    try:
        return parse_json(path.read_text(encoding="utf-8-sig"), path, unique=unique)
    except UnicodeDecodeError:
        raise ValueError(f"{path}: not UTF-8: save the file as UTF-8") from None


def read_object(path: Path | str, *, unique: bool = False) -> dict[str, Any]:
    """Read a JSON file that holds an object.

    Args:
        path: Path of the file.
        unique: Refuse duplicate keys; see `read_json`.

    Returns:
        The object.

    Raises:
        ValueError: If the file is not valid JSON, or its top level is not an object.
        OSError: If the file cannot be read.
    """
    data = read_json(path, unique=unique)
    if not isinstance(data, dict):
        raise ValueError(f"{path} must hold a JSON object, not {short(data)}")
    return data


def parse_json(text: str, source: Path | str, *, unique: bool = False) -> Any:
    """Parse JSON text.

    Args:
        text: The JSON text.
        source: Origin of the text, which error messages begin with.
        unique: Refuse objects with duplicate keys.

    Returns:
        The parsed value.

    Raises:
        ValueError: If the text is not valid JSON, is nested too deeply, holds a number that is too
            long, or has a duplicate key with `unique`.
    """
    try:
        return json.loads(text, object_pairs_hook=_unique if unique else None)
    except json.JSONDecodeError as error:
        raise ValueError(f"{source}, line {error.lineno}: not JSON ({error.msg})") from None
    except RecursionError:
        raise ValueError(f"{source}: lists or objects are nested too deeply") from None
    except ValueError as error:  # from `_unique`, or Python's limit on the digits of an integer
        reason = str(error) if str(error).startswith("the key") else "a number is far too long"
        raise ValueError(f"{source}: {reason}") from None


def parse_line(line: str, where: str, *, remedy: str) -> Any:
    """Parse a line of a JSONL file.

    Args:
        line: The line.
        where: File and line, which error messages begin with.
        remedy: End of error messages.

    Returns:
        The parsed value.

    Raises:
        ValueError: If the line is not valid JSON, is nested too deeply, or holds a number that is
            too long.
    """
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        reason = f"is not JSON ({error.msg}, character {error.colno})"
    except RecursionError:
        reason = "is nested too deeply"
    except ValueError:  # Python's limit on the digits of an integer
        reason = "has a number that is far too long"
    raise ValueError(f"{where}: {short(line)} {reason}: {remedy}")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build an object, and raise a ValueError for a duplicate key."""
    made: dict[str, Any] = {}
    for key, value in pairs:
        if key in made:
            raise ValueError(f"the key {short(key)} is given twice: remove one of them")
        made[key] = value
    return made
