"""Escape data for Markdown, so that prompts, paths and names are never parsed as markup."""

from __future__ import annotations

import re
from typing import Any

import yaml

SPECIAL = re.compile(
    r"""[\\`*\[\]<>#|~&$@]"""
    r"""|(?<![^\W_])_|_(?![^\W_])"""  # underscores inside words are plain text
    r"""|:(?=//)|(?<=www)(?=\.)"""  # GitHub turns these into links
    r"""|^[-+=]""",  # start of a list or a rule
    re.IGNORECASE,
)


def escape(text: object) -> str:
    """Escape text for Markdown, including table cells.

    Args:
        text: Any value; its string is used.

    Returns:
        Markdown on one line that displays the text unchanged.
    """
    escaped = SPECIAL.sub(lambda match: f"\\{match[0]}", one_line(text))
    return re.sub(r"^(\d+)(?=[.)])", r"\1\\", escaped)  # a numbered list


def code(text: object) -> str:
    """Format text as inline code in Markdown, including table cells.

    Args:
        text: Any value; its string is used.

    Returns:
        Markdown on one line.
    """
    text = one_line(text).replace("|", r"\|")
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    space = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{space}{text}{space}{fence}"


def one_line(text: object) -> str:
    """Put text on one line, and replace characters that are not printable.

    Args:
        text: Any value; its string is used.

    Returns:
        The text with single spaces.
    """
    words = " ".join(str(text).split())
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in words)


def front_matter(values: dict[str, Any]) -> str:
    """Format the YAML block at the start of a model card.

    Args:
        values: Fields of the card.

    Returns:
        The block, with its `---` lines.
    """
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=10**6)
    return f"---\n{text}---"


def read_front_matter(text: str) -> dict[str, Any]:
    """Parse the YAML block at the start of a model card.

    Args:
        text: Text of the card.

    Returns:
        The fields; empty if there is no valid block.
    """
    block = re.match(r"---\r?\n(.*?)\r?\n---", text, re.S)
    try:
        found = yaml.safe_load(block[1]) if block else {}
    except yaml.YAMLError:
        return {}
    return found if isinstance(found, dict) else {}
