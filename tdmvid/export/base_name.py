"""Name a student's base on its model card, without folders of the machine that trained it.

A base in a local folder is called by the folder's name, and code says `path/to/NAME`. The hub id is
known if the run used it, if the folder is a snapshot in a Hugging Face cache, or if the user
stated it (`tdmvid export --hub-base`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from ..config import short
from ..config.data import is_hub_id
from ..config.resources import MODELS

_SNAPSHOT = re.compile(r"(?:.*/)?models--([^/]+?)--([^/]+)/snapshots/([^/]+)/?")


@dataclass(frozen=True)
class BaseName:
    """How a card names the base."""

    title: str
    """Hub id, name of an embedded teacher, or name of the folder."""
    code: str
    """A Python expression that `from_pretrained` takes."""
    hub: str
    """Hub id; "" if it is not known."""
    revision: str | None = None
    """Revision on the hub, if it is known."""
    imports: tuple[str, ...] = ()
    """Lines that the expression needs."""


def name_base(model: Mapping[str, Any]) -> BaseName:
    """Return how to name a base.

    Args:
        model: The `model` of export.json; its `path`, `revision` and `on_hub` count. `on_hub` says
            that `path` is an id of the hub, also if there is a folder of that name.
    """
    path, revision = str(model["path"]), model.get("revision")
    if path in MODELS:
        line = "from tdmvid.config.resources import find_model"
        return BaseName(path, f"find_model({json.dumps(path)})", "", revision, (line,))
    if model.get("on_hub") or on_hub(path):
        return BaseName(path, json.dumps(path), path, revision)
    if snapshot := _SNAPSHOT.fullmatch(PurePath(path).as_posix()):
        owner, name, commit = snapshot.groups()
        return BaseName(f"{owner}/{name}", json.dumps(f"{owner}/{name}"), f"{owner}/{name}", commit)
    name = Path(path).absolute().name
    return BaseName(name, json.dumps(f"path/to/{name}", ensure_ascii=False), "", revision)


def on_hub(path: str) -> bool:
    """Return whether a model's path is OWNER/NAME on the hub, not a folder of this machine."""
    return is_hub_id(path) and not Path(path).is_dir()


def check_hub_base(name: str) -> None:
    """Check the hub id that a user states for a base.

    Args:
        name: What `--hub-base` got.

    Raises:
        ValueError: It is not OWNER/NAME.
    """
    if not is_hub_id(name):
        raise ValueError(
            f"hub-base={short(name)} is not OWNER/NAME: give the base's id on the Hugging Face hub,"
            " e.g. THUDM/CogVideoX-2b"
        )
