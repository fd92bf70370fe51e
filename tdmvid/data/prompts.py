"""Prompts: the list in a file, and the endless order in which training visits it."""

from __future__ import annotations

import csv
import glob
import hashlib
import io
import json
import math
import re
import tempfile
import unicodedata
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..config.resources import find_prompts
from .captioned import holds_media, read_captioned
from .files import short
from .prompt_sets import HubSet, find_set

if TYPE_CHECKING:
    from ..config import PromptConfig

SHOWN_COLUMNS, SHOWN_RANGES = 10, 20
"""Columns of a table, and ranges of lines, that a message names."""
_LINE_END = re.compile(r"\r\n|\n|\r")
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f]")  # not those that end lines


def read_prompts(
    path: Path | str,
    *,
    column: str = "prompt",
    skip_empty: bool = False,
    limit: int = 0,
    part: HubSet = HubSet(),
) -> list[str]:
    """The prompts of a .txt, .jsonl, .csv or .parquet file, in order, duplicates kept.

    Text has one prompt a line; JSON lines are strings or objects with `column`; tables have
    `column`; a folder of videos or images has captions beside them (a.mp4, a.txt); a ready list has
    a name, e.g. `videos`, a generated one a number too, `videos:5000`, and a data set on the hub
    its id, of which `part` is streamed up to `limit` prompts (0: all).
    Space around a prompt is dropped, blank lines are skipped, with `skip_empty` empty values of
    objects and tables too. Raises FileNotFoundError, or ValueError with the file and the line of
    what is wrong.
    """
    path = find_prompts(path)
    named = find_set(path, part, tuple(_READERS))
    if path.is_dir() and not (named and not holds_media(path)):  # it may be called like a set
        return [_checked(caption, str(file)) for file, caption in read_captioned(path)]
    reader = named or _READERS.get(path.suffix.lower())
    if reader is None:
        raise ValueError(
            f"{path}: unknown kind of prompt file {path.suffix!r}: use {', '.join(_READERS)}"
        )
    if not named and not path.is_file():
        raise FileNotFoundError(f"{path}: no such prompt file; paths are relative to {Path.cwd()}")
    prompts: list[str] = []
    empty: list[str] = []
    for place, value in reader(path, column):
        if _is_empty(value):
            empty.append(place)
        else:
            prompts.append(_checked(value, f"{path}, {place}"))
        if named and len(prompts) == limit:  # a set may have millions
            break
    if empty and not skip_empty:
        raise ValueError(_describe_empty(path, empty, len(prompts) + len(empty)))
    if not prompts:
        raise ValueError(f"{path}: has no prompts: at least one is needed")
    return prompts


def read_rows(
    path: Path, columns: tuple[str, ...], *, skip_empty: bool = False, limit: int = 0
) -> list[tuple[str, tuple[str, ...]]]:
    """Return the rows of a table that have text in every one of `columns`.

    Args:
        path: a file of one of the kinds in `TABLES`.
        skip_empty: leave out rows with an empty cell, which are refused otherwise.
        limit: only the first so many; 0 for all.

    Returns:
        (place, values) of each row, the place as messages name it, e.g. "line 3".

    Raises:
        ValueError: for what is wrong in the file, with its line.
    """
    reader = _READERS[path.suffix.lower()]
    rows: list[tuple[str, tuple[str, ...]]] = []
    empty: list[str] = []
    for cells in zip(*(reader(path, column) for column in columns), strict=True):
        place, values = cells[0][0], [value for _, value in cells]
        if any(map(_is_empty, values)):
            empty.append(place)
        else:
            where = f"{path}, {place}"
            rows.append((place, tuple(_checked(value, where) for value in values)))
    if empty and not skip_empty:
        raise ValueError(_describe_empty(path, empty, len(rows) + len(empty)))
    if not rows:
        raise ValueError(f"{path}: has no rows: at least one is needed")
    return rows[:limit] if limit else rows


def read_training_prompts(config: PromptConfig) -> list[str]:
    """Return the prompts that a run trains on.

    Raises:
        ValueError: If no file is named, or for what is wrong in it.
        FileNotFoundError: If it is not there.
    """
    if not config.path:
        raise ValueError(
            "prompts.path is empty: give a .txt, .jsonl, .csv or .parquet file of prompts, a"
            " generated list (videos:5000) or the hub id of a data set"
        )
    prompts = read_prompts(
        config.path,
        column=config.column,
        skip_empty=config.skip_empty,
        limit=config.limit,
        part=HubSet(config.subset, config.split, config.revision),
    )
    return prompts[: config.limit] if config.limit else prompts


class PromptOrder:
    """Which prompts each step uses: shuffled anew every epoch, without end and without state.

    The epochs' permutations form one endless sequence; a step takes the next `batch * micros`
    of it, whoever computes them, so a resume needs only the step, and the prompts of a step
    depend on the global batch alone, not on how ranks share it.
    """

    def __init__(self, count: int, seed: int):
        if count < 1:
            raise ValueError(f"count={count} prompts: at least one is needed")
        self.count, self.seed = count, seed

    def indices(self, step: int, batch: int, micro: int, micros: int) -> list[int]:
        """The prompts of one micro-batch of a step.

        batch: prompts of a micro-batch. micro: which of the step's `micros` micro-batches,
        those of all data-parallel ranks counted together. Returns `batch` indices < count.
        """
        assert 0 <= micro < micros, f"micro-batch {micro} of {micros}"
        start = (step * micros + micro) * batch
        return [self.at(position) for position in range(start, start + batch)]

    def at(self, position: int) -> int:
        """Return the prompt at a position of the endless sequence: an index < count."""
        epoch, place = divmod(position, self.count)
        return int(_permutation(self.count, self.seed, epoch)[place])


# Steps move slowly through epochs and straddle two at most, unless the prompts are few.
@lru_cache(maxsize=8)
def _permutation(count: int, seed: int, epoch: int) -> Tensor:
    # Hashed, because seed + epoch would give seed 1 the epochs of seed 0, one late.
    digest = hashlib.sha256(f"{seed} {epoch}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
    return torch.randperm(count, generator=generator)


# Readers yield (place, value): "line 3" for messages, and the value still unchecked.


def _read_txt(path: Path, column: str) -> Iterator[tuple[str, Any]]:
    for number, line in _lines(path):
        yield f"line {number}", line


def _read_jsonl(path: Path, column: str) -> Iterator[tuple[str, Any]]:
    for number, line in _lines(path):
        where = f"{path}, line {number}"
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(
                f"{where}: {short(line)} is not JSON ({error.msg}, character {error.colno}): "
                f'write {{"{column}": "..."}} or "..." on one line'
            ) from None
        if isinstance(value, dict):
            _require_column(column, list(value), where)
            value = value[column]
        yield f"line {number}", value


def _read_csv(path: Path, column: str) -> Iterator[tuple[str, Any]]:
    # Not through pandas (nor `datasets`, which uses it): when each prompt has a comma and no
    # quotes, it takes the part before the comma for an index and silently keeps the rest.
    rows = csv.reader(io.StringIO(_text(path), newline=""), strict=True)
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
    """What is wrong with a row of more or fewer fields than the header has."""
    remedy = (
        "put double quotes around a prompt with commas"
        if len(row) > len(header)
        else "write a comma for each column, also for one that is empty"
    )
    return f"{short(','.join(row))} has {len(row)} fields, the header has {len(header)}: {remedy}"


def _csv_remedy(error: csv.Error) -> str:
    """What cures an error of the csv module, which has one class for all of them."""
    if "field limit" in str(error):
        return "close the quote that begins this field, or shorten the field or leave it out"
    if "end of data" in str(error):
        return "close the quote that was opened here"
    return "write a quote inside quotes twice"


def _read_parquet(path: Path, column: str) -> Iterator[tuple[str, Any]]:
    import datasets  # slow to import, and of use here only

    # Streamed: nothing is converted to Arrow files; even so its lock goes to the cache folder.
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
        except Exception as error:  # a broken file raises whatever pyarrow and datasets please
            raise ValueError(
                f"{path}: not a Parquet file with rows ({error}): write it again"
            ) from error
    _require_column(column, columns, str(path))
    for number, value in enumerate(values, start=1):
        yield f"row {number}", value


_READERS = {".txt": _read_txt, ".jsonl": _read_jsonl, ".csv": _read_csv, ".parquet": _read_parquet}
TABLES = (".csv", ".jsonl", ".parquet")
"""Kinds of files whose rows have columns."""


def _text(path: Path) -> str:
    data = path.read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = len(_LINE_END.findall(data[: error.start].decode("latin-1"))) + 1
        raise ValueError(
            f"{path}, line {line}: byte 0x{data[error.start]:02x} is not UTF-8: save the file as"
            " UTF-8"
        ) from None
    if (place := text.find("\0")) >= 0:
        line = len(_LINE_END.findall(text[:place])) + 1
        raise ValueError(
            f"{path}, line {line}: holds a NUL character, as UTF-16 without a mark does: save the"
            " file as UTF-8"
        )
    return text


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    # Not splitlines(): a prompt may hold U+2028 and the like, which end no line of a file.
    for number, line in enumerate(_LINE_END.split(_text(path)), start=1):
        if line.strip():
            yield number, line.strip()


def _require_column(column: str, columns: list[str], where: str) -> None:
    if column not in columns:
        there = ", ".join(map(short, columns[:SHOWN_COLUMNS])) or "none"
        there += f" and {len(columns) - SHOWN_COLUMNS} more" * (len(columns) > SHOWN_COLUMNS)
        remedy = "name one of them or rename it"
        if len(columns) == 1 and (found := re.search(r"[;\t|]", columns[0])):
            remedy = f"separate columns by commas, not by {found[0]!r}"
        raise ValueError(f"{where}: no column {short(column)}; the columns are {there}: {remedy}")


def _checked(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{where}: prompt {short(value)} is no text: write a string or remove it")
    if not value.isascii() and any("\ud800" <= letter <= "\udfff" for letter in value):
        raise ValueError(
            f"{where}: prompt {short(value)} has half a surrogate pair: write the whole character"
        )
    if found := _CONTROL.search(value):
        raise ValueError(
            f"{where}: prompt {short(value)} holds the control character {found[0]!r}: remove it"
        )
    return value.strip()


def _is_empty(value: Any) -> bool:
    """Whether a value is what tables have where there is no prompt: nothing, or nothing to see."""
    if isinstance(value, str):
        return all(letter.isspace() or unicodedata.category(letter) == "Cf" for letter in value)
    return value is None or (isinstance(value, float) and math.isnan(value))


def _describe_empty(path: Path, places: list[str], total: int) -> str:
    """Return the message for empty prompts: how many, and where, neighbours as one range."""
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
        f"{path}, {places[0]}: {count} ({kind}{'s' * (len(places) > 1)} {named}): write them or"
        " remove them; training skips them with prompts.skip_empty=true"
    )
