"""The training loop: prompts -> trajectory -> draws -> losses -> steps, then export and report."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from ..config import RunConfig, to_dict
from ..data.checkpoints import step_folder
from ..data.files import write_json
from ..data.folder_lock import FolderLock
from ..diffusion.denoiser import Cond
from ..distill.iteration import Outcome, iterate
from ..distill.objective import build_objective
from ..distill.trajectories import pick_grid
from ..parallel import collectives, launch
from ..roles.rules import check_folders
from .checkpoint import Checkpoints
from .endings import TrainingStopped, diverged_message, failed_message, stopped_message
from .finalize import finalize
from .fingerprint import flat
from .guard import NOTHING, Check, Guard
from .monitor import Monitor
from .run import Run, build_run
from .samples import NotFinite, write_samples
from .signals import HangDetector, Interrupted, StopSignals
from .state import (
    best_step,
    find_checkpoint,
    load_state,
    open_checkpoints,
    remove_partial_files,
    save_state,
)
from .tracker import open_tracker


def train(
    config: RunConfig,
    *,
    resume: str = "",
    commands: dict[str, str] | None = None,
    at_end: Callable[[Run], None] | None = None,
    before_leaving: Callable[[], None] | None = None,
) -> Path:
    """Train, export and report.

    Args:
        config: Settings of the run.
        resume: "auto" (the newest intact checkpoint of the run, if there is one), a checkpoint
            folder, or "" for a new run.
        commands: Commands to show in the report, by description.
        at_end: Called with the trained run instead of exporting and reporting.
        before_leaving: Called last on every rank, while the ranks can still communicate.

    Returns:
        The run folder.

    Raises:
        ValueError: The settings or their files cannot be used.
        TrainingStopped: Too many iterations in a row were not finite, or the guard stopped the run.
        Interrupted: The run was asked to stop.
    """
    world = launch.start(
        config.parallel.backend, config.parallel.timeout_minutes, sequence=config.parallel.sequence
    )
    collectives.check_same("config", flat(to_dict(config)) | {"--resume": resume})
    check_folders(config)
    with _locked(config.folder):
        run = _train(config, world, resume, commands or {})
        (at_end or finalize)(run)
        if before_leaving:
            before_leaving()
        launch.finish()
    return config.folder


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Lock a run's folder against other runs. Rank 0 holds the lock for all ranks."""
    lock = FolderLock(folder)
    collectives.on_rank0(lock.acquire)
    try:
        yield
    finally:
        lock.release()  # has no effect on the other ranks


def _train(config: RunConfig, world: launch.World, resume: str, commands: dict[str, str]) -> Run:
    """Set up a run and go through its iterations."""
    checkpoints = open_checkpoints(config, world, resume)
    path = find_checkpoint(checkpoints, resume)
    run = build_run(config, world, resumed=path is not None)
    start = load_state(run, checkpoints, path) if path else 0
    if run.rewards is not None and not path:
        run.rewards.prepare(run.roles.student, run.grid, run.backbone.latent_shape())
    if world.primary:
        _write_settings(run, config, commands)
        remove_partial_files(config.folder, checkpoints)
    guard = Guard(run, start)
    checkpoints.best = guard.record.best
    monitor = Monitor(
        config.folder,
        total=config.steps,
        start=start,
        primary=world.primary,
        saved=path,
        tracker=open_tracker(config, start=start, resumed=path is not None),
    )
    try:
        _warn(guard, monitor, start)
        unchecked = path if path and checkpoints.is_unchecked(path) else None
        _loop(run, start, checkpoints, monitor, guard, unchecked)
    finally:
        checkpoints.close()
        monitor.close()
        if run.rewards is not None:
            run.rewards.close()
    _choose_student(run, checkpoints, guard)
    return run


def _write_settings(run: Run, config: RunConfig, commands: dict[str, str]) -> None:
    """Write the settings and commands of a run to its folder. `config` is as given, for any number
    of ranks.
    """
    folder = config.folder
    write_json(folder / "config.json", to_dict(config))
    shown = [{"what": what, "command": command} for what, command in commands.items()]
    write_json(folder / "commands.json", {"commands": shown})
    if run.rounding:
        run.rounding.save(folder)
        print(run.rounding, flush=True)
    else:  # an earlier run that ended here before its first checkpoint may have left this file
        (folder / "quantized.json").unlink(missing_ok=True)


def _warn(guard: Guard, monitor: Monitor, start: int) -> None:
    """Warn about settings that are probably not intended."""
    monitor.warn(start, guard.check_settings())


def _check_again(
    run: Run, path: Path, start: int, checkpoints: Checkpoints, monitor: Monitor, guard: Guard
) -> None:
    """Make up for the check of a checkpoint that a failure prevented."""
    own = path.resolve().parent == checkpoints.folder.resolve()
    if _checks_after(run.config, start):
        check = _check(run, guard, start)
        monitor.add(start - 1, check.scalars)
        monitor.warn(start - 1, check.lines)
        _decide(run, check, checkpoints, start, saved=own)
    if own:
        checkpoints.mark_checked(path)


def _loop(
    run: Run,
    start: int,
    checkpoints: Checkpoints,
    monitor: Monitor,
    guard: Guard,
    unchecked: Path | None,
) -> None:
    """Train. `unchecked` is the checkpoint of the start, if its state is still to be checked."""
    config, failures = run.config, 0
    hangs = HangDetector(config.folder, run.world, config.parallel.timeout_minutes)
    with StopSignals(announce=run.world.primary) as signals, hangs:
        if unchecked:
            hangs.start_iteration()
            _check_again(run, unchecked, start, checkpoints, monitor, guard)
        for step in range(start, config.steps):
            hangs.start_iteration()
            outcome, scalars = _iteration(run, step)
            failures = failures + 1 if outcome.failed else 0
            done, last = step + 1, step + 1 == config.steps
            if outcome.failed:
                _report_failure(outcome.failed, step, failures)
            if failures >= config.max_bad_steps:
                monitor.log(step, scalars)
                _give_up(run, checkpoints, monitor, guard, outcome, step, failures)
            if saved := last or _due(config.log.checkpoint_every, done):  # as sampling may fail
                save_state(run, checkpoints, done, unlogged=scalars)
            check = _check_and_log(run, guard, monitor, step, scalars)
            best = _decide(run, check, checkpoints, done, saved=saved)
            stop = not last and signals.requested()
            if not saved and (best or stop):
                save_state(run, checkpoints, done)
            if last or stop:
                checkpoints.wait()
            if stop:
                path = step_folder(checkpoints.folder, done)
                raise Interrupted(stopped_message(done, config.steps, path))


def _due(every: int, done: int) -> bool:
    """Return whether an event that happens every `every` iterations (0: never) happens now."""
    return every > 0 and done % every == 0


def _checks_after(config: RunConfig, done: int) -> bool:
    """Return whether the student is sampled after `done` iterations."""
    return done == config.steps or _due(config.log.sample_every, done)


def _decide(run: Run, check: Check, checkpoints: Checkpoints, done: int, *, saved: bool) -> bool:
    """Stop if the check says so, and return whether this student is the best one so far.

    `saved` says whether the state of this iteration was saved before the check.
    """
    if check.stop:
        if saved:
            checkpoints.drop(done)
        raise TrainingStopped(check.stop)
    if saved:
        checkpoints.accept()
    best = check.best and run.config.keeps_best
    if best:
        checkpoints.wait()  # it keeps the best one so far until the new one is complete
        checkpoints.best = done
    return best


def _check_and_log(
    run: Run, guard: Guard, monitor: Monitor, step: int, scalars: dict[str, float]
) -> Check:
    """Log an iteration, with the check of its samples if they are due."""
    due = _checks_after(run.config, step + 1)
    try:
        check = _check(run, guard, step + 1) if due else NOTHING
    except BaseException:
        monitor.log(step, scalars)  # the state of this step may be saved
        raise
    monitor.log(step, scalars | check.scalars)
    monitor.warn(step, check.lines)
    return check


def _check(run: Run, guard: Guard, done: int) -> Check:
    """Sample the student and compare it with its teacher."""
    try:
        samples = write_samples(run, done)
    except NotFinite as error:
        return guard.fail(done, "the samples are", str(error))
    return guard.check(done, samples)


def _choose_student(run: Run, checkpoints: Checkpoints, guard: Guard) -> None:
    """Load the student to export, if it is not the last one."""
    chosen = run.config.steps
    if run.config.export.select == "best":
        chosen = collectives.on_rank0(
            lambda: best_step(checkpoints, guard.record, run.config.steps)
        )
    if chosen != run.config.steps:
        run.engines["student"].load(step_folder(checkpoints.folder, chosen) / "student")
    guard.note_exported(chosen)


def _report_failure(role: str, step: int, failures: int) -> None:
    print(
        f"step {step}: loss or gradient of the {role} is not finite; its optimizer step was skipped"
        f" ({failures} in a row)",
        file=sys.stderr,
    )


def _give_up(
    run: Run,
    checkpoints: Checkpoints,
    monitor: Monitor,
    guard: Guard,
    outcome: Outcome,
    step: int,
    failures: int,
) -> NoReturn:
    """Save the last good state, if there is one, and stop."""
    if broken := _broken_role(run):
        checkpoints.wait()
        steps = collectives.on_rank0(checkpoints.steps)
        newest = step_folder(checkpoints.folder, steps[-1]) if steps else None
        reason = diverged_message(broken, step, run.config, newest)
    else:
        path = save_state(run, checkpoints, step + 1)
        checkpoints.wait()
        reason = failed_message(outcome.failed, step, failures, path)
    check = guard.fail(step + 1, f"the {outcome.failed}'s loss or gradient is", reason)
    monitor.warn(step, check.lines)
    raise TrainingStopped(reason)


def _broken_role(run: Run) -> str:
    """Return a role whose weights are not finite, or "". All ranks must call this together."""
    for role, engine in run.engines.items():
        weights = engine.weights(averaged=False, everywhere=False)
        if not collectives.all_agree(all(bool(w.isfinite().all()) for w in weights.values())):
            return role
    return ""


def _iteration(run: Run, step: int) -> tuple[Outcome, dict[str, float]]:
    """Run one iteration and return its outcome and its scalars, averaged over the ranks. `calls`
    counts the calls of all networks per sample.
    """
    batch, began, indices = run.config.batch, time.perf_counter(), prompt_indices(run, step)
    conds, rewards = [run.conds(chosen) for chosen in indices], run.rewards
    if run.stream is not None:
        run.stream.begin(run.roles.student, conds)  # once per run; not counted as an iteration's
        if rewards is not None:
            rewards.score_ended()
    grid = pick_grid(run.grids, run.streams.generator(step, "K", device="cpu"))
    before = run.evaluated()
    outcome = iterate(
        step,
        conds,
        (batch.micro, *run.backbone.latent_shape()),
        objective=build_objective(run.config.objective),
        roles=run.roles,
        engines=run.engines,
        grid=grid,
        streams=run.streams,
        first_stream=run.world.data_rank * batch.accumulation,
        stream=run.stream,
        reweigh=None if rewards is None else rewards.reweigh(step, grid, indices),
    )
    calls = (run.evaluated() - before) / (batch.micro * batch.accumulation)
    scalars = outcome.scalars | ({} if rewards is None else rewards.scalars)
    return outcome, collectives.mean(scalars) | {
        "calls": calls,
        "seconds": time.perf_counter() - began,
    }


def micro_batches(run: Run, step: int) -> list[Cond]:
    """Return the conditioning of this rank's micro-batches.

    Args:
        run: The run.
        step: The iteration.

    Returns:
        One conditioning of B prompts per micro-batch.
    """
    return [run.conds(chosen) for chosen in prompt_indices(run, step)]


def prompt_indices(run: Run, step: int) -> list[list[int]]:
    """Return the prompts of this rank's micro-batches. Streaming trajectories keep their prompts.

    Args:
        run: The run.
        step: The iteration.

    Returns:
        B prompt indices per micro-batch.
    """
    batch, world, stream = run.config.batch, run.world, run.stream
    if stream is not None:
        return [
            [run.order.at(position) for position in stream.prompts(micro)]
            for micro in range(batch.accumulation)
        ]
    micros = batch.accumulation * world.data_size
    first = world.data_rank * batch.accumulation
    return [
        run.order.indices(step, batch.micro, first + i, micros) for i in range(batch.accumulation)
    ]
