"""The training loop: prompts -> trajectory -> draws -> losses -> steps, then the LoRA and the report."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from ..config import RunConfig, to_dict
from ..data.files import write_json
from ..distill.iteration import iterate, pick_grid
from ..parallel import launch
from .checkpoint import Checkpoints, flat
from .finish import finish
from .monitor import Monitor
from .samples import write_samples
from .setup import Run, build_run
from .watch import Interrupted, Watch


class TrainingStopped(RuntimeError):
    """Too many iterations in a row were not finite; the last good state is in a checkpoint."""


def train(config: RunConfig, *, resume: str = "", commands: dict[str, str] | None = None) -> Path:
    """Train, export, report; returns the run folder.

    resume: "auto" (the newest whole checkpoint of the run, if any), a checkpoint folder, or "".
    """
    world = launch.start(config.parallel.backend, config.parallel.timeout_minutes, sequence=config.parallel.sequence)
    launch.check_same("config", flat(to_dict(config)))
    folder = config.folder
    checkpoints = Checkpoints(folder / "checkpoints", keep=config.log.keep_checkpoints, rank=world.rank, ranks=world.size)
    if not resume and checkpoints.steps():
        raise ValueError(f"{folder} holds a run with checkpoints: continue it with --resume auto, or choose another --out")
    run = build_run(config, world)
    start = _resume(run, checkpoints, resume)
    if world.primary:
        write_json(folder / "config.json", to_dict(config))
        write_json(folder / "commands.json", {"commands": [{"what": w, "command": c} for w, c in (commands or {}).items()]})
    monitor = Monitor(folder, total=config.steps, start=start, primary=world.primary)
    try:
        with Watch(folder, world, config.parallel.timeout_minutes) as watch:
            _loop(run, start, checkpoints, monitor, watch)
    finally:
        checkpoints.close()
        monitor.close()
    finish(run)
    launch.finish()
    return folder


def _resume(run: Run, checkpoints: Checkpoints, resume: str) -> int:
    path = checkpoints.latest() if resume == "auto" else Path(resume) if resume else None
    if path is None:
        return 0
    start = Checkpoints.load(path, run.engines, run.fingerprint, to_dict(RunConfig()))
    if start > run.config.steps:
        raise ValueError(f"{path} holds {start} steps, this run has steps={run.config.steps}: raise steps, or resume an earlier checkpoint")
    checkpoints.forget_after(start)
    return start


def _loop(run: Run, start: int, checkpoints: Checkpoints, monitor: Monitor, watch: Watch) -> None:
    config, log, bad = run.config, run.config.log, 0
    for step in range(start, config.steps):
        watch.beat(step)
        began, before = time.perf_counter(), run.evaluated()
        grid = pick_grid(run.grids, run.streams.generator(step, "K", device="cpu"))
        outcome = iterate(
            step, _micro_batches(run, step), (config.batch.micro, *run.backbone.latent_shape()),
            objective=config.objective, roles=run.roles, engines=run.engines, grid=grid,
            streams=run.streams, first_stream=run.world.data_rank * config.batch.accumulation,
        )
        calls = (run.evaluated() - before) / (config.batch.micro * config.batch.accumulation)
        scalars = launch.mean(outcome.scalars) | {"calls": calls, "seconds": time.perf_counter() - began}
        monitor.log(step, scalars)
        bad = bad + 1 if outcome.failed else 0
        if outcome.failed:
            print(f"step {step}: loss or gradient of the {outcome.failed} is not finite; it was not stepped ({bad} in a row)", file=sys.stderr)
        done = step + 1
        if bad >= config.max_bad_steps:
            path = checkpoints.save(done, run.engines, run.fingerprint)
            checkpoints.wait()
            raise TrainingStopped(
                f"stopped: the {outcome.failed}'s loss or gradient was not finite in {bad} iterations in a row, up to step {step};"
                f" the last good state is {path}. Check the prompts and the teacher's dtype, or lower {outcome.failed}.lr in a new run (another --out)"
            )
        last = done == config.steps
        stop = not last and watch.told_to_stop()
        if last or stop or log.checkpoint_every and done % log.checkpoint_every == 0:
            path = checkpoints.save(done, run.engines, run.fingerprint)
        if last or stop:
            checkpoints.wait()
        if stop:
            raise Interrupted(f"asked to stop after step {step}; the state is {path}: continue with --resume auto")
        if last or log.sample_every and done % log.sample_every == 0:
            write_samples(run, done)


def _micro_batches(run: Run, step: int) -> list:
    batch, world = run.config.batch, run.world
    micros = batch.accumulation * world.data_size
    first = world.data_rank * batch.accumulation
    return [run.conds(run.order.indices(step, batch.micro, first + i, micros)) for i in range(batch.accumulation)]
