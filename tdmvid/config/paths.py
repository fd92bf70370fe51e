"""Settings and options that name a file or folder: `~` at their beginning is the home folder.

A shell expands `~` only at the beginning of a word, so it leaves `--out=~/runs` as it is.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

PathText = Annotated[str, "path"]
"""Type of a setting that names a file or folder. `parse.from_dict` expands `~` in its value."""


def expand_home(text: str) -> str:
    """Replace `~` or `~user` at the beginning of a path by the home folder, as a shell does.

    Args:
        text: A path, or the name of a resource or hub repository.

    Returns:
        The path with the home folder. Any other text, and the name of an unknown user, unchanged.
    """
    return os.path.expanduser(text)


def home_path(text: str) -> Path:
    """Make a path, with `~` or `~user` at its beginning replaced by the home folder.

    Args:
        text: The path.

    Returns:
        The path.
    """
    return Path(expand_home(text))


def find_run_config(run: Path) -> Path:
    """Find the config of a run.

    Args:
        run: The run's folder.

    Returns:
        Its config.json.

    Raises:
        ValueError: It is not a run folder. The message names the run folder that contains it.
    """
    if _is_run(run):
        return run / "config.json"
    place = run.resolve() if ".." in run.parts or not run.name else run
    for above in list(place.parents)[:2]:  # of lora/, and of checkpoints/step_000500/
        if _is_run(above):
            raise ValueError(f"{run} is not a run folder, but in one: use {above}")
    raise ValueError(
        f"{run} is not a run folder (no config.json of a run): use a folder that `tdmvid train`"
        " wrote, e.g. runs/shapes_4nfe"
    )


def _is_run(folder: Path) -> bool:
    """Return whether a folder has the config of a run, not that of a diffusers network."""
    file = folder / "config.json"
    return file.is_file() and '"_class_name"' not in file.read_text("utf-8", errors="replace")
