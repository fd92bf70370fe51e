"""Lock a folder, so that one process at a time writes to it, also across machines.

The kernel locks a file in the folder, and releases the lock when the process ends in any way. The
file names the holder. Some file systems do not show locks to other machines, or have no locks.
Therefore the holder also touches the file every few seconds. A holder on another machine counts as
alive until its file stays untouched for some time.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import sys
import threading
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

LOCK = "run.lock"
PATIENCE = 5.0
"""Seconds to wait for a process that is just ending."""
BEAT = 5.0
"""Seconds between two touches of the lock file."""
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


@dataclass(frozen=True)
class Holder:
    """Process that holds a lock."""

    host: str
    """Name of its machine."""
    pid: int
    """Its process id."""
    since: str
    """Date and time of the lock."""

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since}"

    @property
    def is_local(self) -> bool:
        """Whether the process runs on this machine."""
        return self.host == socket.gethostname()

    def exists(self) -> bool:
        """Check whether another process with this id exists on this machine."""
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:  # process of another user
            return True
        return self.pid != os.getpid()


class FolderLock:
    """Exclusive lock on a folder, between `acquire` and `release`.

    Args:
        folder: The folder.
    """

    def __init__(self, folder: Path):
        self.folder, self.path = folder, folder / LOCK
        self._descriptor = -1
        self._made_folder = False
        self._released = threading.Event()

    def acquire(self) -> None:
        """Lock the folder, and create it if it is missing.

        Raises:
            ValueError: If another process holds the lock; the message names it.
        """
        self._made_folder = not self.folder.exists()
        self.folder.mkdir(parents=True, exist_ok=True)
        deadline = time.monotonic() + PATIENCE
        while not self._take():
            if time.monotonic() > deadline:
                raise ValueError(self._refusal(_read_holder(self.path)))
            time.sleep(0.1)
        now = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
        holder = json.dumps(asdict(Holder(socket.gethostname(), os.getpid(), now)))
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, f"{holder}\n".encode(), 0)
        threading.Thread(target=self._show_life, daemon=True).start()

    def release(self) -> None:
        """Release the lock. Does nothing if it is not held."""
        if self._descriptor < 0:
            return
        self._released.set()
        self.path.unlink(missing_ok=True)
        os.close(self._descriptor)
        self._descriptor = -1
        if self._made_folder:  # remove it if nothing was written to it
            with suppress(OSError):
                self.folder.rmdir()

    def _take(self) -> bool:
        """Open and lock the file; return False if another process holds the lock."""
        descriptor, seen_by_all = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666), True
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return False
        except OSError as error:
            if error.errno not in NO_LOCKS:
                os.close(descriptor)
                raise
            seen_by_all = False
        holder = _read_holder(self.path)
        if not _is_at(descriptor, self.path) or (holder and self._works(holder, seen_by_all)):
            os.close(descriptor)
            return False
        self._descriptor = descriptor
        return True

    def _works(self, holder: Holder, seen_by_all: bool) -> bool:
        """Whether a holder is alive although its kernel lock is not visible."""
        if holder.is_local:
            return not seen_by_all and holder.exists()
        seconds, before = 3 * BEAT, _last_sign(self.path)
        print(
            f"{self.path} is held by {holder}: waiting {seconds:.0f} s to see whether it is alive",
            file=sys.stderr,
        )
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            time.sleep(min(0.5, BEAT))
            if _last_sign(self.path) != before:
                raise ValueError(self._refusal(holder))
        return False

    def _refusal(self, holder: Holder | None) -> str:
        return (
            f"{self.folder} is in use by another run ({holder or 'unknown process'}): choose"
            " another --out, or wait until that run has ended"
        )

    def _show_life(self) -> None:
        while not self._released.wait(BEAT):
            with suppress(OSError):
                os.utime(self._descriptor)


def _read_holder(path: Path) -> Holder | None:
    """Return the holder that a lock file names; None if it is empty or has another format."""
    try:
        holder = Holder(**json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError):
        return None
    return holder if isinstance(holder.pid, int) else None


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether an open file still has this path; a holder removes the file on release."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _last_sign(path: Path) -> int:
    """Return the modification time in ns; opening the file bypasses the attribute cache of NFS."""
    try:
        with path.open("rb") as file:
            return os.fstat(file.fileno()).st_mtime_ns
    except FileNotFoundError:
        return 0
