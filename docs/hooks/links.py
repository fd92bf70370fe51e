"""Links of the repository's Markdown files, as the site needs them."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path

LINK = re.compile(r"(\]\()([^)\s#]+)((?:#[^)\s]*)?\))")
FENCE = re.compile(r"^(```.*?^```$)", re.M | re.S)


class Links:
    """Links between files of the repository, some of which are pages of the site.

    Args:
        root: The repository.
        pages: File outside docs/ -> page of the site.
    """

    def __init__(self, root: Path, pages: dict[str, str]) -> None:
        self.root = root
        self.pages = pages

    def rewrite(self, text: str, *, source: str, page: str) -> str:
        """Return the text with links that lead to pages and files of the site.

        Args:
            text: Markdown.
            source: The file that it is from, relative to the repository.
            page: The page of the site that it becomes.
        """

        def replace(match: re.Match) -> str:
            before, target, after = match.groups()
            place = self._place(target, source)
            if place is None:
                return match[0]
            return before + posixpath.relpath(place, posixpath.dirname(page) or ".") + after

        parts = FENCE.split(text)
        return "".join(
            part if part.startswith("```") else LINK.sub(replace, part) for part in parts
        )

    def files(self, docs: str) -> list[str]:
        """Return the files outside docs/ that are linked to and are not pages.

        Args:
            docs: The folder of the site's own pages.
        """
        sources = [str(path.relative_to(self.root)) for path in Path(docs).rglob("*.md")]
        sources += [name for name in self.pages if name.endswith(".md") and name != "README.md"]
        found = {path for source in sources for path in self._linked(source)}
        return sorted(found)

    def _linked(self, source: str) -> Iterator[str]:
        text = FENCE.sub("", (self.root / source).read_text(encoding="utf-8"))
        for _, target, _ in LINK.findall(text):
            place = self._place(target, source)
            if place and place.startswith("files/"):
                yield place.removeprefix("files/")

    def _place(self, target: str, source: str) -> str | None:
        """Return where in the site a link leads, None if it stays as it is."""
        if ":" in target:
            return None
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        if path in self.pages:
            return self.pages[path]
        if path.startswith("docs/"):
            return path.removeprefix("docs/")
        return f"files/{path}" if (self.root / path).is_file() else None
