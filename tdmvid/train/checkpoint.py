"""Whole checkpoints only: written aside, synced, renamed; half-written ones are passed over.

A checkpoint is a folder `step_000123` (123 iterations done) with one folder per trained role.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

from ..data.files import write_json
from ..parallel import launch

_NAME = re.compile(r"step_(\d{6,})")
META = "checkpoint.json"


class Checkpoints:
    """The checkpoints of one run; every method is called by all ranks alike."""

    def __init__(self, folder: Path, *, keep: int, primary: bool):
        if keep < 1:
            raise ValueError(f"log.keep_checkpoints={keep}: keep at least 1, or a run cannot resume")
        self.folder, self.keep, self.primary = folder, keep, primary

    def save(self, step: int, engines: dict, fingerprint: dict) -> Path:
        """State after `step` iterations; a run killed in here leaves the previous checkpoint whole."""
        final = self.folder / f"step_{step:06d}"
        aside = self.folder / f".{final.name}.part"
        if self.primary:
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir(parents=True)
        launch.barrier()
        for role, engine in engines.items():
            engine.save(aside / role)
        launch.barrier()
        if self.primary:
            write_json(aside / META, {"step": step, "fingerprint": fingerprint})
            _sync(aside)
            shutil.rmtree(final, ignore_errors=True)
            os.rename(aside, final)
            _sync(self.folder)
            for old in self.steps()[: -self.keep]:
                shutil.rmtree(self.folder / f"step_{old:06d}")
        launch.barrier()
        return final

    def steps(self) -> list[int]:
        """The whole checkpoints there are, oldest first."""
        if not self.folder.is_dir():
            return []
        found = [_NAME.fullmatch(path.name) for path in self.folder.iterdir() if (path / META).is_file()]
        return sorted(int(match[1]) for match in found if match)

    def latest(self) -> Path | None:
        """The newest whole checkpoint."""
        steps = self.steps()
        return self.folder / f"step_{steps[-1]:06d}" if steps else None

    @staticmethod
    def load(path: Path, engines: dict, fingerprint: dict) -> int:
        """Restore all roles and return how many iterations were done; ValueError if the run was another one."""
        if not (path / META).is_file():
            raise ValueError(f"{path} is no checkpoint: give a folder step_* that holds {META}, or --resume auto")
        meta = json.loads((path / META).read_text())
        for key, value in fingerprint.items():
            if meta["fingerprint"].get(key) != value:
                raise ValueError(f"{path} was written with {key}={meta['fingerprint'].get(key)!r}, this run has {value!r}: use the same, or another --out")
        for role, engine in engines.items():
            engine.load(path / role)
        return meta["step"]


def _sync(folder: Path) -> None:
    for path in [*folder.rglob("*"), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
