"""What a user does with a finished run: load its student, run its commands again, open its files.

Links are relative, so they work while the page lies in the run's folder.
"""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from ..adapters.bundle import FACTS, STUDENT_FOLDERS
from ..config.embedded import TEACHER
from ..config.json_files import read_json
from . import plots

_PLACE = "path/to/this/folder"
"""What a card calls the folder of its student."""
_KEPT = {
    "config.json": "every setting of the run",
    "metrics.jsonl": "the numbers of the plots, one line per step",
    "tensorboard": "the same numbers for TensorBoard",
    "guard.json": "every comparison of the student with its teacher",
    "samples": "samples of the student during training",
    "gallery": "the videos and images of this page",
    "scores.json": "the scores of a student and of other samplers",
    "vbench/results.html": "VBench: the best and the worst pairs",
    "images/results.html": "image metrics: the best and the worst pairs",
    "checkpoints": "states from which training can be resumed",
}
"""What a run writes, and what it is."""


@dataclass(frozen=True)
class Link:
    """A file or folder of the run."""

    href: str
    name: str
    text: str


@dataclass(frozen=True)
class Snippet:
    """Code or a command to copy, and what it does."""

    what: str
    text: str


@dataclass(frozen=True)
class Export:
    """The student of a run, as it was exported and checked."""

    kind: str
    """"LoRA" or "student"."""
    passed: bool
    error: str
    tolerance: str
    files: list[Link]
    code: list[Snippet]


def find_student(out: Path) -> Path:
    """Return the folder of the run's student; that of a LoRA if it has none yet."""
    folders = [out / name for name in STUDENT_FOLDERS.values()]
    return next((folder for folder in folders if (folder / FACTS).is_file()), folders[0])


def read_export(out: Path) -> Export | None:
    """Return what a run's student is and how it is loaded; None if nothing was exported."""
    folder = find_student(out)
    if not (folder / FACTS).is_file():
        return None
    facts = read_json(folder / FACTS)
    names = [str(name) for name in facts.get("files", []) if str(name).endswith(".safetensors")]
    return Export(
        kind="LoRA" if folder.name == STUDENT_FOLDERS["lora"] else "student",
        passed=facts["error"] <= facts["tolerance"],
        error=plots.short(facts["error"]),
        tolerance=plots.short(facts["tolerance"]),
        files=[
            _link(out, f"{folder.name}/{name}", _size(folder / name))
            for name in names
            if (folder / name).is_file()
        ],
        code=_code(folder),
    )


def _code(folder: Path) -> list[Snippet]:
    """The code of the student's card, with the folder filled in."""
    card = folder / "README.md"
    if not card.is_file():
        return []
    blocks = re.findall(r"^```python\n(.*?)\n```$", card.read_text(encoding="utf-8"), re.M | re.S)
    place = str(folder).replace("\\", "/").replace('"', '\\"')
    base = str(read_json(folder / FACTS).get("model", {}).get("path", ""))
    return [
        Snippet(
            "Python, with tdmvid installed" if "import load_pipeline" in block else "Python",
            block.replace(_PLACE, place).replace(f'"path/to/{Path(base).name}"', json.dumps(base)),
        )
        for block in blocks
    ]


def commands(out: Path, config: dict | None, recorded: list[dict], images: bool) -> list[Snippet]:
    """Return the commands that train, score, sample, try and export the run again.

    Args:
        out: the run's folder.
        config: its config.json.
        recorded: its commands.json.
        images: whether samples start from an image.
    """
    shown = [Snippet(str(item["what"]), str(item["command"])) for item in recorded]
    if not config or "video" not in config:
        return shown
    student = out / STUDENT_FOLDERS[config.get("training", "lora")]
    export = shlex.join(["tdmvid", "export", "--run", str(out)])
    if not (student / FACTS).is_file():
        kept = any((out / "checkpoints").glob("step_*"))
        return [*shown, Snippet("export the newest checkpoint", export)] if kept else shown
    if not any(item.what == "score" for item in shown):
        shown.append(Snippet("score", score_command(out, config, recorded)))
    words = ["tdmvid", "sample", "--lora", str(student), "--prompts", "prompts.txt"]
    what = "sample; prompts.txt has one prompt on each line"
    if images:
        words += ["--images", "stills"]
        what += ", stills/ one image for each prompt in the order of their names"
    shown.append(Snippet(what, shlex.join([*words, "--out", str(out / "videos")])))
    words = ["tdmvid", "playground", "--lora", str(student)]
    shown.append(Snippet("try it beside its teacher, in a browser", shlex.join(words)))
    shown.append(Snippet("export; --format adds files for other programs", export))
    return shown


EMBEDDED = ("shapes", "shapes_i2v")
"""Names of the embedded teachers, whose judge `tdmvid score shapes` uses."""


def score_command(out: Path, config: dict | None, recorded: list[dict]) -> str:
    """Return the command that scores a run; "" for what is no run's folder."""
    for item in recorded:
        if item["what"] == "score":
            return str(item["command"])
    if not config or "video" not in config:
        return ""
    if config.get("model", {}).get("path") in (*EMBEDDED, str(TEACHER)):
        return shlex.join(["tdmvid", "score", "shapes", "--run", str(out)])
    program = "images" if config["video"].get("frames") == 1 else "vbench"
    student = STUDENT_FOLDERS[config.get("training", "lora")]
    return shlex.join(["tdmvid", "score", program, "--lora", str(out / student)])


def links(out: Path) -> list[Link]:
    """Return the files and folders that a run has written, its student first."""
    student = find_student(out)
    students = sorted(
        path.parent.name for path in out.glob(f"{student.name}*/{FACTS}") if path.is_file()
    )
    found = dict.fromkeys(students, "the exported student, with its card") | _KEPT
    return [_link(out, name, text) for name, text in found.items() if (out / name).exists()]


def _link(out: Path, name: str, text: str) -> Link:
    shown = f"{name}/" if (out / name).is_dir() else name
    return Link(quote(shown), shown, text)


def _size(path: Path) -> str:
    size = path.stat().st_size
    return f"{size / 2**20:.1f} MiB" if size >= 2**20 else f"{size / 2**10:.1f} KiB"
