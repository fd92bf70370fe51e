"""Write files atomically, so that a killed process leaves no partial file, and hash files."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ..config.rules import is_text
from ..config.rules import short as short
from .progress import progress

PART = ".part"
_PARTS = re.compile(r"\.[0-9a-f]{8}\.part(\.\w+)?")
NO_FSYNC = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)
"""Errors of file systems that cannot flush folders."""
LARGE_FILE = 64 << 20
"""Size in bytes from which the hash of a file is cached, because reading it takes a while."""
_UMASK = os.umask(0o077)  # the umask can only be read by setting it
os.umask(_UMASK)


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Write a file atomically: yield a temporary file that replaces `path` at the end of the block.

    The temporary file is in the same folder. It has the suffix of `path`, because many writers
    choose their format by suffix. Its name contains PART, which identifies leftovers of killed
    processes. Missing parent folders are created. After an error, the temporary file is removed and
    an existing `path` is unchanged.

    Args:
        path: File to write.

    Yields:
        The temporary file.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Without the stem, because names of videos contain prompts and can be close to the limit.
    part = path.parent / f".{uuid.uuid4().hex[:8]}{PART}{path.suffix}"
    try:
        yield part
        usual_mode(part)
        sync(part)
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    sync(path.parent)  # writes the rename to disk


def check_names(folder: Path, files: Sequence[Path]) -> None:
    """Check that the names of files in a folder can be written to texts, e.g. to a manifest.

    Args:
        folder: The folder.
        files: Files in it or in its subfolders.

    Raises:
        ValueError: If names are not UTF-8.
    """
    names = [str(path.relative_to(folder)) for path in files]
    wrong = [name for name in names if not is_text(name)]
    if wrong:
        raise ValueError(
            f"{str(folder)!r}: {len(wrong):,} of {len(names):,} file names are not UTF-8, e.g."
            f" {short(wrong[0])}: rename {'it' if len(wrong) == 1 else 'them'}"
        )


def why_unwritable(folder: Path) -> str:
    """Find out whether files can be created in a folder, or the folder itself if it is missing.

    Args:
        folder: The folder. It is not created.

    Returns:
        The reason why not, e.g. "Permission denied"; empty if they can.
    """
    place = Path(folder).absolute()
    while not os.path.lexists(place):
        place = place.parent
    try:
        with tempfile.TemporaryFile(dir=place):
            return ""
    except OSError as error:
        return error.strerror or str(error)


def check_writable(folder: Path, setting: str) -> None:
    """Check that files can be created in a folder, which may be missing, before long work starts.

    Args:
        folder: The folder.
        setting: Name of the setting or option, for the message.

    Raises:
        ValueError: If no file can be created.
    """
    if reason := why_unwritable(folder):
        raise ValueError(
            f"{setting}={str(folder)!r} cannot be written ({reason}): choose another folder"
        )


def remove_parts(folder: Path) -> None:
    """Remove temporary files of `atomic_path` that killed processes left behind.

    No process may be writing to the folder.

    Args:
        folder: The folder.
    """
    for path in folder.glob(f".*{PART}*"):
        if _PARTS.fullmatch(path.name) and path.is_file():
            path.unlink(missing_ok=True)


def usual_mode(path: Path) -> None:
    """Set the permissions of a file to those that `open` gives; safetensors allows only the owner.

    Args:
        path: The file.
    """
    with suppress(OSError):  # some file systems have no modes
        path.chmod(0o666 & ~_UMASK)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically.

    Args:
        path: File to write.
        text: Its content.
    """
    with atomic_path(path) as part:
        part.write_text(text, encoding="utf-8")


def write_json(path: Path, obj: Any) -> None:
    """Write indented JSON atomically.

    Args:
        path: File to write.
        obj: JSON value.

    Raises:
        TypeError: If the value is not representable in JSON.
    """
    write_text(path, json.dumps(obj, indent=2, ensure_ascii=False) + "\n")


def write_files(files: Mapping[Path, bytes]) -> None:
    """Write new files one by one, create their folders, and flush each file to disk.

    The set of files is not written atomically; the caller must mark it as complete.

    Args:
        files: Path -> content.
    """
    for path, data in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        sync(path)


def sort_metadata(path: Path) -> None:
    """Sort the metadata of a safetensors file in place.

    The library writes metadata in a different order in every process. Sorting makes the files of
    equal students identical.

    Args:
        path: The safetensors file.
    """
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header.get("__metadata__", {}).items()))
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        assert len(text) <= length, f"{path}: the header is not as compact as safetensors writes it"
        file.seek(8)
        file.write(text.ljust(length))


def file_fingerprint(paths: list[Path], *extra: str, named: bool = True) -> str:
    """Compute a short hash of files (names and content) and strings.

    Hashes of large files are cached in the user's cache folder by path, size and times, so a large
    file is read only once.

    Args:
        paths: The files, in any order.
        *extra: Strings to include.
        named: Whether names count, or content alone.

    Returns:
        24 hexadecimal digits.
    """
    digest = hashlib.sha256("\0".join(extra).encode())
    paths = sorted(paths)
    kept = _read_digests() if any(_is_large(path) for path in paths) else {}
    known = len(kept)
    with progress("reading model files", total=len(paths), unit="file") as bar:
        for path in paths:
            digest.update(f"{path.name if named else ''}/{_content(path, kept)}".encode())
            bar.update()
    if len(kept) > known:
        # A full, read-only or missing home only means that files are read again.
        with suppress(OSError, RuntimeError):
            write_json(_digests_path(), kept)
    return digest.hexdigest()[:24]


def _content(path: Path, kept: dict[str, str]) -> str:
    """Return the SHA-256 of a file; hashes of large files are looked up in and added to `kept`."""
    status = path.stat()
    # ctime changes with every write, and programs cannot set it.
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
    """Return the cached hashes, or {} if they cannot be read."""
    try:
        kept = json.loads(_digests_path().read_text(encoding="utf-8"))
    except (OSError, ValueError, RuntimeError):  # missing, damaged, or no home folder
        return {}
    return kept if isinstance(kept, dict) else {}


def sync(path: Path) -> None:
    """Flush a file, or the entries of a folder, to disk.

    Args:
        path: The file or folder. Some file systems cannot flush folders; that is no error.

    Raises:
        OSError: It could not be written.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not (path.is_dir() and error.errno in NO_FSYNC):
            raise
    finally:
        os.close(descriptor)
