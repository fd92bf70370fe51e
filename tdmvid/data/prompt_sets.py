"""Prompts that lie in no file: public sets on a hub, and generated captions."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from .captions import parse_name

_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


class Reader(Protocol):
    """What reads prompts: yields (place, value), "row 3" for messages and the unchecked value."""

    def __call__(self, path: Path, column: str) -> Iterator[tuple[str, Any]]: ...


@dataclass(frozen=True)
class HubSet:
    """Which part of a data set is meant."""

    subset: str = ""
    split: str = "train"
    revision: str | None = None


def find_set(path: Path, part: HubSet, kinds: tuple[str, ...]) -> Reader | None:
    """Return what reads a generated list or a set on the hub; None if `path` names neither.

    Args:
        path: What a user gave: "videos:5000", or "owner/name".
        part: Which part of a set on the hub.
        kinds: Endings of files, which are no hub ids.
    """
    if path.is_file():
        return None
    if parse_name(str(path)):
        return read_generated
    if _HUB_ID.fullmatch(str(path)) and path.suffix.lower() not in kinds:
        return partial(read_hub, part=part)
    return None


def read_generated(path: Path, column: str) -> Iterator[tuple[str, Any]]:
    """Yield the captions of a generated list."""
    found = parse_name(str(path))
    assert found, f"{path} is no generated list"
    for number, caption in enumerate(found.captions(), start=1):
        yield f"caption {number}", caption


def read_hub(path: Path, column: str, *, part: HubSet) -> Iterator[tuple[str, Any]]:
    """Stream the column of a data set by its hub id; nothing is downloaded ahead.

    Raises:
        ValueError: If it cannot be read, or has no such column.
    """
    import datasets  # slow to import, and of use here only

    try:
        table = datasets.load_dataset(
            str(path),
            part.subset or None,
            split=part.split,
            revision=part.revision,
            streaming=True,
        )
        columns = list(table.column_names or next(iter(table), {}))
        rows = iter(table.select_columns([column])) if column in columns else iter(())
    except Exception as error:  # the hub, the network and the readers raise whatever they please
        raise _unreadable(path, part, error) from error
    if column not in columns:
        shown = ", ".join(columns[:10]) or "none"
        raise ValueError(
            f"{path}: no column {column!r}; the columns are {shown}: set prompts.column (--column)"
            " to one of them"
        )
    number = 0
    while True:
        try:
            row = next(rows, None)
        except Exception as error:
            raise _unreadable(path, part, error) from error
        if row is None:
            return
        number += 1
        yield f"row {number}", row[column]


def _unreadable(path: Path, part: HubSet, error: Exception) -> ValueError:
    reason = " ".join(str(error).split())
    reason = reason if len(reason) <= 200 else reason[:197] + "..."
    named = f"prompts.split={part.split!r}" + (
        f", prompts.subset={part.subset!r}" if part.subset else ""
    )
    return ValueError(
        f"{path} is no file here and could not be read as a data set of the hub"
        f" ({type(error).__name__}: {reason}): check the name, {named} and the network; without"
        f" one, write the prompts to a file elsewhere (tdmvid prompts {path} --out prompts.jsonl)"
    )
