"""A checkpoint is complete or ignored, and training continues while it is written."""

import threading
import time
from functools import partial

from refusals import refused

from tdmvid.data.checkpoints import META
from tdmvid.data.saved_work import MARKER
from tdmvid.train import checkpoint
from tdmvid.train.checkpoint import Checkpoints


class Engine:
    """An engine that saves one number."""

    def __init__(self, value):
        self.value = value

    def snapshot(self):
        return {"value": str(self.value).encode()}

    def load(self, folder):
        self.value = int((folder / "value").read_text())


def test_the_script_of_a_job_learns_that_a_checkpoint_is_complete(tmp_path, monkeypatch):
    monkeypatch.setenv(MARKER, str(tmp_path / "saved"))
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=1)
    checkpoints.save(2, {"student": Engine(2)}, {"seed": 0})
    checkpoints.wait()
    assert (tmp_path / "saved").exists()


def test_only_whole_checkpoints_count_and_the_newest_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    assert checkpoints.latest() is None
    (tmp_path / ".step_000001.part").mkdir()
    for step in (2, 4, 1_000_000):
        checkpoints.save(step, {"student": Engine(step)}, {"seed": 0})
    checkpoints.wait()
    (tmp_path / "step_2000000").mkdir()  # without its last file
    assert (
        checkpoints.steps() == [4, 1_000_000] and checkpoints.latest() == tmp_path / "step_1000000"
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "step_000004",
        "step_1000000",
        "step_2000000",
    ]
    engine = Engine(0)
    assert (
        Checkpoints.load(tmp_path / "step_000004", {"student": engine}, {"seed": 0})
        == engine.value
        == 4
    )
    assert (tmp_path / "step_000004" / META).exists()


def test_nothing_is_deleted_until_the_newest_state_is_known_to_be_good(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(1, {"student": Engine(1)}, {})
    for judge, left in ((partial(checkpoints.drop, 2), 1), (checkpoints.accept, 2)):
        path = checkpoints.save(2, {"student": Engine(2)}, {}, checked=False)
        while not path.exists():
            time.sleep(0.01)
        time.sleep(0.1)
        assert checkpoints.steps() == [1, 2] and checkpoints.is_unchecked(path)
        judge()
        checkpoints.wait()
        assert checkpoints.steps() == [left]
        assert not checkpoints.is_unchecked(tmp_path / f"step_{left:06d}")


def test_saving_a_step_again_replaces_it(tmp_path):
    checkpoints, engine = Checkpoints(tmp_path, keep=1), Engine(0)
    for value in (1, 2):
        checkpoints.save(3, {"student": Engine(value)}, {})
    checkpoints.wait()
    Checkpoints.load(checkpoints.latest(), {"student": engine}, {})
    assert engine.value == 2 and [path.name for path in tmp_path.iterdir()] == ["step_000003"]


def test_training_goes_on_while_a_checkpoint_is_written_and_does_not_change_it(
    tmp_path, monkeypatch
):
    disk, write_files = threading.Event(), checkpoint.write_files
    monkeypatch.setattr(
        checkpoint, "write_files", lambda files: disk.wait(30) and write_files(files)
    )
    checkpoints, engine = Checkpoints(tmp_path, keep=1), Engine(1)
    path = checkpoints.save(1, {"student": engine}, {})
    engine.value = 2  # the next step starts before anything is on disk
    assert not path.exists() and checkpoints.latest() is None
    disk.set()
    checkpoints.wait()
    Checkpoints.load(path, {"student": engine}, {})
    assert engine.value == 1


def test_a_checkpoint_is_whole_only_when_every_rank_has_written(tmp_path):
    first, second = (Checkpoints(tmp_path, keep=1, rank=rank, ranks=2) for rank in (0, 1))
    path = first.save(1, {"student": Engine(1)}, {})
    first._writing.own_part.wait(10)
    time.sleep(0.2)  # long enough for four checks for the other rank's part
    assert not path.exists()
    second.save(1, {"fake": Engine(2)}, {})
    first.wait()
    assert {str(file.relative_to(path)) for file in path.rglob("value")} == {
        "student/value",
        "fake/value",
    }
    assert sorted(file.name for file in path.iterdir()) == ["checkpoint.json", "fake", "student"]


def test_a_rank_that_cannot_write_leaves_the_checkpoint_before_and_is_heard_of(
    tmp_path, monkeypatch
):
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(1, {"student": Engine(1)}, {})
    checkpoints.wait()

    def full(files):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "write_files", full)
    checkpoints.save(2, {"student": Engine(2)}, {})
    with refused("step_000002", "No space left on device", error=OSError):
        checkpoints.save(3, {"student": Engine(3)}, {})
    assert checkpoints.steps() == [1]


def test_a_slow_disk_is_waited_for_and_files_that_never_come_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "PATIENCE", 0.2)
    sync = checkpoint._sync
    monkeypatch.setattr(checkpoint, "_sync", lambda folder: time.sleep(0.5) or sync(folder))
    alone, first = (
        Checkpoints(tmp_path / "alone", keep=1),
        Checkpoints(tmp_path / "two", keep=1, rank=0, ranks=2),
    )
    alone.save(1, {"student": Engine(1)}, {})
    alone.wait()
    assert alone.steps() == [1]
    first.save(1, {"student": Engine(1)}, {})
    with refused(error=OSError):
        first.wait()
    assert first.steps() == []
