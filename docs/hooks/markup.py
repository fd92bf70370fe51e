"""Plain text of docstrings and help texts as Markdown."""

from __future__ import annotations

import re

SPECIAL = re.compile(r"([\\_*<>\[\]#{}|$^])")


def escape(text: str) -> str:
    """Escape what Markdown would read as markup; code between backticks is left as it is."""
    parts = text.split("`")
    return "`".join(
        part if place % 2 else SPECIAL.sub(r"\\\1", part) for place, part in enumerate(parts)
    )


def reflow(text: str) -> str:
    """Escape a docstring paragraph by paragraph; indented paragraphs stay code blocks."""
    paragraphs = text.strip("\n").split("\n\n")
    return "\n\n".join(
        part if part.startswith("    ") else escape(" ".join(part.split())) for part in paragraphs
    )
