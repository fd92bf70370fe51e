"""Latent consistency distillation (arXiv 2310.04378) on the embedded teacher, as a baseline.

The student learns to predict the same clean sample from two neighbouring points of the teacher's
guided DDIM trajectory. Unlike TDM it needs real videos: it starts from noised latents of ground
truth. It is sampled with fresh noise between the steps. As in the paper's Algorithm 1, the target
uses the moving average of the student's weights, here that of the run. With the present weights,
as in the authors' LoRA variant (arXiv 2311.05556), a long run with a rate of 1e-4 was not stable.

Shapes: latents [B, ...], times [B].
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tdmvid.data.progress import progress
from tdmvid.diffusion.grid import TimeGrid, uniform
from tdmvid.diffusion.process import Process, broadcast
from tdmvid.diffusion.sampler import ddim_step
from tdmvid.distill.iteration import Outcome
from tdmvid.distill.losses import per_sample_mean
from tdmvid.shapes import world
from tdmvid.train.run import Run

from .loops import Method

POINTS = 50
"""Steps of the teacher's trajectory."""
HUBER = 1e-3
"""Constant of the pseudo-Huber loss, as in the authors' training script."""
BATCH = 16
"""Videos that are encoded together."""


@dataclass(frozen=True)
class Videos:
    """Ground truth with its captions."""

    latents: Tensor
    """Latents [N, ...]."""
    prompts: list[int]
    """Index of the prompt of each latent."""

    def rows(self, step: int, batch: int) -> list[int]:
        """Return the videos of an iteration, which go round.

        Args:
            step: The iteration.
            batch: Their number B.

        Returns:
            B indices.
        """
        return [(step * batch + offset) % len(self.latents) for offset in range(batch)]


@torch.no_grad()
def draw_videos(run: Run, prompts: list[str], count: int) -> Videos:
    """Draw and encode videos of the run's first prompts in their order.

    Args:
        run: The run.
        prompts: Captions of the shapes world.
        count: Number of videos N.

    Returns:
        The videos.
    """
    generator = torch.Generator().manual_seed(run.config.seed)
    chosen = [run.order.at(position) for position in range(count)]
    parts = []
    with progress("encoding videos", total=count, unit="video") as bar:
        for first in range(0, count, BATCH):
            things = [world.parse(prompts[index]) for index in chosen[first : first + BATCH]]
            parts.append(run.backbone.encode(world.draw_videos(things, generator)).float())
            bar.update(len(things))
    return Videos(torch.cat(parts), chosen)


def neighbours(grid: TimeGrid, u: Tensor) -> tuple[Tensor, Tensor]:
    """Choose neighbouring points of a grid.

    Args:
        grid: The grid.
        u: Uniform numbers in [0, 1), [B].

    Returns:
        Later and earlier times, [B] each.
    """
    times = grid.tensor(u.device)
    later = (u * grid.steps).long() + 1
    return times[later], times[later - 1]


def pseudo_huber(difference: Tensor) -> Tensor:
    """Compute the pseudo-Huber loss.

    Args:
        difference: Differences [B, ...].

    Returns:
        The loss of each sample, [B].
    """
    return per_sample_mean((difference.square() + HUBER**2).sqrt() - HUBER)


class Consistency:
    """Iterations of consistency distillation.

    Args:
        videos: Ground truth.
        process: Process of the teacher.
    """

    def __init__(self, videos: Videos, process: Process):
        self.videos, self.grid = videos, uniform(POINTS, process)

    def __call__(self, step, conds, shape, *, roles, engines, streams, **rest) -> Outcome:
        """Update the student.

        Args:
            step: Iteration.
            conds: Conditioning of the only micro-batch.
            shape: Its shape.
            roles: The networks.
            engines: Engine of the student.
            streams: Random generators.
            **rest: Not used.

        Returns:
            Result of the iteration.
        """
        (cond,), drawn = conds, streams.generator(step, "consistency")
        clean = self.videos.latents[self.videos.rows(step, shape[0])]
        later, earlier = neighbours(self.grid, torch.rand(shape[0], generator=drawn))
        process, noise = roles.teacher.process, torch.randn(shape, generator=drawn)
        x = process.noise(clean, noise, later)
        with torch.no_grad():
            x_before = ddim_step(process, x, roles.teacher(x, later, cond), later, earlier)
            with engines["student"].averaged():
                target = roles.student(x_before, earlier, cond)
            target = torch.where(broadcast(earlier, x) == 0, x_before, target)  # f(x, 0) = x
        loss = pseudo_huber(roles.student(x, later, cond) - target).mean()
        engines["student"].backward(loss)
        finite = bool(loss.detach().isfinite())
        result = engines["student"].step(skip=not finite)
        scalars = {"loss/student": float(loss.detach()), "grad_norm/student": result.grad_norm}
        return Outcome(scalars, None if result.applied else "student")


def consistency(run: Run, prompts: list[str], count: int = 512) -> Method:
    """Make the baseline of a run.

    Args:
        run: The run.
        prompts: Prompts of the run.
        count: Number of videos.

    Returns:
        The method.
    """
    videos = draw_videos(run, prompts, count)
    turn, batch = Consistency(videos, run.backbone.process), run.config.batch.micro
    return Method(turn, lambda step: [videos.prompts[row] for row in videos.rows(step, batch)])
