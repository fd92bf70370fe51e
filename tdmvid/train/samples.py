"""Pictures of the student at fixed noise, while it trains and at the end."""

from __future__ import annotations

import torch
from torch import Tensor

from ..data.video import write_clips, write_strip
from ..diffusion.denoiser import Cond
from ..diffusion.grid import TimeGrid
from ..diffusion.sampler import Solver, sample
from .run import Run


def fixed_noise(run: Run, count: int) -> Tensor:
    """The same noise in every call: [count, ...]."""
    generator = torch.Generator(run.world.device).manual_seed(run.config.log.seed)
    return torch.randn(
        (count, *run.backbone.latent_shape()), generator=generator, device=run.world.device
    )


def sample_student(
    run: Run,
    z: Tensor,
    cond: Cond,
    on_step=None,
    *,
    grid: TimeGrid | None = None,
    solver: Solver | None = None,
) -> Tensor:
    """K steps of the student, with its averaged weights if it keeps any, from z: latents [B, ...].

    By the run's own grid and the solver it was trained with, unless others are given. RuntimeError
    if they are not finite.
    """
    objective, grid = run.config.objective, grid or run.grid
    cond = (
        cond.with_step_count(grid.steps, len(z), z.device)
        if objective.conditioned_on_steps
        else cond
    )
    fresh = torch.Generator(z.device).manual_seed(run.config.log.seed + 1)
    with run.engines["student"].averaged():
        latents = sample(
            run.roles.student,
            z,
            cond,
            grid,
            solver=solver or objective.solver,
            generator=fresh,
            on_step=on_step,
        )
    if not latents.isfinite().all():
        raise RuntimeError(
            "the student's samples are not finite: it has diverged, see metrics.jsonl; lower"
            f" student.lr={run.config.student.lr:g} or fake.lr={run.config.fake.lr:g}, and start"
            " again or --resume from an earlier checkpoint"
        )
    return latents


def write_samples(run: Run, step: int) -> None:
    """samples/step_*.png (one row per prompt) and an mp4 per prompt."""
    latents = sample_student(run, fixed_noise(run, run.gallery.batch), run.gallery)
    if not run.world.primary:
        return
    videos = run.backbone.decode(latents).cpu()
    folder = run.config.folder / "samples"
    write_strip(folder / f"step_{step:06d}.png", videos)
    write_clips(folder / f"step_{step:06d}", videos, run.config.video.fps)
