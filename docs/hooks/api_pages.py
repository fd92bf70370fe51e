"""Write a page of API documentation for each folder of the package; mkdocstrings fills them in."""

from __future__ import annotations

import ast
from pathlib import Path

HEAD = """\
---
search:
  boost: 0.3
---

"""
MODULE_OPTIONS = """
    options:
      members: false"""
PACKAGE_OPTIONS = f"""{MODULE_OPTIONS}
      show_root_heading: false
      show_root_toc_entry: false"""
"""The page's own title stands for the package."""


def api_pages(package: Path) -> dict[str, str]:
    """Return the pages in Markdown by their place in the site.

    Args:
        package: The folder `tdmvid`. Its modules are read, not imported.
    """
    folders = sorted(path.parent for path in package.glob("*/__init__.py"))
    pages = {f"reference/api/{folder.name}.md": _page(folder, package) for folder in folders}
    rows = [
        f"| [`tdmvid.{folder.name}`]({folder.name}.md) | {_summary(folder)} |" for folder in folders
    ]
    pages["reference/api/index.md"] = (
        "# API\n\nEvery public class and function, by package. The mathematics of the method is in"
        " `tdmvid.diffusion` and `tdmvid.distill`; `tdmvid.export.load.load_pipeline` loads any"
        " student into a stock pipeline.\n\n| package | |\n| --- | --- |\n" + "\n".join(rows) + "\n"
    )
    return pages


def _page(folder: Path, package: Path) -> str:
    """Return the page of one folder: its modules, those of folders in it included."""
    parts = [f"{HEAD}# tdmvid.{folder.name}\n"]
    for path in sorted(folder.rglob("*.py")):
        if path.name.startswith("_") and path.name != "__init__.py":
            continue
        name = ".".join(path.relative_to(package.parent).with_suffix("").parts)
        name = name.removesuffix(".__init__")
        options = PACKAGE_OPTIONS if path == folder / "__init__.py" else ""
        options = options or (MODULE_OPTIONS if path.name == "__init__.py" else "")
        parts.append(f"::: {name}{options}\n")
    return "\n".join(parts)


def _summary(folder: Path) -> str:
    """Return the first sentence of a package's docstring."""
    text = ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8"))) or ""
    return " ".join(text.split("\n\n")[0].split())
