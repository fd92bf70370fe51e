"""The licence of a base, as its own model card states it."""

from __future__ import annotations

import re
from pathlib import Path

from ..data.markdown import code, escape, one_line, read_front_matter


def stated_licence(folder: Path) -> dict[str, str]:
    """Return licence, licence name and link from the base's own model card; {} if it has none."""
    card = folder / "README.md"
    if not card.is_file():
        return {}
    stated = read_front_matter(card.read_text(encoding="utf-8", errors="replace"))
    keys = ("license", "license_name", "license_link")
    return {key: one_line(stated[key]) for key in keys if isinstance(stated.get(key), str)}


def licence_text(folder: Path, title: str) -> str:
    """Return what the card of a student says about its licence.

    Args:
        folder: Folder of the base.
        title: How the card calls the base.

    Returns:
        Sentences in Markdown.
    """
    stated = stated_licence(folder)
    if not stated:
        return (
            f"The licence of the base model, {code(title)}, applies. Its folder does not state a"
            " licence."
        )
    name = escape(stated.get("license_name", stated.get("license", "")))
    link = stated.get("license_link", "")
    web = re.fullmatch(r"https?://[\w./~%?=&#:+-]+", link)
    shown = f" ({link if web else escape(link)})" if link else ""
    return f"The licence of the base model applies: {name}{shown}."
