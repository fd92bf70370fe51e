"""Samplers and the student's trajectory.

Shapes: B batch, K steps; states and predictions are [B, ...]; `k` counts from K down to 1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from .denoiser import Cond, Denoiser
from .grid import TimeGrid
from .process import Process, broadcast


def times_like(x: Tensor, t: float) -> Tensor:
    """The time t for every sample of x: [B], float32."""
    return torch.full((len(x),), t, device=x.device)


def ddim_step(process: Process, x_t: Tensor, x0: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """x_s = alpha_s x0 + sigma_s eps with eps = (x_t - alpha_t x0) / sigma_t (arXiv 2010.02502, Eq.
    12, eta = 0).
    """
    return process.noise(x0, process.eps_from_x0(x_t, x0, t), s)


Solver = Literal["ddim", "dpm++", "renoise"]
"""How a trajectory goes on from a clean prediction; each costs one call of the network a step.

ddim     deterministic, first order
dpm++    DPM-Solver++ 2M (arXiv 2211.01095, Algorithm 2): deterministic, second order, from two
clean predictions renoise  the clean prediction with fresh noise: the stochastic sampler of
consistency models and DMD2
"""


@dataclass(frozen=True)
class Before:
    """The previous clean prediction [B, ...] of a multistep solver and its time [B]; a time of t
    itself means none.
    """

    x0: Tensor
    t: Tensor


class Tip(NamedTuple):
    """The end of a rollout: all samples at s_k of one k, before its call."""

    x: Tensor
    before: Before
    k: int


def log_snr(process: Process, t: Tensor) -> Tensor:
    """lambda = log(alpha / sigma): [B]; infinite at either end."""
    alpha, sigma = process.alpha_sigma(t)
    return alpha.log() - sigma.log()


def extrapolated(process: Process, x0: Tensor, t: Tensor, s: Tensor, before: Before) -> Tensor:
    """The clean sample that DPM-Solver++ 2M steps with: D = x0 + h / (2 h_before) (x0 - x0_before).

    x0 itself at the first step, at the last (to s = 0, where h is infinite) and after one from pure
    noise.
    """
    lambda_t, lambda_s = log_snr(process, t), log_snr(process, s)
    ratio = (lambda_s - lambda_t) / (lambda_t - log_snr(process, before.t))
    ratio = torch.where((before.t > t) & (s > 0), ratio, 0.0)
    return x0 + broadcast(ratio / 2, x0) * (x0 - before.x0)


def advance(
    process: Process,
    x_t: Tensor,
    x0: Tensor,
    t: Tensor,
    s: Tensor,
    before: Before,
    *,
    solver: Solver = "ddim",
    eps: Tensor | None = None,
) -> Tensor:
    """x_s from x_t and its clean prediction; `eps` is the fresh noise of `renoise`."""
    if solver == "renoise":
        assert eps is not None, "renoise takes fresh noise"
        return process.noise(x0, eps, s)
    return ddim_step(
        process, x_t, extrapolated(process, x0, t, s, before) if solver == "dpm++" else x0, t, s
    )


def fresh_noise(x: Tensor, solver: Solver, generator: torch.Generator | None) -> Tensor | None:
    """Noise in the shape of x where the solver takes some; ValueError without a generator."""
    if solver != "renoise":
        return None
    if generator is None:
        raise ValueError(
            "solver='renoise' draws fresh noise at every step: pass a generator, or use 'ddim'"
        )
    return torch.randn(x.shape, generator=generator, device=x.device)


@torch.no_grad()
def sample(
    denoiser: Denoiser,
    z: Tensor,
    cond: Cond,
    grid: TimeGrid,
    *,
    solver: Solver = "ddim",
    generator: torch.Generator | None = None,
    on_step: Callable[[int, Tensor], None] | None = None,
) -> Tensor:
    """Sample by K steps from z at s_K: the final clean prediction [B, ...].

    `on_step(k, x0)` sees the clean prediction of every step; `generator` is for `renoise`.
    """
    tip = Tip(z, Before(torch.zeros_like(z), times_like(z, grid.times[-1])), grid.steps)
    return _walk(denoiser, tip, cond, grid, solver=solver, generator=generator, on_step=on_step)


@torch.no_grad()
def finish(
    denoiser: Denoiser,
    path: Trajectory,
    grid: TimeGrid,
    *,
    x0_hat: Tensor | None = None,
    solver: Solver = "ddim",
    generator: torch.Generator | None = None,
) -> Tensor:
    """Go on from where a rollout ended: the final clean prediction [B, ...].

    Args:
        denoiser: That of the rollout.
        path: What `rollout` returned.
        grid: That of the rollout.
        x0_hat: The clean prediction where the rollout ended, if it is known: one call less.
        solver: That of the rollout.
        generator: For `renoise`.
    """
    assert path.tip is not None, "a rollout knows where it ended"
    return _walk(
        denoiser, path.tip, path.cond, grid, first=x0_hat, solver=solver, generator=generator
    )


def _walk(
    denoiser: Denoiser,
    tip: Tip,
    cond: Cond,
    grid: TimeGrid,
    *,
    first: Tensor | None = None,
    solver: Solver,
    generator: torch.Generator | None,
    on_step: Callable[[int, Tensor], None] | None = None,
) -> Tensor:
    """The final clean prediction; first: that of the first call, if it is known."""
    x, before, _ = tip
    for k in range(tip.k, 0, -1):
        t, s = times_like(x, grid.times[k]), times_like(x, grid.times[k - 1])
        x0 = first if k == tip.k and first is not None else denoiser(x, t, cond)
        if on_step is not None:
            on_step(k, x0)
        eps = fresh_noise(x, solver, generator)
        x = advance(denoiser.process, x, x0, t, s, before, solver=solver, eps=eps)
        before = Before(x0, t)
    return before.x0


def ddim(
    denoiser: Denoiser,
    z: Tensor,
    cond: Cond,
    grid: TimeGrid,
    *,
    on_step: Callable[[int, Tensor], None] | None = None,
) -> Tensor:
    """`sample` by deterministic first-order steps."""
    return sample(denoiser, z, cond, grid, on_step=on_step)


@dataclass(frozen=True)
class Trajectory:
    """Where a batch stands on the student's trajectory: at s_k, before the call of step k.

    x: [B, ...] the state at `upper`; upper = s_k and lower = s_{k-1}: [B]; before: what a multistep
    solver remembers; start: s_K, where the trajectory begins; [B] where samples have their own K.
    """

    x: Tensor
    k: Tensor
    lower: Tensor
    upper: Tensor
    cond: Cond
    before: Before | None = None
    start: float | Tensor = 1.0
    floor: Tensor | None = None
    """The lowest time of the network that is called at `upper`, [B]; None is 0."""
    tip: Tip | None = None
    """Where the rollout ended, for all samples alike."""


@torch.no_grad()
def rollout(
    denoiser: Denoiser,
    z: Tensor,
    cond: Cond,
    grid: TimeGrid,
    k: Tensor,
    *,
    calls: int,
    solver: Solver = "ddim",
    generator: torch.Generator | None = None,
) -> Trajectory:
    """Run the student from z at s_K down to s_k without gradient, k per sample ([B], in 1..K).

    `calls` steps are made, at least K - min(k); every rank must pass the same number, because
    sharded networks meet in each call. The one call at s_k itself is left to the caller.
    """
    times = grid.tensor(z.device)
    states, memory = [z], [Before(torch.zeros_like(z), times_like(z, grid.times[-1]))]
    for step in range(grid.steps, grid.steps - calls, -1):
        x = states[-1]
        t, s = times_like(x, grid.times[step]), times_like(x, grid.times[step - 1])
        x0 = denoiser(x, t, cond)
        states.append(
            advance(
                denoiser.process,
                x,
                x0,
                t,
                s,
                memory[-1],
                solver=solver,
                eps=fresh_noise(x, solver, generator),
            )
        )
        memory.append(Before(x0, t))
    here = grid.steps - k, torch.arange(len(z), device=z.device)
    before = Before(
        torch.stack([m.x0 for m in memory])[here], torch.stack([m.t for m in memory])[here]
    )
    return Trajectory(
        torch.stack(states)[here],
        k,
        times[k - 1],
        times[k],
        cond,
        before,
        grid.times[-1],
        grid.floors(z.device)[k] if grid.boundary else None,
        Tip(states[-1], memory[-1], grid.steps - calls),
    )
