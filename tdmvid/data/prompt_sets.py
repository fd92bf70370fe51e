"""Read prompts that are not in a local file: data sets on the hub, and generated captions."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from ..config.data import is_hub_id
from .captions import parse_name
from .files import short


class Reader(Protocol):
    """Function that yields prompts as (place, value).

    The place, e.g. "row 3", is used in messages. The value is unchecked.
    """

    def __call__(self, path: Path, column: str) -> Iterator[tuple[str, Any]]: ...


@dataclass(frozen=True)
class HubSet:
    """Part of a data set on the hub."""

    subset: str = ""
    """Subset; empty for the default."""
    split: str = "train"
    """Split."""
    revision: str | None = None
    """Branch, tag or commit; None for the default branch."""


def find_set(path: Path, part: HubSet) -> Reader | None:
    """Choose the reader of a generated list or of a data set on the hub.

    Args:
        path: Name from a user, e.g. "videos:5000" or "owner/name".
        part: Part of a data set on the hub.

    Returns:
        The reader, or None if the name is neither.
    """
    if path.is_file():
        return None
    if parse_name(str(path)):
        return read_generated
    if is_hub_id(str(path)):
        return partial(read_hub, part=part)
    return None


def check_no_part(path: Path, part: HubSet) -> None:
    """Check that no part is given of prompts that are not a data set on the hub.

    Args:
        path: File, folder, or name of a list.
        part: Part of a data set on the hub.

    Raises:
        ValueError: If it is not the default.
    """
    for name, usual in vars(HubSet()).items():
        if (given := getattr(part, name)) != usual:
            raise ValueError(
                f"prompts.{name}={short(given)} (--{name}) applies to data sets on the hub, and"
                f" {path} is none: remove it"
            )


def read_generated(path: Path, column: str) -> Iterator[tuple[str, Any]]:
    """Yield the captions of a generated list.

    Args:
        path: Name of the list, e.g. "videos:5000".
        column: Not used.

    Yields:
        ("caption 1", caption), ...
    """
    found = parse_name(str(path))
    assert found, f"{path} is not a generated list"
    for number, caption in enumerate(found.captions(), start=1):
        yield f"caption {number}", caption


def read_hub(path: Path, column: str, *, part: HubSet) -> Iterator[tuple[str, Any]]:
    """Stream a column of a data set on the hub, without downloading the data set first.

    Args:
        path: Hub id.
        column: Name of the column.
        part: Subset, split and revision.

    Yields:
        ("row 1", value), ...

    Raises:
        ValueError: If the data set cannot be read, or does not have the column.
    """
    import datasets  # slow to import, and only needed here

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
    except Exception as error:  # hub, network and readers raise many types of errors
        raise _unreadable(path, part, error) from error
    if column not in columns:
        shown = ", ".join(columns[:10]) or "none"
        first = shlex.quote(columns[0]) if columns else "NAME"
        raise ValueError(
            f"{path}: no column {column!r}; the columns are {shown}: use e.g. --column {first}"
            f" (prompts.column={first} for a run)"
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
        f"{path} is not a local file and could not be read as a data set on the hub"
        f" ({type(error).__name__}: {reason}): check the name, {named} and the network. Without a"
        " network, write the prompts to a file on another machine"
        f" (tdmvid prompts {path} --out prompts.jsonl)"
    )
