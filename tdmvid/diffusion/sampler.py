"""Deterministic samplers and the student's trajectory.

Shapes: B batch, K steps; states and predictions are [B, ...]; `k` counts from K down to 1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .denoiser import Cond, Denoiser
from .grid import TimeGrid
from .process import Process


def times_like(x: Tensor, t: float) -> Tensor:
    """The time t for every sample of x: [B], float32."""
    return torch.full((len(x),), t, device=x.device)


def ddim_step(process: Process, x_t: Tensor, x0: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """x_s = alpha_s x0 + sigma_s eps with eps = (x_t - alpha_t x0) / sigma_t (arXiv 2010.02502, Eq. 12, eta = 0)."""
    return process.noise(x0, process.eps_from_x0(x_t, x0, t), s)


@torch.no_grad()
def ddim(
    denoiser: Denoiser, z: Tensor, cond: Cond, grid: TimeGrid, *,
    on_step: Callable[[int, Tensor], None] | None = None,
) -> Tensor:
    """Sample by K deterministic steps from z at s_K: the final clean prediction [B, ...].

    `on_step(k, x0)` sees the clean prediction of every step.
    """
    x = z
    for k in range(grid.steps, 0, -1):
        t, s = times_like(x, grid.times[k]), times_like(x, grid.times[k - 1])
        x0 = denoiser(x, t, cond)
        if on_step is not None:
            on_step(k, x0)
        x = ddim_step(denoiser.process, x, x0, t, s)
    return x0


@dataclass(frozen=True)
class Trajectory:
    """Where a batch stands on the student's trajectory: at s_k, before the call of step k.

    x: [B, ...] the state at `upper`; upper = s_k and lower = s_{k-1}: [B].
    """

    x: Tensor
    k: Tensor
    lower: Tensor
    upper: Tensor
    cond: Cond


@torch.no_grad()
def rollout(denoiser: Denoiser, z: Tensor, cond: Cond, grid: TimeGrid, k: Tensor, *, calls: int) -> Trajectory:
    """Run the student from z at s_K down to s_k without gradient, k per sample ([B], in 1..K).

    `calls` steps are made, at least K - min(k); every rank must pass the same number, because
    sharded networks meet in each call. The one call at s_k itself is left to the caller.
    """
    times = grid.tensor(z.device)
    states = [z]
    for step in range(grid.steps, grid.steps - calls, -1):
        x = states[-1]
        t, s = times_like(x, grid.times[step]), times_like(x, grid.times[step - 1])
        states.append(ddim_step(denoiser.process, x, denoiser(x, t, cond), t, s))
    x = torch.stack(states)[grid.steps - k, torch.arange(len(z), device=z.device)]
    return Trajectory(x, k, times[k - 1], times[k], cond)
