"""Add the generated pages, and the files outside docs/ that the pages link to, to the site.

MkDocs calls the functions that are named `on_...`; mkdocs.yml names this file.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from api_pages import api_pages
from commands_page import commands_page
from links import Links
from mkdocs.structure.files import File, Files
from notebook_page import notebook_page
from settings_page import settings_page

ROOT = Path(__file__).resolve().parents[2]
PAGES = {
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "README.md": "index.md",
    "benchmarks/NOTES.md": "benchmarks.md",
    "examples/shapes/README.md": "embedded_teacher.md",
    "examples/shapes/embedded_teacher.ipynb": "notebook.md",
}
"""File of the repository -> page of the site that a link to it leads to."""
LINKS = Links(ROOT, PAGES)
LOG = logging.getLogger("mkdocs.tdmvid")


def on_files(files: Files, config: Any) -> Files:
    """Add pages and linked files."""
    pages: dict[str, str | bytes] = {
        "reference/settings.md": settings_page(),
        "reference/commands.md": commands_page(),
        **api_pages(ROOT / "tdmvid"),
    }
    for source, uri in PAGES.items():
        if source.endswith(".ipynb"):
            pages |= notebook_page(ROOT / source, uri)
        elif source != "README.md":
            text = (ROOT / source).read_text(encoding="utf-8")
            pages[uri] = LINKS.rewrite(text, source=source, page=uri)
    for uri, content in pages.items():
        files.append(File.generated(config, uri, content=content))
    for path in LINKS.files(config["docs_dir"]):
        files.append(File.generated(config, f"files/{path}", abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Turn links that leave docs/ into links within the site."""
    uri = page.file.src_uri
    return LINKS.rewrite(markdown, source=f"docs/{uri}", page=uri)


def on_page_content(html: str, *, page: Any, **_: Any) -> str:
    """Warn of a list that GitHub shows as one and Python-Markdown does not."""
    for start in ("<p>", "<br />"):
        for paragraph in html.split(start)[1:]:
            text = paragraph.split("</p>")[0]
            if any(line.startswith(("* ", "- ", "1. ")) for line in text.split("\n")[1:]):
                LOG.warning(
                    "%s: a list without an empty line above: %s", page.file.src_uri, text[:80]
                )
    return html
