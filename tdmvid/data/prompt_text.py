"""Read texts of users, and check that a value is a prompt."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..config.rules import is_text
from .files import short

_LINE_END = re.compile(r"\r\n|\n|\r")
_MARK = "\ufeff"
"""Byte order mark."""
_NUL = re.compile("\0")
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f]")  # except line ends


def read_text(path: Path) -> str:
    """Read a text file, without a byte order mark.

    Args:
        path: The file.

    Returns:
        Its text.

    Raises:
        ValueError: If it is not UTF-8 or contains a NUL character; the message gives the line.
    """
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
            f"{path}, line {line}: contains a NUL character, maybe because it is UTF-16: save the"
            " file as UTF-8"
        )
    return text


def text_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Read the lines of a text file that are not empty, see `is_empty`.

    Args:
        path: The file.

    Yields:
        Number of the line, from 1, and its text without spaces around it.

    Raises:
        ValueError: See `read_text`.
    """
    # Not splitlines(): it also splits at U+2028 and similar, which can occur inside a prompt.
    for number, line in enumerate(_LINE_END.split(read_text(path)), start=1):
        line = line.removeprefix(_MARK)  # of a file that was appended to another one
        if not is_empty(line):
            yield number, line.strip()


def check_prompt(value: Any, where: str) -> str:
    """Check that a value is a prompt. It may be empty.

    Args:
        value: The value.
        where: File and place, for the message.

    Returns:
        The prompt without spaces around it.

    Raises:
        ValueError: If it is not a string, or has a character that is no part of a text.
    """
    text = check_text(value, where)
    _refuse(_CONTROL, text, where)
    return text.strip()


def check_text(value: Any, where: str) -> str:
    """Check that a value is a string that can be encoded. It may have control characters but NUL.

    Args:
        value: The value.
        where: File and place, for the message.

    Returns:
        The string.

    Raises:
        ValueError: If it is not.
    """
    if not isinstance(value, str):
        raise ValueError(
            f"{where}: prompt {short(value)} is not a string: write a string or remove it"
        )
    if not is_text(value):
        raise ValueError(
            f"{where}: prompt {short(value)} has an unpaired surrogate: write the whole character"
        )
    _refuse(_NUL, value, where)
    return value


def _refuse(characters: re.Pattern[str], text: str, where: str) -> None:
    if found := characters.search(text):
        raise ValueError(
            f"{where}: prompt {short(text)} contains the control character {found[0]!r}: remove it"
        )


def is_empty(value: Any) -> bool:
    """Check whether a value is empty.

    Args:
        value: The value.

    Returns:
        True for None, NaN, and a string without visible characters.
    """
    if isinstance(value, str):
        return all(letter.isspace() or unicodedata.category(letter) == "Cf" for letter in value)
    return value is None or (isinstance(value, float) and math.isnan(value))
