"""Put data into Markdown: prompts, paths and names are text there, never markup."""

from __future__ import annotations

import re
from typing import Any

import yaml

SPECIAL = re.compile(
    r"""[\\`*\[\]<>#|~&$@]"""
    r"""|(?<![^\W_])_|_(?![^\W_])"""  # within a word it means nothing
    r"""|:(?=//)|(?<=www)(?=\.)"""  # GitHub makes links of these
    r"""|^[-+=]""",  # a list or a rule
    re.IGNORECASE,
)


def escape(text: object) -> str:
    """Return text as Markdown that shows it as it is, on one line; also in a table's cell."""
    escaped = SPECIAL.sub(lambda match: f"\\{match[0]}", one_line(text))
    return re.sub(r"^(\d+)(?=[.)])", r"\1\\", escaped)  # a numbered list


def code(text: object) -> str:
    """Return text as Markdown code within a line; also in a table's cell."""
    text = one_line(text).replace("|", r"\|")
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    space = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{space}{text}{space}{fence}"


def one_line(text: object) -> str:
    """Return text on one line, without control characters."""
    words = " ".join(str(text).split())
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in words)


def front_matter(values: dict[str, Any]) -> str:
    """Return the YAML block that a model card begins with."""
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=10**6)
    return f"---\n{text}---"


def read_front_matter(text: str) -> dict[str, Any]:
    """Return what a card's YAML block says; nothing if it has none that can be read."""
    block = re.match(r"---\r?\n(.*?)\r?\n---", text, re.S)
    try:
        found = yaml.safe_load(block[1]) if block else {}
    except yaml.YAMLError:
        return {}
    return found if isinstance(found, dict) else {}
