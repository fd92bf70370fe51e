"""The Python code of a model card, with the folders that a reader fills in."""

import json
import re
from pathlib import Path


def card_blocks(folder, base=None):
    """Return the Python blocks of a card, without the line that needs a GPU.

    Args:
        folder: The student's folder.
        base: The base's folder; the default is the one in export.json.
    """
    trained = json.loads((Path(folder) / "export.json").read_text())["model"]["path"]
    text = (Path(folder) / "README.md").read_text()
    return [
        re.sub(r"pipe\.to\(.*\n", "", block)
        .replace("path/to/this/folder", str(folder))
        .replace(f'"path/to/{Path(trained).name}"', json.dumps(str(base or trained)))
        for block in re.findall(r"```python\n(.*?)```", text, re.S)
    ]


def run_card(folder, base=None, users=None):
    """Run the first block up to its call, and return the pipeline.

    Args:
        folder: The student's folder.
        base: The base's folder; the default is the one in export.json.
        users: The folder of the user's LoRAs.
    """
    code, scope = card_blocks(folder, base)[0], {}
    if users:
        code = code.replace(f"path/to/{users.name}/", f"{users}/")
    exec(code[: code.rindex("\n", 0, code.rindex("pipe("))], scope)
    return scope["pipe"]
