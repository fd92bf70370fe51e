"""Replace the folders of exports together, or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..adapters.bundle import FACTS, read_facts
from ..data.files import usual_mode


@contextmanager
def replacing(*targets: Path) -> Iterator[Path]:
    """Provide a folder for exports that replace `targets` together, or not at all.

    When the context ends without an error, the folders written in it under the names of `targets`
    take the places of `targets`.

    Args:
        targets: Folders with different names, in one parent folder.

    Yields:
        The folder to write in.

    Raises:
        ValueError: A target contains files that no export wrote. Targets are replaced completely.
    """
    folders = [Path(target).resolve() for target in targets]
    aside, old = (folders[0].with_name(f".{folders[0].name}.{state}") for state in ("part", "old"))
    _put_back(folders, aside, old)
    for folder in folders:
        check_replaceable(folder)
    aside.mkdir(parents=True)
    try:
        yield aside
        for path in filter(Path.is_file, aside.rglob("*")):
            usual_mode(path)
        old.mkdir()
        for folder in filter(Path.exists, folders):
            folder.rename(old / folder.name)
        for folder in folders:
            (aside / folder.name).rename(folder)
    except BaseException:
        _put_back(folders, aside, old)
        raise
    for left in (aside, old):  # in this order: without `aside` there is nothing to undo
        shutil.rmtree(left, ignore_errors=True)


def check_replaceable(folder: Path) -> None:
    """Check that a folder is missing, empty, or contains only files of an earlier export.

    Args:
        folder: Folder that an export would replace.

    Raises:
        ValueError: It contains other files.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not (folder / FACTS).is_file():
        raise ValueError(
            f"{folder} exists and is not an export (it has no {FACTS}): choose another --out,"
            " because an export replaces the whole folder"
        )
    written = {FACTS, *read_facts(folder).get("files", [])}
    foreign = sorted(
        name
        for path in folder.rglob("*")
        if path.is_file() and (name := path.relative_to(folder).as_posix()) not in written
    )
    if foreign:
        raise ValueError(
            f"{folder} contains {len(foreign)} files that no export wrote, e.g. {foreign[0]!r}:"
            " move them or choose another --out, because an export replaces the whole folder"
        )


def _put_back(folders: list[Path], aside: Path, old: Path) -> None:
    """Undo a replacement that an error or a kill interrupted, and clean up."""
    for folder in folders if aside.exists() and old.exists() else ():
        begun = not (aside / folder.name).exists() or (old / folder.name).exists()
        if begun:  # replaced, or about to be replaced
            shutil.rmtree(folder, ignore_errors=True)
        if (old / folder.name).exists():
            (old / folder.name).rename(folder)
    for left in (aside, old):
        shutil.rmtree(left, ignore_errors=True)
