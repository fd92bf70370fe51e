"""Whole checkpoints only: written aside, synced, renamed; half-written ones are passed over.

A checkpoint is a folder `step_000123` (123 iterations done) with one folder per trained role.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from ..data.checkpoints import checksum, latest, list_steps, read_meta, step_folder, write_meta
from ..data.files import PART, short, write_files
from ..parallel import launch

NOT_SHARED = (
    "files of other ranks do not appear here: the run's folder must be one that all machines share"
)
NOTES = {
    "steps": " (a learning rate falls to 0 at the last step; --set init=RUN/lora goes on from this"
    " student)",
    "batch.accumulation": " (with objective.rollout='stop' each micro-batch of a rank has its own"
    " step k; batch.total divides by the number of ranks: start as many)",
}
"""What to say of a setting that differs, beside its values."""
PATIENCE = 300.0
"""Seconds until files that another machine has written must be visible."""


class Checkpoints:
    """The checkpoints of one run; every method is called by all ranks alike, but for `close`.

    `save` takes no longer than the copy to host memory: a thread on every rank writes the files,
    and rank 0's makes the checkpoint whole when all ranks' files are there.
    """

    def __init__(self, folder: Path, *, keep: int, rank: int = 0, ranks: int = 1):
        assert keep >= 1, "a run that keeps no checkpoint cannot resume"
        self.folder, self.keep = folder, keep
        self.rank, self.ranks, self.primary = rank, ranks, rank == 0
        self.best = 0
        """The step of a checkpoint that is kept beside the newest; 0 keeps none."""
        self._writing: _Writing | None = None

    def save(
        self, step: int, engines: dict, fingerprint: dict, *, extra: dict[str, bytes] | None = None
    ) -> Path:
        """Begin to write the state after `step` iterations; it is whole once `wait` has returned.

        A run killed meanwhile leaves the previous checkpoint whole, and so does a full disk.

        Args:
            extra: This rank's files beside those of the roles, by name.
        """
        self.wait()
        final, aside = self._path(step), self.folder / f".step_{step:06d}{PART}"
        if self.primary:
            self.remove_parts()
            aside.mkdir(parents=True)
        launch.barrier()
        files = {
            aside / role / name: data
            for role, engine in engines.items()
            for name, data in engine.snapshot().items()
        }
        files |= {aside / name: data for name, data in (extra or {}).items()}
        complete = partial(self._complete, final, aside, {"step": step, "fingerprint": fingerprint})
        marker = aside / f"written_{self.rank}.json"
        self._writing = _Writing(final, files, marker, complete if self.primary else None)
        return final

    def wait(self) -> None:
        """Wait until the checkpoint that is being written is whole.

        Raises:
            OSError: On every rank, if one could not write.
        """
        writing, self._writing = self._writing, None
        if writing is None:
            return
        writing.own_part.wait()
        if not launch.all_agree(writing.error is None):
            writing.give_up.set()
        writing.thread.join(timeout=PATIENCE)
        if writing.thread.is_alive():  # all have written; rank 0 does not see it, or is slow
            writing.give_up.set()
            writing.thread.join()
            if not writing.whole:
                writing.error = writing.error or OSError(NOT_SHARED)
        if launch.all_agree(writing.error is None):
            return
        reason = str(writing.error or "see the other ranks").splitlines()[0]
        raise OSError(
            f"{writing.final} could not be written ({reason}): the previous checkpoint stands. Make"
            " room or choose another --out, then --resume auto"
        ) from writing.error

    def close(self) -> None:
        """Give what is being written a minute to become whole, without asking the other ranks.

        It is called after a failure.
        """
        if self._writing:
            self._writing.thread.join(timeout=60)
            self._writing.give_up.set()
            self._writing.thread.join()

    def _complete(self, final: Path, aside: Path, meta: dict, give_up: threading.Event) -> bool:
        markers = [aside / f"written_{rank}.json" for rank in range(self.ranks)]
        while not all(marker.exists() for marker in markers):
            if give_up.wait(0.05):
                return False
        files: dict[str, Any] = {}
        for marker in markers:
            files |= json.loads(marker.read_text())
            marker.unlink()
        write_meta(aside, meta | {"files": dict(sorted(files.items()))})
        _sync(aside)
        self._remove(final)
        os.rename(aside, final)
        _sync(self.folder)
        for old in self.steps()[: -self.keep]:
            if old != self.best:
                self._remove(self._path(old))
        return True

    def remove_parts(self) -> None:
        """Remove what a killed run left of checkpoints that it wrote or deleted."""
        for left in self.folder.glob(f".step_*{PART}"):
            shutil.rmtree(left)

    def forget_after(self, step: int) -> None:
        """Drop the checkpoints of later steps: the run, and its record, go on from `step`."""
        if self.primary:
            for later in self.steps():
                if later > step:
                    self._remove(self._path(later))
        launch.barrier()

    def steps(self) -> list[int]:
        """Return after how many iterations there are complete checkpoints, oldest first."""
        return list_steps(self.folder)

    def latest(self) -> Path | None:
        """Return the newest whole checkpoint; damaged ones are named and passed over.

        Raises:
            ValueError: If there are checkpoints and none is whole.
        """
        found = latest(self.folder, report=self.primary)
        if found is None and any(self.folder.glob("step_*")):
            raise ValueError(
                f"{self.folder} holds no whole checkpoint: choose another --out, or delete that"
                " folder to train from the first step again"
            )
        return found

    def _path(self, step: int) -> Path:
        return step_folder(self.folder, step)

    @staticmethod
    def _remove(path: Path) -> None:
        if path.exists():
            aside = path.with_name(f".{path.name}.old{PART}")
            path.rename(aside)  # or a kill while deleting would leave a half one that looks whole
            shutil.rmtree(aside)

    @staticmethod
    def load(path: Path, engines: dict, fingerprint: dict, defaults: dict | None = None) -> int:
        """Restore all roles.

        Args:
            path: A checkpoint that was found whole.
            defaults: Values of settings that a checkpoint may be older than.

        Returns:
            How many iterations were done.

        Raises:
            ValueError: If another run wrote it.
        """
        meta = read_meta(path)
        saved = flat(defaults or {}) | flat(meta["fingerprint"])
        for key, value in flat(fingerprint).items():
            if saved.get(key) != value:
                remedy = f"use the same, or another --out{NOTES.get(key, '')}"
                raise ValueError(
                    f"{path} was written with {key}={short(saved.get(key))}, this run has"
                    f" {short(value)}: {remedy}"
                )
        for role, engine in engines.items():
            engine.load(path / role)
        return meta["step"]


class _Writing:
    """One checkpoint on its way to the disk.

    final: the folder it will be; files: this rank's; marker: tells rank 0 that they are written,
    and their checksums; complete: on rank 0, makes the folder whole when all markers are there, or
    returns False at `give_up`.
    """

    def __init__(
        self,
        final: Path,
        files: dict[Path, bytes],
        marker: Path,
        complete: Callable[[threading.Event], bool] | None,
    ):
        self.final, self.whole = final, False
        self.error: Exception | None = None
        self.own_part, self.give_up = threading.Event(), threading.Event()
        self.thread = threading.Thread(
            target=self._run, args=(files, marker, complete), daemon=True
        )
        self.thread.start()

    def _run(
        self,
        files: dict[Path, bytes],
        marker: Path,
        complete: Callable[[threading.Event], bool] | None,
    ) -> None:
        try:
            written = {
                str(path.relative_to(marker.parent)): checksum(data) for path, data in files.items()
            }
            write_files(files)
            _tell(marker, written)
            self.own_part.set()
            if complete:
                self.whole = complete(self.give_up)
        except Exception as error:  # told to all ranks by `wait`
            self.error = error
        finally:
            self.own_part.set()


def flat(settings: dict[str, Any], where: str = "") -> dict[str, Any]:
    """Return nested settings by dotted name."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        found |= flat(value, f"{where}{key}.") if isinstance(value, dict) else {where + key: value}
    return found


def _tell(marker: Path, written: dict[str, Any]) -> None:
    """Make a marker that is whole as soon as rank 0 sees it; its folder may be renamed then."""
    part = marker.with_suffix(PART)
    part.write_text(json.dumps(written))
    os.replace(part, marker)


def _sync(folder: Path) -> None:
    for path in [*folder.rglob("*"), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
