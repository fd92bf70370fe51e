"""The documentation site's own code: links that leave docs/, and the page of a notebook."""

import base64
import json
import re
from pathlib import Path

import pytest
import yaml
from api_pages import api_pages
from links import Links
from markup import escape
from notebook_page import notebook_page

ROOT = Path(__file__).resolve().parents[1]
LINKS = Links(ROOT, {"CONTRIBUTING.md": "contributing.md", "benchmarks/NOTES.md": "benchmarks.md"})


@pytest.mark.parametrize(
    "source, page, link, becomes",
    [
        ("docs/scaling.md", "scaling.md", "../benchmarks/NOTES.md#links", "benchmarks.md#links"),
        ("docs/a/b.md", "a/b.md", "../../CONTRIBUTING.md", "../contributing.md"),
        ("CONTRIBUTING.md", "contributing.md", "docs/flows.md", "flows.md"),
        ("docs/slurm.md", "slurm.md", "../setup.py", "files/setup.py"),
        ("docs/slurm.md", "slurm.md", "scaling.md", "scaling.md"),
        ("docs/slurm.md", "slurm.md", "https://arxiv.org/abs/1", "https://arxiv.org/abs/1"),
        ("docs/slurm.md", "slurm.md", "../nothing.py", "../nothing.py"),
    ],
)
def test_a_link_leads_to_its_page_or_file_of_the_site(source, page, link, becomes):
    text = f"see [this]({link})\n\n```\nx[0]({link})\n```\n"
    assert LINKS.rewrite(text, source=source, page=page) == text.replace(link, becomes, 1)


def test_code_keeps_its_characters_and_text_loses_its_markup():
    assert escape("a_b*c <d> `e_f*g` [h]") == r"a\_b\*c \<d\> `e_f*g` \[h\]"


def test_a_notebook_becomes_a_page_with_its_pictures(tmp_path):
    picture = base64.b64encode(b"png").decode()
    cells = [
        {"cell_type": "markdown", "source": ["# Title\n", "text"]},
        {
            "cell_type": "code",
            "source": "print(1)",
            "outputs": [
                {"output_type": "stream", "text": ["1\n"]},
                {"output_type": "display_data", "data": {"image/png": picture}},
            ],
        },
    ]
    (tmp_path / "n.ipynb").write_text(json.dumps({"cells": cells}))
    files = notebook_page(tmp_path / "n.ipynb", "guide/n.md")
    assert files["guide/n_0.png"] == b"png"
    assert files["guide/n.md"] == (
        "# Title\ntext\n\n```python\nprint(1)\n```\n\n```text\n1\n```\n\n![picture](n_0.png)\n"
    )


def test_the_navigation_names_every_page():
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    named = set(re.findall(r"[\w/.]+\.md\b", json.dumps(yaml.safe_load(text)["nav"])))
    written = {
        str(path.relative_to(ROOT / "docs"))
        for path in (ROOT / "docs").rglob("*.md")
        if "hooks" not in path.parts
    }
    assert written <= named
    assert api_pages(ROOT / "tdmvid").keys() <= named
