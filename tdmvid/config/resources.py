"""Find built-in configs, prompts and the embedded teacher by name.

Examples are `cogvideox2b_4nfe`, `videos` and `shapes`. An existing file or folder takes precedence
over a name. An installed package contains the resources; in a clone they are in configs/ and
eval/configs next to the package.

    find_config("cogvideox2b_4nfe")            # -> .../configs/cogvideox2b_4nfe.json
    find_config("runs/shapes_4nfe/config.json")
    find_prompts("videos")                     # -> .../configs/prompts/videos.txt
    find_model("shapes")                       # -> .../tdmvid/shapes/teacher
    find_model("shapes_i2v")                   # -> ~/.cache/tdmvid/shapes_i2v
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from pathlib import Path

from . import embedded

_PACKAGE = Path(__file__).resolve().parents[1]
_CLONE = _PACKAGE.parent


def _folder(installed: str, cloned: str) -> Path:
    """Return a resource folder inside the package or, in a clone, next to it."""
    inside = _PACKAGE / installed
    return inside if inside.is_dir() else _CLONE / cloned


CONFIGS = _folder("configs", "configs")
EVALUATIONS = _folder("configs/evaluation", "eval/configs")
MODELS: dict[str, Callable[[], Path]] = {
    "shapes": embedded.text_teacher,
    "shapes_i2v": embedded.image_teacher,
}
"""Name of an embedded teacher -> function that returns its folder."""


def find_config(name: Path | str) -> Path:
    """Find the config file of a run.

    Args:
        name: Path of a JSON file, or name of a built-in config.

    Returns:
        The path of the file.

    Raises:
        ValueError: If it is neither a file nor a built-in config.
    """
    return _find("config", name, _named(CONFIGS, ".json"))


def find_evaluation(name: Path | str) -> Path:
    """Find the config file of an evaluation.

    Args:
        name: Path of a JSON file, or name of a built-in evaluation config.

    Returns:
        The path of the file.

    Raises:
        ValueError: If it is neither a file nor a built-in config.
    """
    return _find("evaluation config", name, _named(EVALUATIONS, ".json"))


def find_prompts(name: Path | str) -> Path:
    """Find a prompt file.

    Args:
        name: Path of a file, or name of a built-in prompt list.

    Returns:
        The path of the file. Anything else is returned unchanged, and the function that reads it
        reports the error.
    """
    return Path(name) if Path(name).is_file() else _prompt_lists().get(str(name), Path(name))


def list_names() -> list[str]:
    """List the names of the built-in prompt lists.

    Returns:
        The names, sorted.
    """
    return sorted(_prompt_lists())


def find_model(name: str) -> str:
    """Find the folder of an embedded teacher.

    Args:
        name: Name of an embedded teacher, path of a model folder, or hub id.

    Returns:
        The folder of the embedded teacher, also for its path in a clone or an installation that is
        not on this machine. Any other path or hub id is returned unchanged.
    """
    folder = Path(name)
    if folder.parts[-3:] == embedded.TEACHER.parts[-3:] and not folder.exists():
        return str(embedded.TEACHER)
    if name not in MODELS or (folder / "model_index.json").is_file():
        return name
    return str(MODELS[name]())


def find_embedded_size(name: str | None) -> dict[str, int]:
    """Find the size that an embedded teacher was trained on.

    Args:
        name: Name of an embedded teacher, path of a model folder, hub id, or None.

    Returns:
        Frames, height and width; empty for any other model.
    """
    folders = {embedded.TEACHER.resolve(), embedded.image_folder().resolve()}
    return dict(embedded.SIZE) if name and Path(find_model(name)).resolve() in folders else {}


def _prompt_lists() -> dict[str, Path]:
    """Map the names of the built-in prompt lists to their files."""
    ready = _named(CONFIGS / "prompts", ".txt") | _named(EVALUATIONS, ".txt")
    return ready | {"shapes": _PACKAGE / "shapes" / "prompts.txt"}


def _named(folder: Path, suffix: str) -> dict[str, Path]:
    """Map the names of a folder's files, without suffix, to their paths."""
    return {path.name.removesuffix(suffix): path for path in folder.glob(f"*{suffix}")}


def _find(kind: str, name: Path | str, ready: dict[str, Path]) -> Path:
    """Resolve a path or a name to a file; raise a ValueError with suggestions if there is none."""
    if Path(name).is_file():
        return Path(name)
    if found := ready.get(str(name)):
        return found
    if near := difflib.get_close_matches(Path(name).stem, ready, 3):
        raise ValueError(f"{kind} {str(name)!r} does not exist: did you mean {' or '.join(near)}?")
    known = ", ".join(sorted(ready))
    raise ValueError(f"{kind} {str(name)!r} does not exist: use a JSON file or one of {known}")
