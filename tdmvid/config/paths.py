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
