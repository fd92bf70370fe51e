"""The embedded teachers: `shapes`, and its image-to-video version `shapes_i2v`.

`shapes` is a folder of the package. `shapes_i2v` is made on demand by `python -m
examples.shapes.make_teacher --stage image`, which writes its folder to the user's cache folder.
"""

from __future__ import annotations

import os
from pathlib import Path

SIZE = {"frames": 9, "height": 64, "width": 64}
"""Size of the videos that both were trained on."""
TEACHER = Path(__file__).resolve().parents[1] / "shapes" / "teacher"


def text_teacher() -> Path:
    """Return the folder of the embedded text-to-video teacher."""
    return TEACHER


def image_folder() -> Path:
    """Return the place of the embedded image-to-video teacher, which may not exist.

    It is `tdmvid/shapes_i2v` in `$XDG_CACHE_HOME` or `~/.cache`.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "tdmvid" / "shapes_i2v"


def image_teacher() -> Path:
    """Return the folder of the embedded image-to-video teacher.

    Raises:
        ValueError: It was not made yet.
    """
    folder = image_folder()
    if not (folder / "model_index.json").is_file():
        raise ValueError(
            f"model.path=shapes_i2v: {folder} does not exist: make it with `python -m"
            " examples.shapes.make_teacher --stage image` in a clone"
        )
    return folder
