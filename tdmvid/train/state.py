"""Save and load the state of a run, and find the checkpoint that it continues from."""

from __future__ import annotations

import sys
from pathlib import Path

from ..config import RunConfig, to_dict
from ..data.checkpoints import find_damage, step_folder, whole
from ..data.files import remove_parts
from ..guard.record import GuardRecord
from ..parallel import collectives, launch
from .checkpoint import Checkpoints
from .monitor import METRICS, as_row
from .run import Run
from .trajectory_files import load_stream, save_stream


def open_checkpoints(config: RunConfig, world: launch.World, resume: str) -> Checkpoints:
    """Return the checkpoints of a run.

    Args:
        config: Settings of the run.
        world: Processes of the run.
        resume: As in `trainer.train`.

    Raises:
        ValueError: The run starts anew or from another run's checkpoint, but its folder has
            checkpoints, which it would replace.
    """
    folder, keep = config.folder, config.log.keep_checkpoints
    checkpoints = Checkpoints(folder / "checkpoints", keep=keep, rank=world.rank, ranks=world.size)
    if resume == "auto" or not checkpoints.steps():
        return checkpoints
    if not resume:
        raise ValueError(
            f"{folder} contains the checkpoints of a run: continue it with --resume auto, or choose"
            " another --out"
        )
    if Path(resume).resolve().parent != checkpoints.folder.resolve():
        raise ValueError(
            f"--resume {resume} is not in {folder}, which contains the checkpoints of a run that"
            " would be replaced: choose another --out, or continue that run with --resume auto"
        )
    return checkpoints


def find_checkpoint(checkpoints: Checkpoints, resume: str) -> Path | None:
    """Return the checkpoint to resume, the same on all ranks.

    Only rank 0 looks for it and verifies it, because a shared file system may show other machines
    an outdated folder.

    Args:
        checkpoints: Checkpoints of the run.
        resume: As in `trainer.train`.

    Returns:
        Its folder; None for a new run.
    """
    if not resume:
        return None

    def find() -> Path | None:
        if resume != "auto":
            return whole(Path(resume))
        if (found := checkpoints.latest()) is None:
            print(f"{checkpoints.folder} has no checkpoint: starting at step 0", file=sys.stderr)
        return found

    return collectives.on_rank0(find)


def load_state(run: Run, checkpoints: Checkpoints, path: Path) -> int:
    """Load a checkpoint, and delete those of later iterations, which are named.

    Args:
        run: The run.
        checkpoints: Checkpoints of the run.
        path: Folder of the checkpoint.

    Returns:
        Number of completed iterations.

    Raises:
        ValueError: The checkpoint has more iterations than the run, or other settings.
    """
    defaults = to_dict(RunConfig()) | {"init": None}
    start = Checkpoints.load(path, run.engines, run.fingerprint, defaults)
    if start > run.config.steps:
        raise ValueError(
            f"{path} was written after {start} steps, but this run has steps={run.config.steps}:"
            " raise steps, or resume an earlier checkpoint"
        )
    load_stream(run, path)
    if run.rewards is not None:
        run.rewards.load(path)
    later = [step_folder(checkpoints.folder, step) for step in checkpoints.steps() if step > start]
    if later and run.world.primary:
        names = ", ".join(folder.name for folder in later)
        print(
            f"continuing after {start:,} iterations: later checkpoints are deleted ({names})",
            file=sys.stderr,
        )
    checkpoints.forget_after(start)
    return start


def remove_partial_files(folder: Path, checkpoints: Checkpoints) -> None:
    """Remove partial files of a killed run from folders that only this run writes to.

    Args:
        folder: Folder of the run.
        checkpoints: Its checkpoints.
    """
    checkpoints.remove_parts()
    for written in (folder / "samples", folder / "gallery"):
        for place in (written, *written.glob("*/")):
            remove_parts(place)
    remove_parts(folder)


def save_state(
    run: Run, checkpoints: Checkpoints, done: int, *, unlogged: dict[str, float] | None = None
) -> Path:
    """Start writing a checkpoint.

    Args:
        run: The run.
        checkpoints: Its checkpoints.
        done: Number of completed iterations.
        unlogged: Scalars of a state that is still to be checked and logged; None for a good state.

    Returns:
        Folder of the checkpoint.
    """
    record = run.config.folder / METRICS
    extra = {METRICS: record.read_bytes()} if run.world.primary and record.is_file() else {}
    if unlogged is not None and run.world.primary:
        extra[METRICS] = extra.get(METRICS, b"") + as_row(done - 1, unlogged).encode()
    extra |= save_stream(run) | (run.rewards.save() if run.rewards is not None else {})
    checked = unlogged is None
    return checkpoints.save(done, run.engines, run.fingerprint, extra=extra, checked=checked)


def best_step(checkpoints: Checkpoints, record: GuardRecord, last: int) -> int:
    """Return the best student whose checkpoint is intact.

    Args:
        checkpoints: Checkpoints of the run.
        record: The guard's checks.
        last: Number of iterations of the run.

    Returns:
        Number of iterations; `last` if no other student is better or intact.
    """
    kept = {step for step in checkpoints.steps() if step <= last}
    while (chosen := record.best_of(kept) or last) != last:
        path = step_folder(checkpoints.folder, chosen)
        if not (damage := find_damage(path, "student")):
            return chosen
        print(
            f"warning: {path} is damaged ({damage}): the next best student is exported",
            file=sys.stderr,
        )
        kept.discard(chosen)
    return last
