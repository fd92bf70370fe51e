"""Find configs, prompts and the embedded teacher by name: `cogvideox2b_4nfe`, `videos`, `shapes`.

A file or folder that exists wins over a name. The resources lie inside an installed package; in a
clone, configs/ and eval/configs are beside it.

    find_config("cogvideox2b_4nfe")            # -> .../configs/cogvideox2b_4nfe.json
    find_config("runs/shapes_4nfe/config.json")
    find_prompts("videos")                     # -> .../configs/prompts/videos.txt
    find_model("shapes")                       # -> .../tdmvid/shapes/teacher
"""

from __future__ import annotations

import difflib
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]
_CLONE = _PACKAGE.parent


def _folder(installed: str, cloned: str) -> Path:
    """Return a folder of resources, inside the package or beside it."""
    inside = _PACKAGE / installed
    return inside if inside.is_dir() else _CLONE / cloned


CONFIGS = _folder("configs", "configs")
EVALUATIONS = _folder("configs/evaluation", "eval/configs")
MODELS = {"shapes": _PACKAGE / "shapes" / "teacher"}
"""The embedded teachers."""


def find_config(name: Path | str) -> Path:
    """Return the file of a run's config, given its path or the name of a ready one.

    Raises:
        ValueError: it is neither a file nor a ready config.
    """
    return _find("config", name, _named(CONFIGS, ".json"))


def find_evaluation(name: Path | str) -> Path:
    """Return the file of an evaluation's config, given its path or the name of a ready one.

    Raises:
        ValueError: it is neither a file nor a ready config.
    """
    return _find("evaluation config", name, _named(EVALUATIONS, ".json"))


def find_prompts(name: Path | str) -> Path:
    """Return a file of prompts, given its path or the name of a ready list.

    A path that does not exist is returned as it is: its reader says what is wrong.
    """
    ready = _named(CONFIGS / "prompts", ".txt") | _named(EVALUATIONS, ".txt")
    ready["shapes"] = _PACKAGE / "shapes" / "prompts.txt"
    return Path(name) if Path(name).is_file() else ready.get(str(name), Path(name))


def find_model(name: str) -> str:
    """Return the folder of an embedded teacher, given its name; another path or hub id as it is."""
    folder = MODELS.get(name)
    return name if folder is None or (Path(name) / "model_index.json").is_file() else str(folder)


def _named(folder: Path, suffix: str) -> dict[str, Path]:
    """Return the files of a folder by the names that a user gives."""
    return {path.name.removesuffix(suffix): path for path in folder.glob(f"*{suffix}")}


def _find(kind: str, name: Path | str, ready: dict[str, Path]) -> Path:
    """Return the file that a path or a name means."""
    if Path(name).is_file():
        return Path(name)
    if found := ready.get(str(name)):
        return found
    if near := difflib.get_close_matches(Path(name).stem, ready, 3):
        raise ValueError(f"{kind} {str(name)!r} does not exist: did you mean {' or '.join(near)}?")
    known = ", ".join(sorted(ready))
    raise ValueError(f"{kind} {str(name)!r} does not exist: give a JSON file or one of {known}")
