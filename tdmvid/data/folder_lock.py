"""A folder that one process at a time writes to, on one machine or on several that share it.

The kernel holds the lock on a file in the folder and lets it go when the process ends, however it
ends. The file names the holder. Some file systems show no lock to other machines, or have none at
all: so the holder also touches the file every few seconds, and one from another machine counts
until it is seen to be left alone.
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
"""Seconds that a process which was just ended may take to leave."""
BEAT = 5.0
"""Seconds between two signs of life."""
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


@dataclass(frozen=True)
class Holder:
    """A process that holds a lock."""

    host: str
    pid: int
    since: str

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since}"

    @property
    def is_local(self) -> bool:
        """Whether it runs on this machine."""
        return self.host == socket.gethostname()

    def exists(self) -> bool:
        """Return whether this machine has such a process."""
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:  # of another user
            return True
        return self.pid != os.getpid()


class FolderLock:
    """Keep other processes out of a folder between `acquire` and `release`."""

    def __init__(self, folder: Path):
        self.folder, self.path = folder, folder / LOCK
        self._descriptor = -1
        self._made_folder = False
        self._released = threading.Event()

    def acquire(self) -> None:
        """Lock the folder, which is made if it is missing.

        Raises:
            ValueError: If another process holds it; the message says which.
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
        """Let others in; harmless if it is not held."""
        if self._descriptor < 0:
            return
        self._released.set()
        self.path.unlink(missing_ok=True)
        os.close(self._descriptor)
        self._descriptor = -1
        if self._made_folder:  # and nothing was written
            with suppress(OSError):
                self.folder.rmdir()

    def _take(self) -> bool:
        """Open and lock the file; False if another process has it."""
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
        """Whether a holder whose lock is not seen is at work all the same."""
        if holder.is_local:
            return not seen_by_all and holder.exists()
        seconds, before = 3 * BEAT, _last_sign(self.path)
        print(f"{self.path} names {holder}: waiting {seconds:.0f} s for a sign", file=sys.stderr)
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            time.sleep(min(0.5, BEAT))
            if _last_sign(self.path) != before:
                raise ValueError(self._refusal(holder))
        return False

    def _refusal(self, holder: Holder | None) -> str:
        return (
            f"{self.folder} is in use by another run ({holder or 'which did not say who it is'}):"
            " choose another --out, or wait until that run has ended"
        )

    def _show_life(self) -> None:
        while not self._released.wait(BEAT):
            with suppress(OSError):
                os.utime(self._descriptor)


def _read_holder(path: Path) -> Holder | None:
    """Who a lock's file names; None if it is empty or not of ours."""
    try:
        holder = Holder(**json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError):
        return None
    return holder if isinstance(holder.pid, int) else None


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether an open file still has its name: a holder that leaves removes it."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _last_sign(path: Path) -> int:
    """When a file was touched, asked of the server: opening it passes by what NFS remembers."""
    try:
        with path.open("rb") as file:
            return os.fstat(file.fileno()).st_mtime_ns
    except FileNotFoundError:
        return 0
