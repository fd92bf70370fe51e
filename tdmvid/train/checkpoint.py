"""Whole checkpoints only: written aside, synced, renamed; half-written ones are passed over.

A checkpoint is a folder `step_000123` (123 iterations done) with one folder per trained role.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from pathlib import Path

from ..data.files import write_json
from ..parallel import launch

_NAME = re.compile(r"step_(\d{6,})")
META = "checkpoint.json"


class Checkpoints:
    """The checkpoints of one run; every method is called by all ranks alike."""

    def __init__(self, folder: Path, *, keep: int, primary: bool):
        assert keep >= 1, "a run that keeps no checkpoint cannot resume"
        self.folder, self.keep, self.primary = folder, keep, primary

    def save(self, step: int, engines: dict, fingerprint: dict) -> Path:
        """State after `step` iterations; a run killed in here leaves the previous checkpoint whole, and so does a full disk."""
        final = self._path(step)
        try:
            self._save(final, step, engines, fingerprint)
        except Exception as error:  # of safetensors, torch, DeepSpeed or the file system, each of its own kind
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise OSError(
                f"{final} could not be written ({reason}): the previous checkpoint stands. Make room or choose another --out, then --resume auto"
            ) from error
        return final

    def _save(self, final: Path, step: int, engines: dict, fingerprint: dict) -> None:
        aside = self.folder / f".{final.name}.part"
        if self.primary:
            for left in self.folder.glob(".step_*.part"):  # by a run that was killed in here
                shutil.rmtree(left)
            aside.mkdir(parents=True)
        launch.barrier()
        for role, engine in engines.items():
            engine.save(aside / role)
        launch.barrier()
        if self.primary:
            write_json(aside / META, {"step": step, "fingerprint": fingerprint, "files": _sizes(aside)})
            _sync(aside)
            self._remove(final)
            os.rename(aside, final)
            _sync(self.folder)
            for old in self.steps()[: -self.keep]:
                self._remove(self._path(old))
        launch.barrier()

    def forget_after(self, step: int) -> None:
        """Drop the checkpoints of later steps: the run goes on from `step`, and its record with it."""
        if self.primary:
            for later in self.steps():
                if later > step:
                    self._remove(self._path(later))
        launch.barrier()

    def steps(self) -> list[int]:
        """The whole checkpoints there are, oldest first."""
        if not self.folder.is_dir():
            return []
        found = [_NAME.fullmatch(path.name) for path in self.folder.iterdir() if (path / META).is_file()]
        return sorted(int(match[1]) for match in found if match)

    def latest(self) -> Path | None:
        """The newest whole checkpoint; damaged ones are named and passed over."""
        for step in reversed(self.steps()):
            damage = _damage(self._path(step))
            if not damage:
                return self._path(step)
            if self.primary:
                print(f"{self._path(step)} is passed over: {damage}", file=sys.stderr)
        return None

    def _path(self, step: int) -> Path:
        return self.folder / f"step_{step:06d}"

    @staticmethod
    def _remove(path: Path) -> None:
        if path.exists():
            aside = path.with_name(f".{path.name}.old.part")
            path.rename(aside)  # or a kill while deleting would leave a half one that looks whole
            shutil.rmtree(aside)

    @staticmethod
    def load(path: Path, engines: dict, fingerprint: dict) -> int:
        """Restore all roles and return how many iterations were done; ValueError if the run was another one."""
        meta = json.loads((whole(path) / META).read_text())
        saved = flat(meta["fingerprint"])
        for key, value in flat(fingerprint).items():
            if saved.get(key) != value:
                raise ValueError(f"{path} was written with {key}={saved.get(key)!r}, this run has {value!r}: use the same, or another --out")
        for role, engine in engines.items():
            engine.load(path / role)
        return meta["step"]


def whole(path: Path) -> Path:
    """The path itself; ValueError if it is no checkpoint, or a damaged one."""
    if not (path / META).is_file():
        raise ValueError(f"{path} is no checkpoint: give a folder step_* that holds {META}, or --resume auto")
    damage = _damage(path)
    if damage:
        raise ValueError(f"{path} is damaged: {damage}; resume an earlier one, or --resume auto")
    return path


def _sizes(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_size for path in sorted(folder.rglob("*")) if path.is_file()}


def _damage(folder: Path) -> str:
    """What a checkpoint lacks of what was written, or ""."""
    for name, size in json.loads((folder / META).read_text()).get("files", {}).items():
        here = (folder / name).stat().st_size if (folder / name).is_file() else 0
        if here != size:
            return f"{name} has {here:,} bytes, {size:,} were written"
    return ""


def flat(settings: dict, where: str = "") -> dict:
    """Nested settings by dotted name."""
    found = {}
    for key, value in settings.items():
        found |= flat(value, f"{where}{key}.") if isinstance(value, dict) else {where + key: value}
    return found


def _sync(folder: Path) -> None:
    for path in [*folder.rglob("*"), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
