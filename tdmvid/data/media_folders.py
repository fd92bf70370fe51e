"""List the videos and images in a folder."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from .files import check_names, short

VIDEOS = {".mp4", ".m4v", ".mov", ".qt", ".mkv", ".webm", ".avi", ".gif", ".flv", ".mxf", ".dv"}
VIDEOS |= {".mpg", ".mpeg", ".vob", ".ts", ".mts", ".m2ts", ".3gp", ".3g2", ".wmv", ".asf", ".ogv"}
IMAGES = {".png", ".apng", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".tif", ".tiff", ".avif"}
SHOWN_FILES = 3
"""Largest number of files that a message names."""


def media_files(folder: Path, kinds: set[str], *, listed: Iterable[str] = ()) -> list[Path]:
    """List the files of some types in a folder and its subfolders.

    Links to folders are followed; hidden files and folders are skipped.

    Args:
        folder: The folder.
        kinds: Suffixes in lower case, e.g. {".mp4"}.
        listed: Names of files in the folder that are not skipped if they are hidden, e.g. those in
            its manifest.

    Returns:
        The files, sorted by name.

    Raises:
        ValueError: If the folder does not exist, there are no such files, or a name is not UTF-8.
    """
    found, others = split_files(folder, kinds)
    named = (Path(folder) / name for name in listed if name.startswith("."))
    hidden = {path for path in named if path.parent == Path(folder) and path.is_file()}
    found = sorted({*found, *(path for path in hidden if path.suffix.lower() in kinds)})
    if not found:
        there = f"; it contains {name_files(folder, others)}" if others else ""
        raise ValueError(
            f"{str(folder)!r} contains no {_name_kinds(kinds)}{there}: use another folder"
        )
    check_names(folder, found)
    return found


def _name_kinds(kinds: set[str], plural: str = "") -> str:
    """Return what files of these types are, because a list of all types hides the cause."""
    names = {"video": VIDEOS, "image": IMAGES}
    return " or ".join(f"{name}{plural}" for name, known in names.items() if kinds & known)


def split_files(folder: Path, kinds: set[str]) -> tuple[list[Path], list[Path]]:
    """List the files in a folder and its subfolders, split by type.

    Hidden files and folders are skipped.

    Args:
        folder: The folder.
        kinds: Suffixes in lower case, e.g. {".mp4"}.

    Returns:
        Files with these suffixes, and all other files, each sorted by name.

    Raises:
        ValueError: If the folder does not exist, or a folder or link in it leads nowhere or cannot
            be read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(
            f"{str(folder)!r} is not a folder: use one that contains {_name_kinds(kinds, 's')}"
        )
    found: list[Path] = []
    others: list[Path] = []
    broken: list[Path] = []
    for path in _walk(folder):
        wanted = path.suffix.lower() in kinds
        if path.is_file():
            (found if wanted else others).append(path)
        elif wanted and path.is_symlink():
            broken.append(path)
    if broken:
        raise ValueError(
            f"{str(folder)!r} has links to files that do not exist, {name_files(folder, broken)}:"
            " restore the files, or remove the links"
        )
    return sorted(found), sorted(others)


def _walk(folder: Path) -> Iterator[Path]:
    """Yield all entries but folders, each folder once, without hidden ones."""
    seen: set[str] = set()
    for root, folders, names in os.walk(folder, followlinks=True, onerror=_raise):
        if (real := os.path.realpath(root)) in seen:  # a link to a folder that was already visited
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(root) / name for name in names if not name.startswith("."))


def _raise(error: OSError) -> None:
    raise ValueError(
        f"{error.filename!r} cannot be read ({error.strerror}): permit it to your user, or move it"
        " out of this folder"
    )


def name_files(folder: Path, files: list[Path]) -> str:
    """Describe files for a message, e.g. "2 files: 'a', 'b'".

    Args:
        folder: Folder that names are relative to.
        files: The files.

    Returns:
        Their number, and the first `SHOWN_FILES` names.
    """
    shown = ", ".join(short(str(path.relative_to(folder))) for path in files[:SHOWN_FILES])
    more = f", and {len(files) - SHOWN_FILES:,} more" if len(files) > SHOWN_FILES else ""
    return f"{len(files):,} file{'s' * (len(files) != 1)}: {shown}{more}"
