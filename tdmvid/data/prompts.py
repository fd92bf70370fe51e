"""Read prompts, and define the infinite order in which training uses them."""

from __future__ import annotations

import csv
import glob
import hashlib
import io
import re
import shlex
import tempfile
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..config.json_files import parse_line
from ..config.resources import list_names
from .captioned import find_source, holds_media, read_captioned
from .files import short
from .prompt_sets import HubSet, Reader, check_no_part, find_set, read_generated
from .prompt_text import check_prompt, is_empty, read_text, text_lines

if TYPE_CHECKING:
    from ..config import PromptConfig

COLUMN = "--column {} (prompts.column={} for a run)"
IMAGE_COLUMN = "--image-column {} (prompts.image_column={} for a run)"
"""What sets the column of a table, for messages, with {} for its name."""
SHOWN_COLUMNS, SHOWN_RANGES = 10, 20
"""Largest numbers of columns, and of ranges of lines, that a message names."""


def read_prompts(
    path: Path | str,
    *,
    column: str = "prompt",
    skip_empty: bool = False,
    limit: int = 0,
    part: HubSet = HubSet(),
    setting: str = COLUMN,
) -> list[str]:
    """Read prompts in order, with duplicates.

    The source can be:

    * a .txt file with one prompt per line,
    * a .jsonl file; each line is a string or an object with `column`,
    * a .csv or .parquet table with `column`,
    * a folder of videos or images with captions next to them (a.mp4, a.txt),
    * the name of a built-in list, e.g. `videos`,
    * a generated list, e.g. `videos:5000`,
    * the hub id of a data set, which is streamed.

    Spaces around a prompt are removed, and lines without visible characters are skipped.

    Args:
        path: The source.
        column: Name of the column of a table or data set.
        skip_empty: Whether to skip empty values of objects and tables.
        limit: Number of prompts to read from a generated list or data set; 0 reads all.
        part: Part of a data set on the hub.
        setting: What sets `column`, such as `COLUMN`; empty if nothing does.

    Returns:
        The prompts.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If the source is invalid; the message gives file and line.
    """
    path = find_source(path)
    named = find_set(path, part)
    captioned = path.is_dir() and not (named and not holds_media(path))  # named as a data set
    if captioned or not named or named is read_generated:
        check_no_part(path, part)
    if captioned:
        return [caption for _, caption in read_captioned(path)]
    reader = named or _READERS.get(path.suffix.lower())
    if reader is None:
        raise ValueError(_describe_unknown(path))
    if not named and not path.is_file():
        raise FileNotFoundError(f"{path}: no such prompt file; paths are relative to {Path.cwd()}")
    prompts: list[str] = []
    empty: list[str] = []
    for place, value in _cells(reader, path, column, setting):
        if is_empty(value):
            empty.append(place)
        else:
            prompts.append(check_prompt(value, f"{path}, {place}"))
        if named and len(prompts) == limit:  # a data set can have millions of prompts
            break
    if empty and not skip_empty:
        raise ValueError(_describe_empty(path, empty, len(prompts) + len(empty)))
    if not prompts:
        raise ValueError(f"{path} has no prompts: at least one is needed")
    return prompts


def read_rows(
    path: Path,
    columns: Sequence[tuple[str, str]],
    *,
    skip_empty: bool = False,
    limit: int = 0,
) -> list[tuple[str, tuple[str, ...]]]:
    """Read several columns of a table.

    Args:
        path: File of a type in `TABLES`.
        columns: Name of each column, and what sets it, such as `COLUMN`; empty if nothing does.
        skip_empty: Whether to skip rows with an empty cell. Otherwise an empty cell is an error.
        limit: Number of rows to return, from the first; 0 returns all.

    Returns:
        (place, values) of each row. Messages use the place, e.g. "line 3".

    Raises:
        ValueError: If the file is invalid; the message gives the line.
    """
    reader = _READERS[path.suffix.lower()]
    rows: list[tuple[str, tuple[str, ...]]] = []
    empty: list[str] = []
    each = (_cells(reader, path, column, setting) for column, setting in columns)
    for cells in zip(*each, strict=True):
        place, values = cells[0][0], [value for _, value in cells]
        if any(map(is_empty, values)):
            empty.append(place)
        else:
            where = f"{path}, {place}"
            rows.append((place, tuple(check_prompt(value, where) for value in values)))
    if empty and not skip_empty:
        raise ValueError(_describe_empty(path, empty, len(rows) + len(empty)))
    if not rows:
        raise ValueError(f"{path} has no rows: at least one is needed")
    return rows[:limit] if limit else rows


def read_training_prompts(config: PromptConfig) -> list[str]:
    """Read the prompts that a run trains on.

    Args:
        config: Settings of the prompts.

    Returns:
        The prompts, at most `config.limit`.

    Raises:
        ValueError: If `config.path` is empty, or the source is invalid.
        FileNotFoundError: If the file does not exist.
    """
    check_given(config)
    prompts = read_prompts(
        config.path,
        column=config.column,
        skip_empty=config.skip_empty,
        limit=config.limit,
        part=HubSet(config.subset, config.split, config.revision),
    )
    return prompts[: config.limit] if config.limit else prompts


def check_given(config: PromptConfig) -> None:
    """Check that the settings name a source. An empty path would be the working folder.

    Args:
        config: Settings of the prompts.

    Raises:
        ValueError: If `config.path` is empty.
    """
    if not config.path:
        raise ValueError(
            "prompts.path is empty: set it to a .txt, .jsonl, .csv or .parquet file of prompts, a"
            " generated list (videos:5000) or the hub id of a data set"
        )


class PromptOrder:
    """Order of prompts: shuffled in every epoch, infinite and stateless.

    The permutations of the epochs form one infinite sequence. Each step uses the next
    `batch * micros` entries. Therefore a resumed run only needs the step, and the prompts of a step
    depend only on the global batch, not on the number of ranks.

    Args:
        count: Number of prompts.
        seed: Seed of the permutations.

    Raises:
        ValueError: If there are no prompts.
    """

    def __init__(self, count: int, seed: int):
        if count < 1:
            raise ValueError(f"count={count}: at least one prompt is needed")
        self.count, self.seed = count, seed

    def indices(self, step: int, batch: int, micro: int, micros: int) -> list[int]:
        """Return the prompts of one micro-batch of a step.

        Args:
            step: Iteration, from 0.
            batch: Prompts per micro-batch.
            micro: Index of the micro-batch among those of all data-parallel ranks.
            micros: Number of micro-batches of all data-parallel ranks.

        Returns:
            `batch` indices below `count`.
        """
        assert 0 <= micro < micros, f"micro-batch {micro} of {micros}"
        start = (step * micros + micro) * batch
        return [self.at(position) for position in range(start, start + batch)]

    def at(self, position: int) -> int:
        """Return the prompt at a position of the infinite sequence.

        Args:
            position: Position, from 0.

        Returns:
            An index below `count`.
        """
        epoch, place = divmod(position, self.count)
        return int(_permutation(self.count, self.seed, epoch)[place])


# Steps move slowly through epochs and use at most two of them, unless there are few prompts.
@lru_cache(maxsize=8)
def _permutation(count: int, seed: int, epoch: int) -> Tensor:
    # Hashed, because with seed + epoch, seed 1 would repeat the epochs of seed 0, shifted by one.
    digest = hashlib.sha256(f"{seed} {epoch}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
    return torch.randperm(count, generator=generator)


# Readers yield (place, value): a place such as "line 3" for messages, and the unchecked value.


def _read_txt(path: Path, column: str) -> Iterator[tuple[str, Any]]:
    for number, line in text_lines(path):
        yield f"line {number}", line


def _read_jsonl(path: Path, column: str) -> Iterator[tuple[str, Any]]:
    for number, line in text_lines(path):
        where = f"{path}, line {number}"
        value = parse_line(line, where, remedy=f'write {{"{column}": "..."}} or "..." on one line')
        if isinstance(value, dict):
            _require_column(column, list(value), where)
            value = value[column]
        yield f"line {number}", value


def _read_csv(path: Path, column: str) -> Iterator[tuple[str, Any]]:
    # Not with pandas (nor `datasets`, which uses it): if each prompt has a comma and no quotes,
    # pandas silently treats the part before the comma as an index.
    rows = csv.reader(io.StringIO(read_text(path), newline=""), strict=True, skipinitialspace=True)
    line = 1
    header: list[str] | None = None
    try:
        for row in rows:
            begin, line = line, rows.line_num + 1
            if not row:
                continue
            if header is None:
                header = [name.strip() for name in row]
                _require_column(column, header, f"{path}, line {begin}")
            elif len(row) != len(header):
                raise ValueError(f"{path}, line {begin}: {_wrong_width(row, header)}")
            else:
                yield f"line {begin}", row[header.index(column)]
    except csv.Error as error:
        raise ValueError(f"{path}, line {line}: not CSV ({error}): {_csv_remedy(error)}") from None


def _wrong_width(row: list[str], header: list[str]) -> str:
    """Return the message for a row with more or fewer fields than the header."""
    remedy = (
        "put double quotes around a prompt with commas"
        if len(row) > len(header)
        else "write a comma for each column, including empty ones"
    )
    return f"{short(', '.join(row))} has {len(row)} fields, the header has {len(header)}: {remedy}"


def _csv_remedy(error: csv.Error) -> str:
    """Return the remedy for an error of the csv module, which has only one class of errors."""
    if "field limit" in str(error):
        return "close the quote that begins this field, or shorten or remove the field"
    if "end of data" in str(error):
        return "close the quote that was opened here"
    return "write a quote inside quotes twice, and no space between a closing quote and a comma"


def _read_parquet(path: Path, column: str) -> Iterator[tuple[str, Any]]:
    import datasets  # slow to import, and only needed here

    # Streaming converts nothing to Arrow files, but still writes a lock to the cache folder.
    with tempfile.TemporaryDirectory() as cache:
        try:
            table = datasets.load_dataset(
                "parquet",
                data_files=glob.escape(str(path)),
                split="train",
                streaming=True,
                cache_dir=cache,
            )
            columns = list(table.column_names)
            values = (
                [row[column] for row in table.select_columns([column])] if column in columns else []
            )
        except Exception as error:  # pyarrow and datasets raise many types of errors
            raise ValueError(
                f"{path}: not a Parquet file with rows ({error}): write it again"
            ) from error
    _require_column(column, columns, str(path))
    for number, value in enumerate(values, start=1):
        yield f"row {number}", value


_READERS = {".txt": _read_txt, ".jsonl": _read_jsonl, ".csv": _read_csv, ".parquet": _read_parquet}
TABLES = (".csv", ".jsonl", ".parquet")
"""Suffixes of files with columns."""


class _NoColumn(ValueError):
    """A table lacks a column: the columns that it has, and what helps whatever sets the column."""

    def __init__(self, message: str, columns: list[str], remedy: str):
        super().__init__(message)
        self.columns, self.remedy = columns, remedy


def _cells(reader: Reader, path: Path, column: str, setting: str) -> Iterator[tuple[str, Any]]:
    """Yield (place, value) of a column; without the column, name what sets it."""
    try:
        yield from reader(path, column)
    except _NoColumn as error:
        remedy = error.remedy or "rename one of them"
        if setting and not error.remedy:
            example = "e.g. " * (len(error.columns) > 1)
            name = shlex.quote(error.columns[0])
            remedy = f"use {example}{setting.replace('{}', name)}, or rename a column"
        raise ValueError(f"{error}: {remedy}") from None


def _require_column(column: str, columns: list[str], where: str) -> None:
    if columns.count(column) > 1:
        raise ValueError(f"{where}: two columns are named {short(column)}: rename one of them")
    if column not in columns:
        there = ", ".join(map(short, columns[:SHOWN_COLUMNS])) or "none"
        there += f" and {len(columns) - SHOWN_COLUMNS} more" * (len(columns) > SHOWN_COLUMNS)
        remedy = "" if columns else f"add the column {short(column)}"
        if len(columns) == 1 and (found := re.search(r"[;\t|]", columns[0])):
            remedy = f"separate columns by commas, not by {found[0]!r}"
        message = f"{where}: no column {short(column)}; the columns are {there}"
        raise _NoColumn(message, columns, remedy)


def _describe_unknown(path: Path) -> str:
    """Return the message for a path that is no file of a known type, no list and no hub id."""
    if not path.exists() and re.match(r"[A-Za-z]+:", str(path)):
        return (
            f"{path} is no generated list: write images:COUNT[:SEED] or videos:COUNT[:SEED] with"
            " whole numbers, e.g. videos:5000, or the hub id of a data set, OWNER/NAME"
        )
    if not path.exists() and not path.suffix:
        return (
            f"{path} is no file, folder or built-in list of prompts: use a"
            f" {', '.join(_READERS)} file, one of {', '.join(list_names())}, a generated list"
            " (videos:5000) or a hub id (OWNER/NAME)"
        )
    return f"{path}: unknown type of prompt file {path.suffix!r}: use {', '.join(_READERS)}"


def _describe_empty(path: Path, places: list[str], total: int) -> str:
    """Return the message for empty prompts: their number and places, neighbours as one range."""
    kind = places[0].split()[0]
    numbers = [int(place.split()[1]) for place in places]
    ranges: list[list[int]] = []
    for number in numbers:
        if ranges and number == ranges[-1][1] + 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    named = ", ".join(f"{a}" if a == b else f"{a}-{b}" for a, b in ranges[:SHOWN_RANGES])
    named += ", ..." if len(ranges) > SHOWN_RANGES else ""
    count = f"{len(places):,} of {total:,} prompts {'is' if len(places) == 1 else 'are'} empty"
    return (
        f"{path}, {places[0]}: {count} ({kind}{'s' * (len(places) > 1)} {named}): fill or remove"
        " them, or skip them (prompts.skip_empty=true, or `tdmvid prompts --skip-empty` for a list)"
    )
