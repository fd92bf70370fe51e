"""Turn a notebook with its outputs into a page."""

from __future__ import annotations

import base64
import json
from pathlib import Path

PICTURES = {"image/png": "png", "image/jpeg": "jpg", "image/webp": "webp", "image/gif": "gif"}


def notebook_page(path: Path, uri: str) -> dict[str, str | bytes]:
    """Return the page and its pictures by their places in the site.

    Args:
        path: The notebook, executed.
        uri: The place of the page.
    """
    stem = uri.removesuffix(".md")
    files: dict[str, str | bytes] = {}
    parts = []
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        for output in cell["outputs"]:
            data = output.get("data", {})
            kind = next((kind for kind in PICTURES if kind in data), None)
            if kind:
                name = f"{stem}_{len(files)}.{PICTURES[kind]}"
                files[name] = base64.b64decode("".join(data[kind]))
                text = "".join(data.get("text/plain", ["picture"])).replace("\n", " ")
                parts.append(f"![{text}]({name.rpartition('/')[2]})")
            elif text := "".join(output.get("text", data.get("text/plain", []))):
                parts.append(f"```text\n{text.rstrip()}\n```")
    files[uri] = "\n\n".join(parts) + "\n"
    return files
