"""The training loop: prompts -> trajectory -> draws -> losses -> steps, then the LoRA and the
report.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

from ..config import RunConfig, to_dict
from ..data.files import write_json
from ..distill.iteration import Outcome, iterate, pick_grid
from ..parallel import launch
from ..roles.rules import check_folders
from .checkpoint import Checkpoints, flat
from .finalize import finish
from .monitor import Monitor
from .run import Run, build_run
from .samples import write_samples
from .signals import Interrupted, Watch


class TrainingStopped(RuntimeError):
    """Too many iterations in a row were not finite; the last good state is in a checkpoint."""


def train(
    config: RunConfig,
    *,
    resume: str = "",
    commands: dict[str, str] | None = None,
    at_end: Callable[[Run], None] | None = None,
) -> Path:
    """Train, export, report; returns the run folder.

    resume: "auto" (the newest whole checkpoint of the run, if any), a checkpoint folder, or "";
    at_end: what is done with the trained run instead of exporting and reporting.
    """
    world = launch.start(
        config.parallel.backend, config.parallel.timeout_minutes, sequence=config.parallel.sequence
    )
    launch.check_same("config", flat(to_dict(config)) | {"--resume": resume})
    folder = config.folder
    check_folders(config)
    checkpoints = Checkpoints(
        folder / "checkpoints", keep=config.log.keep_checkpoints, rank=world.rank, ranks=world.size
    )
    if not resume and checkpoints.steps():
        raise ValueError(
            f"{folder} holds a run with checkpoints: continue it with --resume auto, or choose"
            " another --out"
        )
    # One rank looks: a shared file system may show another machine the folder as it was.
    path = (
        launch.of_first(checkpoints.latest() if world.primary else None)
        if resume == "auto"
        else Path(resume)
        if resume
        else None
    )
    run = build_run(config, world, resumed=path is not None)
    start = _resume(run, checkpoints, path) if path else 0
    if world.primary:
        write_json(folder / "config.json", to_dict(config))
        write_json(
            folder / "commands.json",
            {"commands": [{"what": w, "command": c} for w, c in (commands or {}).items()]},
        )
        if run.rounding:
            run.rounding.save(folder)
            print(run.rounding, flush=True)
        else:
            (folder / "quantized.json").unlink(
                missing_ok=True
            )  # of a run that ended here before its first checkpoint
    monitor = Monitor(folder, total=config.steps, start=start, primary=world.primary)
    try:
        with Watch(folder, world, config.parallel.timeout_minutes) as watch:
            _loop(run, start, checkpoints, monitor, watch)
    finally:
        checkpoints.close()
        monitor.close()
    (at_end or finish)(run)
    launch.finish()
    return folder


def _resume(run: Run, checkpoints: Checkpoints, path: Path) -> int:
    start = Checkpoints.load(
        path, run.engines, run.fingerprint, to_dict(RunConfig()) | {"init": None}
    )
    if start > run.config.steps:
        raise ValueError(
            f"{path} holds {start} steps, this run has steps={run.config.steps}: raise steps, or"
            " resume an earlier checkpoint"
        )
    checkpoints.forget_after(start)
    return start


def _loop(run: Run, start: int, checkpoints: Checkpoints, monitor: Monitor, watch: Watch) -> None:
    config, log, bad = run.config, run.config.log, 0
    for step in range(start, config.steps):
        watch.beat(step)
        outcome, scalars = _iteration(run, step)
        monitor.log(step, scalars)
        bad = bad + 1 if outcome.failed else 0
        if outcome.failed:
            print(
                f"step {step}: loss or gradient of the {outcome.failed} is not finite; it was not"
                f" stepped ({bad} in a row)",
                file=sys.stderr,
            )
        done = step + 1
        if bad >= config.max_bad_steps:
            path = checkpoints.save(done, run.engines, run.fingerprint)
            checkpoints.wait()
            raise TrainingStopped(
                f"stopped: the {outcome.failed}'s loss or gradient was not finite in {bad}"
                f" iterations in a row, up to step {step}; the last good state is {path}. Check the"
                f" prompts and the teacher's dtype, or lower {outcome.failed}.lr in a new run"
                " (another --out)"
            )
        last = done == config.steps
        stop = not last and watch.told_to_stop()
        if last or stop or log.checkpoint_every and done % log.checkpoint_every == 0:
            path = checkpoints.save(done, run.engines, run.fingerprint)
        if last or stop:
            checkpoints.wait()
        if stop:
            raise Interrupted(
                f"stopped as asked, {done:,} of {config.steps:,} iterations done; the state is"
                f" {path}: continue with --resume auto"
            )
        if last or log.sample_every and done % log.sample_every == 0:
            write_samples(run, done)


def _iteration(run: Run, step: int) -> tuple[Outcome, dict[str, float]]:
    """One iteration, and its scalars averaged over the ranks; calls: of all networks, per sample."""
    batch, began, before = run.config.batch, time.perf_counter(), run.evaluated()
    outcome = iterate(
        step,
        _micro_batches(run, step),
        (batch.micro, *run.backbone.latent_shape()),
        objective=run.config.objective,
        roles=run.roles,
        engines=run.engines,
        grid=pick_grid(run.grids, run.streams.generator(step, "K", device="cpu")),
        streams=run.streams,
        first_stream=run.world.data_rank * batch.accumulation,
    )
    calls = (run.evaluated() - before) / (batch.micro * batch.accumulation)
    return outcome, launch.mean(outcome.scalars) | {
        "calls": calls,
        "seconds": time.perf_counter() - began,
    }


def _micro_batches(run: Run, step: int) -> list:
    batch, world = run.config.batch, run.world
    micros = batch.accumulation * world.data_size
    first = world.data_rank * batch.accumulation
    return [
        run.conds(run.order.indices(step, batch.micro, first + i, micros))
        for i in range(batch.accumulation)
    ]
