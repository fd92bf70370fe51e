"""One process at a time uses a folder, and ended processes hold no lock."""

import errno
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from refusals import refused

from tdmvid.data import folder_lock
from tdmvid.data.folder_lock import LOCK, FolderLock

HOLD = """
import sys, time
from pathlib import Path
from tdmvid.data.folder_lock import FolderLock
lock = FolderLock(Path(sys.argv[1]))
lock.acquire()
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(folder_lock, "PATIENCE", 0.2)
    monkeypatch.setattr(folder_lock, "BEAT", 0.2)


def assert_free(folder: Path) -> None:
    lock = FolderLock(folder)
    lock.acquire()
    lock.release()


def name_holder(folder: Path, host: str, pid: int) -> None:
    folder.mkdir(exist_ok=True)
    (folder / LOCK).write_text(json.dumps({"host": host, "pid": pid, "since": "yesterday"}))


def test_a_second_process_is_told_who_holds_it_until_that_one_is_killed(tmp_path):
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"held\n"
        holder = json.loads((tmp_path / LOCK).read_text())
        with refused(tmp_path, process.pid, holder["host"], holder["since"], "--out"):
            FolderLock(tmp_path).acquire()
        process.kill()
    assert (tmp_path / LOCK).exists()
    assert_free(tmp_path)


def test_a_lock_that_is_let_go_leaves_nothing_behind(tmp_path):
    assert_free(tmp_path / "new")
    assert_free(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_who_waited_for_a_lock_that_went_does_not_share_the_next_one(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_lock, "PATIENCE", 30.0)
    first, second, third = (FolderLock(tmp_path) for _ in range(3))
    first.acquire()
    waiting = threading.Thread(target=second.acquire)
    waiting.start()
    time.sleep(0.05)
    first.release()
    waiting.join()
    monkeypatch.setattr(folder_lock, "PATIENCE", 0.2)
    with refused(tmp_path, os.getpid()):
        third.acquire()
    second.release()


@pytest.mark.parametrize("alive", [True, False])
def test_a_holder_on_another_machine_counts_while_it_shows_life(tmp_path, alive):
    """Its kernel lock is not visible on this machine."""
    name_holder(tmp_path, "elsewhere", 1)
    stop = threading.Event()

    def show_life():
        while not stop.wait(0.05):
            os.utime(tmp_path / LOCK)

    thread = threading.Thread(target=show_life)
    if not alive:
        assert_free(tmp_path)
        return
    thread.start()
    try:
        with refused(tmp_path, "elsewhere", "yesterday"):
            FolderLock(tmp_path).acquire()
    finally:
        stop.set()
        thread.join()


def test_a_holder_shows_life(tmp_path):
    lock = FolderLock(tmp_path)
    lock.acquire()
    first = (tmp_path / LOCK).stat().st_mtime_ns
    deadline = time.monotonic() + 5
    while (tmp_path / LOCK).stat().st_mtime_ns == first:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    lock.release()


def test_without_locks_in_the_file_system_the_named_process_decides(tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(folder_lock.fcntl, "flock", no_locks)
    gone = subprocess.Popen(["true"])
    gone.wait()
    here = folder_lock.socket.gethostname()
    name_holder(tmp_path, here, gone.pid)
    assert_free(tmp_path)
    name_holder(tmp_path, here, os.getppid())
    with refused(tmp_path, os.getppid()):
        FolderLock(tmp_path).acquire()


@pytest.mark.parametrize(
    "content", [b"", b"{", b'{"host": 1}', b'{"host":"a","pid":"b","since":1}']
)
def test_a_file_that_names_nobody_holds_nothing(tmp_path, content):
    (tmp_path / LOCK).write_bytes(content)
    assert_free(tmp_path)
