"""Files that are there whole or not at all, whatever kills the process, and their hash."""

from __future__ import annotations

import hashlib
import json
import os
import re
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ..config.rules import short as short

PART = ".part"
_PARTS = re.compile(r"\.[0-9a-f]{8}\.part(\.\w+)?")
LARGE_FILE = 64 << 20
"""Bytes of a file whose hash is kept, as reading it takes a while."""
_UMASK = os.umask(0o077)  # there is no reading it without setting it
os.umask(_UMASK)


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary sibling to write, which becomes `path` when the block ends without an error.

    It keeps the suffix, by which many writers choose their format; its name has PART in it,
    so that a reader of the folder can tell what a killed process left. Missing parent folders
    are made. On an error the sibling is removed and an older `path` stays as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Without the stem: videos are named by their prompts, close to the longest name allowed.
    part = path.parent / f".{uuid.uuid4().hex[:8]}{PART}{path.suffix}"
    try:
        yield part
        usual_mode(part)
        _fsync(part)
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    _fsync(path.parent)  # the rename itself is on disk only after this


def remove_parts(folder: Path) -> None:
    """Remove the files that killed processes left of `atomic_path`; nobody may write there now."""
    for path in folder.glob(f".*{PART}*"):
        if _PARTS.fullmatch(path.name) and path.is_file():
            path.unlink(missing_ok=True)


def usual_mode(path: Path) -> None:
    """Whoever may read what `open` writes may read this file too: safetensors makes its files for
    their owner alone.
    """
    with suppress(OSError):  # some file systems have no modes
        path.chmod(0o666 & ~_UMASK)


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8 text, atomically."""
    with atomic_path(path) as part:
        part.write_text(text, encoding="utf-8")


def write_json(path: Path, obj: Any) -> None:
    """Writes indented JSON, atomically; raises TypeError for what JSON cannot hold."""
    write_text(path, json.dumps(obj, indent=2, ensure_ascii=False) + "\n")


def write_files(files: Mapping[Path, bytes]) -> None:
    """Writes new files one by one, each down to the disk, and their folders; what makes the set of
    them whole is the caller's.
    """
    for path, data in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        _fsync(path)


def sort_metadata(path: Path) -> None:
    """Put the metadata of a safetensors file in order: the library writes them in another one in
    every process, so that equal students had different files.
    """
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header.get("__metadata__", {}).items()))
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        assert len(text) <= length, f"{path}: the header is not as compact as safetensors writes it"
        file.seek(8)
        file.write(text.ljust(length))


def file_fingerprint(paths: list[Path], *extra: str) -> str:
    """Return a short hash of files (their names and whole content) and of strings.

    Large files are read once: their hashes are kept in the user's cache folder, by place, size and
    times.
    """
    digest = hashlib.sha256("\0".join(extra).encode())
    paths = sorted(paths)
    kept = _read_digests() if any(_is_large(path) for path in paths) else {}
    known = len(kept)
    for path in paths:
        digest.update(f"{path.name}/{_content(path, kept)}".encode())
    if len(kept) > known:
        with suppress(OSError):  # a home that is read-only or full costs time alone
            write_json(_digests_path(), kept)
    return digest.hexdigest()[:24]


def _content(path: Path, kept: dict[str, str]) -> str:
    """The SHA-256 of a file, from `kept` where it is large and known; new ones are added."""
    status = path.stat()
    # The time of the last change of status moves with every write, and no program sets it.
    state = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    key = f"{path.resolve()} {' '.join(map(str, state))}"
    if key in kept:
        return kept[key]
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if _is_large(path):
        kept[key] = found
    return found


def _is_large(path: Path) -> bool:
    return path.stat().st_size >= LARGE_FILE


def _digests_path() -> Path:
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "tdmvid" / "digests.json"


def _read_digests() -> dict[str, str]:
    """The hashes kept so far; none where they cannot be read."""
    try:
        kept = json.loads(_digests_path().read_text(encoding="utf-8"))
    except (OSError, ValueError, RuntimeError):  # not there, damaged, no home
        return {}
    return kept if isinstance(kept, dict) else {}


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
