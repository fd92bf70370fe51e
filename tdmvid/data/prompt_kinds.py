"""Kinds of sources of prompts, which decide what settings a source has."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from .captioned import find_source, holds_media
from .prompt_sets import HubSet, find_set, read_generated
from .prompts import TABLES

Kind = Literal["file of lines", "table", "folder", "generated list", "data set"]
SETTINGS_OF: dict[Kind, frozenset[str]] = {
    "file of lines": frozenset(),
    "table": frozenset({"column", "image_column", "skip_empty"}),
    "folder": frozenset(),
    "generated list": frozenset(),
    "data set": frozenset({"column", "skip_empty", "subset", "split", "revision"}),
}
"""Settings that a source reads, beside its path and limit."""


def kind_of(source: Path | str) -> Kind:
    """Return the kind of a source of prompts.

    Args:
        source: A source that `read_prompts` reads.

    Returns:
        Its kind.
    """
    path = find_source(source)
    named = find_set(path, HubSet())
    if path.is_dir() and not (named and not holds_media(path)):
        return "folder"
    if named:
        return "generated list" if named is read_generated else "data set"
    return "table" if path.suffix.lower() in TABLES else "file of lines"
