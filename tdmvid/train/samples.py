"""Sample the student from fixed noise, during and after training."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..backbones.autoencode import decode_shown
from ..data.progress import progress
from ..data.video import write_clips, write_strip
from ..diffusion.denoiser import Cond
from ..diffusion.grid import TimeGrid
from ..diffusion.sampler import Solver, sample
from ..parallel import collectives
from .run import Run


class NotFinite(RuntimeError):
    """The student's samples are not finite."""


@dataclass(frozen=True)
class Part:
    """One batch of samples to generate."""

    z: Tensor
    """Noise [B, ...]."""
    cond: Cond
    prompts: range
    """Indices of the gallery's prompts."""


@dataclass(frozen=True)
class Samples:
    """The student's samples of all parts."""

    latents: Tensor
    """Latents [B, ...] on the device."""
    videos: Tensor | None
    """Decoded samples [B, 3, F, H, W] on the CPU; only on rank 0."""


def fixed_noise(run: Run, count: int, *, further: int = 0) -> Tensor:
    """Return noise that is the same in every call.

    Args:
        run: The run, which sets the seed, latent shape and device.
        count: Number of samples B.
        further: Added to the seed, for other noise.

    Returns:
        Noise [B, ...].
    """
    generator = torch.Generator(run.world.device).manual_seed(run.config.log.seed + further)
    return torch.randn(
        (count, *run.backbone.latent_shape()), generator=generator, device=run.world.device
    )


def sample_parts(run: Run) -> list[Part]:
    """Return what is sampled during training.

    The first part is the gallery. If the guard is on, a second part repeats some of the gallery's
    prompts with other noise.

    Args:
        run: The run.

    Returns:
        Batches to sample.
    """
    count = run.gallery.batch
    again = 0 if run.config.guard.action == "off" else min(run.config.guard.pairs, count)
    parts = [Part(fixed_noise(run, count), run.gallery, range(count))]
    if again:  # a separate batch, so that no more memory is needed than for the first
        cond = run.gallery.rows(slice(again))
        parts.append(Part(fixed_noise(run, again, further=2), cond, range(again)))
    return parts


def sample_student(
    run: Run,
    z: Tensor,
    cond: Cond,
    on_step=None,
    *,
    grid: TimeGrid | None = None,
    solver: Solver | None = None,
) -> Tensor:
    """Sample the student in K steps, with its EMA weights if it has any.

    Args:
        run: The run.
        z: Noise [B, ...].
        cond: Conditioning of the B samples.
        on_step: Called with the step k and the predicted x0 [B, ...] after each step.
        grid: Times of the steps; default: the run's grid.
        solver: Sampling solver; default: the one the student is trained with.

    Returns:
        Latents [B, ...].

    Raises:
        NotFinite: The latents are not finite.
    """
    objective, grid = run.config.objective, grid or run.grid
    cond = (
        cond.with_step_count(grid.steps, len(z), z.device)
        if objective.conditioned_on_steps
        else cond
    )
    fresh = torch.Generator(z.device).manual_seed(run.config.log.seed + 1)
    name = f"student, {grid.steps} steps"
    shown = progress(name, total=grid.steps)
    with run.engines["student"].averaged(), shown as bar:

        def done(k: int, x0: Tensor) -> None:
            bar.update()
            if on_step:
                on_step(k, x0)

        latents = sample(
            run.roles.student,
            z,
            cond,
            grid,
            solver=solver or objective.solver,
            generator=fresh,
            on_step=done,
        )
    if not latents.isfinite().all():
        raise NotFinite(
            "the student has diverged, its samples are not finite (see metrics.jsonl): lower"
            f" student.lr={run.config.student.lr:g} or fake.lr={run.config.fake.lr:g} in a new run"
            " (another --out)"
        )
    return latents


def write_samples(run: Run, step: int) -> Samples:
    """Sample the student and write the samples of the gallery's prompts.

    Writes samples/step_*.png with one row per prompt, and one mp4 per prompt.

    Args:
        run: The run.
        step: Number of completed iterations, for the file names.

    Returns:
        The samples of all parts.
    """
    parts = sample_parts(run)
    latents = [_sample_together(run, part) for part in parts]
    if not run.world.primary:
        return Samples(torch.cat(latents), None)
    videos = [decode_shown(run.backbone, each, "decoding samples") for each in latents]
    folder = run.config.folder / "samples"
    write_strip(folder / f"step_{step:06d}.png", videos[0])
    write_clips(folder / f"step_{step:06d}", videos[0], run.config.video.fps)
    return Samples(torch.cat(latents), torch.cat(videos))


def _sample_together(run: Run, part: Part) -> Tensor:
    """Sample the student; all ranks raise NotFinite if one does.

    A rank that went on alone would wait for ever in the next call's collectives.
    """
    found, reason = None, None
    try:
        found = sample_student(run, part.z, part.cond)
    except NotFinite as error:
        reason = error
    if not collectives.all_agree(reason is None) or found is None:
        raise reason or NotFinite("another rank's samples of the student are not finite")
    return found
