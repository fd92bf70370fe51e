"""Write and read checkpoints, which are always complete.

A checkpoint is written to a temporary folder, synced and renamed, so a killed run leaves no partial
one. It is a folder `step_000123` (after 123 iterations) with one subfolder per trained role.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from ..data.checkpoints import checksum, latest, list_steps, read_meta, step_folder, write_meta
from ..data.files import PART, sync, write_files
from ..data.saved_work import note_saved_work
from ..parallel import collectives
from .fingerprint import check_fingerprint

NOT_SHARED = (
    "files of other ranks are not visible here: the run's folder must be on a file system that all"
    " machines share"
)
UNCHECKED = "unchecked"
"""File in a checkpoint whose state was saved before it was checked. It is no part of the state."""
PATIENCE = 300.0
"""Seconds to wait until files written by another machine become visible."""


class Checkpoints:
    """Checkpoints of one run. All ranks call every method together, except `close`.

    `save` returns after copying the state to CPU memory. A thread on every rank writes the files;
    the thread of rank 0 completes the checkpoint when the files of all ranks exist.

    Args:
        folder: Folder of the checkpoints.
        keep: Number of newest checkpoints to keep, at least 1.
        rank: This rank.
        ranks: Number of ranks.
    """

    def __init__(self, folder: Path, *, keep: int, rank: int = 0, ranks: int = 1):
        assert keep >= 1, "a run that keeps no checkpoint cannot resume"
        self.folder, self.keep = folder, keep
        self.rank, self.ranks, self.primary = rank, ranks, rank == 0
        self.best = 0
        """Step of a checkpoint to keep in addition to the newest ones; 0 for none."""
        self._accepted, self._judged = True, threading.Event()
        self._writing: _Writing | None = None

    def save(
        self,
        step: int,
        engines: dict,
        fingerprint: dict,
        *,
        extra: dict[str, bytes] | None = None,
        checked: bool = True,
    ) -> Path:
        """Start writing the state after `step` iterations. The checkpoint is complete once `wait`
        returns.

        If the run is killed or the disk is full, the previous checkpoint remains intact.

        Args:
            step: Number of completed iterations.
            engines: Engines of the trained roles, by role.
            fingerprint: Settings that a resumed run must have in common.
            extra: Further files of this rank, by name.
            checked: Whether the state is known to be good. If not, the checkpoint is marked, and no
                older one is deleted until `accept` is called; `drop` deletes it.

        Returns:
            The folder of the checkpoint.
        """
        self.wait()
        self._accepted, self._judged = checked, threading.Event()
        if checked:
            self._judged.set()
        final, aside = self._path(step), self.folder / f".step_{step:06d}{PART}"
        if self.primary:
            self.remove_parts()
            aside.mkdir(parents=True)
        collectives.barrier()
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
        """Wait until the checkpoint that is being written is complete.

        Raises:
            OSError: Raised on every rank if any rank could not write.
        """
        writing, self._writing = self._writing, None
        if writing is None:
            return
        assert self._judged.is_set(), "the state must be accepted or dropped first"
        writing.own_part.wait()
        if not collectives.all_agree(writing.error is None):
            writing.give_up.set()
        writing.thread.join(timeout=PATIENCE)
        if writing.thread.is_alive():  # all ranks have written, but rank 0 does not see the files
            writing.give_up.set()
            writing.thread.join()
            if not writing.whole:
                writing.error = writing.error or OSError(NOT_SHARED)
        if collectives.all_agree(writing.error is None):
            return
        reason = str(writing.error or "see the other ranks").splitlines()[0]
        raise OSError(
            f"{writing.final} could not be written ({reason}); the previous checkpoint is intact."
            f" Free disk space, then continue with --resume auto{self._elsewhere()}"
        ) from writing.error

    def _elsewhere(self) -> str:
        """Return how to continue on another disk, if there is a checkpoint."""
        steps = self.steps()
        return f"; or use another --out with --resume {self._path(steps[-1])}" if steps else ""

    def close(self) -> None:
        """Wait up to a minute for the checkpoint being written, without communicating with other
        ranks.

        Call this after a failure.
        """
        self._judged.set()
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
        (aside / UNCHECKED).touch()
        _sync(aside)
        self._remove(final)
        os.rename(aside, final)
        _sync(self.folder)
        note_saved_work()
        self._judged.wait()
        if self._accepted:
            (final / UNCHECKED).unlink()
            for old in self.steps()[: -self.keep]:
                if old != self.best:
                    self._remove(self._path(old))
        return True

    def accept(self) -> None:
        """Keep the state that was saved last, because it is good. Old checkpoints are deleted."""
        self._accepted = True
        self._judged.set()

    def drop(self, step: int) -> None:
        """Delete a checkpoint whose state turned out to be bad.

        Args:
            step: Number of completed iterations.
        """
        self._judged.set()
        with suppress(OSError):  # it could not be written, so there is nothing to delete
            self.wait()
        self.forget_after(step - 1)

    def is_unchecked(self, path: Path) -> bool:
        """Return whether the run failed before the state of a checkpoint was checked.

        Args:
            path: Folder of the checkpoint.

        Returns:
            The same on all ranks.
        """
        return collectives.on_rank0((path / UNCHECKED).is_file)

    def mark_checked(self, path: Path) -> None:
        """Note that the state of a checkpoint is good.

        Args:
            path: Folder of the checkpoint.
        """
        if self.primary:
            (path / UNCHECKED).unlink(missing_ok=True)

    def remove_parts(self) -> None:
        """Remove incomplete checkpoints that a killed run was writing or deleting."""
        for left in self.folder.glob(f".step_*{PART}"):
            shutil.rmtree(left)

    def forget_after(self, step: int) -> None:
        """Delete the checkpoints of later steps, because the run continues from `step`.

        Args:
            step: Number of iterations to continue from.
        """
        if self.primary:
            for later in self.steps():
                if later > step:
                    self._remove(self._path(later))
        collectives.barrier()

    def steps(self) -> list[int]:
        """Return the steps of all complete checkpoints.

        Returns:
            Numbers of completed iterations, in ascending order.
        """
        return list_steps(self.folder)

    def latest(self) -> Path | None:
        """Return the newest complete checkpoint. Damaged checkpoints are reported and skipped.

        Returns:
            Its folder; None if there is no checkpoint at all.

        Raises:
            ValueError: There are checkpoints, but none is complete.
        """
        found = latest(self.folder, report=self.primary)
        if found is None and any(self.folder.glob("step_*")):
            raise ValueError(
                f"{self.folder} contains no intact checkpoint: choose another --out, or delete this"
                " folder to start again from step 0"
            )
        return found

    def _path(self, step: int) -> Path:
        return step_folder(self.folder, step)

    @staticmethod
    def _remove(path: Path) -> None:
        if path.exists():
            aside = path.with_name(f".{path.name}.old{PART}")
            path.rename(aside)  # a kill during the deletion must not leave a partial checkpoint
            shutil.rmtree(aside)

    @staticmethod
    def load(path: Path, engines: dict, fingerprint: dict, defaults: dict | None = None) -> int:
        """Restore all roles from a checkpoint.

        Args:
            path: Folder of a complete checkpoint.
            engines: Engines of the trained roles, by role.
            fingerprint: Settings that must equal those of the checkpoint.
            defaults: Default values of settings that an older checkpoint may lack.

        Returns:
            Number of iterations the checkpoint has completed.

        Raises:
            ValueError: The checkpoint was written with other settings.
        """
        meta = read_meta(path)
        check_fingerprint(path, meta["fingerprint"], fingerprint, defaults or {})
        for role, engine in engines.items():
            engine.load(path / role)
        return meta["step"]


class _Writing:
    """Write one checkpoint in a thread.

    Args:
        final: Folder of the finished checkpoint.
        files: Files of this rank.
        marker: File that tells rank 0 that this rank's files are written, with their checksums.
        complete: On rank 0, finishes the folder when all markers exist; returns False if `give_up`
            is set first.
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
        except Exception as error:  # `wait` reports it to all ranks
            self.error = error
        finally:
            self.own_part.set()


def _tell(marker: Path, written: dict[str, Any]) -> None:
    """Write a marker atomically. Rank 0 may rename its folder as soon as the marker exists."""
    part = marker.with_suffix(PART)
    part.write_text(json.dumps(written))
    os.replace(part, marker)


def _sync(folder: Path) -> None:
    for path in [*folder.rglob("*"), folder]:
        sync(path)
