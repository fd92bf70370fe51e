"""Prompts: the list in a file, and the endless order in which training visits it."""

from __future__ import annotations

import csv
import glob
import hashlib
import io
import json
import tempfile
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..config.resources import find_prompts
from .files import short

if TYPE_CHECKING:
    from ..config import PromptConfig


def read_prompts(path: Path | str, *, column: str = "prompt") -> list[str]:
    """The prompts of a .txt, .jsonl, .csv or .parquet file, in order, duplicates kept.

    Text has one prompt a line; JSON lines are strings or objects with `column`; tables have
    `column`; a ready list has a name, e.g. `videos`. Space around a prompt is dropped, blank lines
    are skipped. Raises FileNotFoundError, or ValueError with the file and the line of what is
    wrong.
    """
    path = find_prompts(path)
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise ValueError(
            f"{path}: unknown kind of prompt file {path.suffix!r}: use {', '.join(_READERS)}"
        )
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such prompt file; paths are relative to {Path.cwd()}")
    prompts = [_checked(value, where) for where, value in reader(path, column)]
    if not prompts:
        raise ValueError(f"{path}: has no prompts: at least one is needed")
    return prompts


def read_training_prompts(config: PromptConfig) -> list[str]:
    """Return the prompts that a run trains on.

    Raises:
        ValueError: If no file is named, or for what is wrong in it.
        FileNotFoundError: If it is not there.
    """
    if not config.path:
        raise ValueError(
            "prompts.path is empty: give a .txt, .jsonl, .csv or .parquet file of prompts"
        )
    prompts = read_prompts(config.path, column=config.column)
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
        return [self._at(position) for position in range(start, start + batch)]

    def _at(self, position: int) -> int:
        epoch, place = divmod(position, self.count)
        return int(_permutation(self.count, self.seed, epoch)[place])


# Steps move slowly through epochs and straddle two at most, unless the prompts are few.
@lru_cache(maxsize=8)
def _permutation(count: int, seed: int, epoch: int) -> Tensor:
    # Hashed, because seed + epoch would give seed 1 the epochs of seed 0, one late.
    digest = hashlib.sha256(f"{seed} {epoch}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
    return torch.randperm(count, generator=generator)


# Readers yield (where, value): the place in words for messages, the value still unchecked.


def _read_txt(path: Path, column: str) -> Iterator[tuple[str, Any]]:
    for number, line in _lines(path):
        yield f"{path}, line {number}", line


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
        yield where, value


def _read_csv(path: Path, column: str) -> Iterator[tuple[str, Any]]:
    # Not through pandas (nor `datasets`, which uses it): when each prompt has a comma and no
    # quotes, it takes the part before the comma for an index and silently keeps the rest.
    rows = csv.reader(io.StringIO(_text(path), newline=""), strict=True)
    line = 1
    header: list[str] | None = None
    try:
        for row in rows:
            where, line = f"{path}, line {line}", rows.line_num + 1
            if not row:
                continue
            if header is None:
                header = [name.strip() for name in row]
                _require_column(column, header, where)
            elif len(row) != len(header):
                raise ValueError(
                    f"{where}: {short(','.join(row))} has {len(row)} fields, the header has "
                    f"{len(header)}: put double quotes around a prompt with commas"
                )
            else:
                yield where, row[header.index(column)]
    except csv.Error as error:
        raise ValueError(
            f"{path}, line {line}: not CSV ({error}): write a quote inside quotes twice"
        ) from None


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
        yield f"{path}, row {number}", value


_READERS = {".txt": _read_txt, ".jsonl": _read_jsonl, ".csv": _read_csv, ".parquet": _read_parquet}


def _text(path: Path) -> str:
    data = path.read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{path}, line {line}: byte 0x{data[error.start]:02x} is not UTF-8: save the file as"
            " UTF-8"
        ) from None


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    # Not splitlines(): a prompt may hold U+2028 and the like, which end no line of a file.
    for number, line in enumerate(_text(path).split("\n"), start=1):
        if line.strip():
            yield number, line.strip()


def _require_column(column: str, columns: list[str], where: str) -> None:
    if column not in columns:
        there = ", ".join(repr(name) for name in columns) or "none"
        raise ValueError(
            f"{where}: no column {column!r}; the columns are {there}: name one of them or rename it"
        )


def _checked(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{where}: prompt {short(value)} is no text: write a string or remove it")
    if not value.strip():
        raise ValueError(f"{where}: prompt {value!r} is empty: write one or remove it")
    if not value.isascii() and any("\ud800" <= letter <= "\udfff" for letter in value):
        raise ValueError(
            f"{where}: prompt {short(value)} has half a surrogate pair: write the whole character"
        )
    return value.strip()
