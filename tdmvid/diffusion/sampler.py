"""Samplers and the student's trajectory.

Shapes: B is the batch size, K the number of steps; states and predictions are [B, ...]. The step k
counts down from K to 1.
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
    """Repeat a time for every sample of a batch.

    Args:
        x: Samples, [B, ...].
        t: The time.

    Returns:
        Times on the device of x, [B] float32.
    """
    return torch.full((len(x),), t, device=x.device)


def ddim_step(process: Process, x_t: Tensor, x0: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """Make a deterministic DDIM step (arXiv 2010.02502, Eq. 12, eta = 0).

    x_s = alpha_s x0 + sigma_s eps with eps = (x_t - alpha_t x0) / sigma_t.

    Args:
        process: Process of the network.
        x_t: States, [B, ...].
        x0: Clean predictions at x_t, [B, ...].
        t: Times of x_t with sigma > 0, [B].
        s: Times to step to, [B].

    Returns:
        x_s, [B, ...].
    """
    return process.noise(x0, process.eps_from_x0(x_t, x0, t), s)


Solver = Literal["ddim", "dpm++", "renoise"]
"""Solver of a trajectory. Each needs one call of the network per step.

* `ddim`: deterministic, first order.
* `dpm++`: DPM-Solver++ 2M (arXiv 2211.01095, Algorithm 2), deterministic, second order, from two
  clean predictions.
* `renoise`: adds fresh noise to the clean prediction; the stochastic sampler of consistency models
  and DMD2.
"""


@dataclass(frozen=True)
class Before:
    """Previous clean prediction, for a multistep solver."""

    x0: Tensor
    """Clean prediction of the previous step, [B, ...]."""
    t: Tensor
    """Its time, [B]. A time equal to the current time means that there is no previous step."""


class Tip(NamedTuple):
    """End of a rollout: all samples at s_k, before the call of step k."""

    x: Tensor
    """States, [B, ...]."""
    before: Before
    """Previous clean prediction."""
    k: int
    """Step of the next call, the same for all samples."""


def log_snr(process: Process, t: Tensor) -> Tensor:
    """Compute half the log signal-to-noise ratio, lambda = log(alpha / sigma).

    Args:
        process: Process of the network.
        t: Times, [B].

    Returns:
        lambda, [B]; infinite where alpha or sigma is 0.
    """
    alpha, sigma = process.alpha_sigma(t)
    return alpha.log() - sigma.log()


def extrapolated(process: Process, x0: Tensor, t: Tensor, s: Tensor, before: Before) -> Tensor:
    """Extrapolate the clean prediction as in DPM-Solver++ 2M (arXiv 2211.01095, Algorithm 2).

    D = x0 + h / (2 h_before) (x0 - x0_before), with steps h in lambda = log(alpha / sigma). D is x0
    in the first step, in the last step (to s = 0, where h is infinite) and after a step from pure
    noise.

    Args:
        process: Process of the network.
        x0: Clean predictions at t, [B, ...].
        t: Current times, [B].
        s: Times to step to, [B].
        before: Previous clean predictions.

    Returns:
        The clean sample D to step with, [B, ...].
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
    """Make one step of a solver.

    Args:
        process: Process of the network.
        x_t: States, [B, ...].
        x0: Clean predictions at x_t, [B, ...].
        t: Times of x_t, [B].
        s: Times to step to, [B].
        before: Previous clean predictions, used by `dpm++`.
        solver: The solver.
        eps: Fresh noise, [B, ...], required by `renoise`.

    Returns:
        x_s, [B, ...].
    """
    if solver == "renoise":
        assert eps is not None, "renoise needs fresh noise"
        return process.noise(x0, eps, s)
    return ddim_step(
        process, x_t, extrapolated(process, x0, t, s, before) if solver == "dpm++" else x0, t, s
    )


def fresh_noise(x: Tensor, solver: Solver, generator: torch.Generator | None) -> Tensor | None:
    """Draw fresh noise if the solver needs it.

    Args:
        x: States, [B, ...]; shape and device of the noise.
        solver: The solver.
        generator: Generator of the noise.

    Returns:
        Standard normal noise, [B, ...], for `renoise`; None for other solvers.

    Raises:
        ValueError: If `renoise` has no generator.
    """
    if solver != "renoise":
        return None
    if generator is None:
        raise ValueError(
            "solver='renoise' draws fresh noise in every step: pass a generator, or use 'ddim'"
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
    """Sample from noise in K steps.

    Args:
        denoiser: Network to sample from.
        z: Noise at s_K, [B, ...].
        cond: Conditioning of the batch.
        grid: Times of the K steps.
        solver: Solver of the trajectory.
        generator: Generator of fresh noise, required by `renoise`.
        on_step: Called as `on_step(k, x0)` with the clean prediction of every step, [B, ...].

    Returns:
        The final clean prediction, [B, ...].
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
    """Sample from the end of a rollout to the clean sample.

    Args:
        denoiser: Network of the rollout.
        path: Result of `rollout`.
        grid: Grid of the rollout.
        x0_hat: Clean prediction at the end of the rollout, [B, ...], if known; saves one call.
        solver: Solver of the rollout.
        generator: Generator of fresh noise, required by `renoise`.

    Returns:
        The final clean prediction, [B, ...].
    """
    assert path.tip is not None, "only a trajectory from `rollout` has a tip"
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
    """Step from a tip to s_0; `first` is the clean prediction of the first call, if known."""
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
    """Sample from noise with DDIM steps (deterministic, first order).

    Args:
        denoiser: Network to sample from.
        z: Noise at s_K, [B, ...].
        cond: Conditioning of the batch.
        grid: Times of the K steps.
        on_step: See `sample`.

    Returns:
        The final clean prediction, [B, ...].
    """
    return sample(denoiser, z, cond, grid, on_step=on_step)


@dataclass(frozen=True)
class Trajectory:
    """State of a batch on the student's trajectory: at s_k, before the call of step k."""

    x: Tensor
    """States at `upper`, [B, ...]."""
    k: Tensor
    """Step of the next call, in 1..K, [B]."""
    lower: Tensor
    """s_{k-1}, the end of step k, [B]."""
    upper: Tensor
    """s_k, the start of step k, [B]."""
    cond: Cond
    """Conditioning of the batch."""
    before: Before | None = None
    """Previous clean prediction, for the multistep solver `dpm++`; None for the others."""
    start: float | Tensor = 1.0
    """s_K, the start of the trajectory: one time, or [B] if samples have different K."""
    floor: Tensor | None = None
    """Lowest time of the network that is called at `upper`, [B]. None means 0."""
    tip: Tip | None = None
    """End of the rollout, for all samples."""


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
    """Run the student from noise at s_K to s_k, without gradient.

    The call at s_k itself is left to the caller.

    Args:
        denoiser: The student.
        z: Noise at s_K, [B, ...].
        cond: Conditioning of the batch.
        grid: Times of the student's steps.
        k: Step at which each sample stops, in 1..K, [B].
        calls: Number of network calls, at least K - min(k). All ranks must pass the same number,
            because each call of a sharded network is a collective operation.
        solver: Solver of the trajectory.
        generator: Generator of fresh noise, required by `renoise`.

    Returns:
        The states at s_k, with the end of the rollout as `tip`.
    """
    times = grid.tensor(z.device)
    states, memory = [z], [Before(torch.zeros_like(z), times_like(z, grid.times[-1]))]
    for step in range(grid.steps, grid.steps - calls, -1):
        x = states[-1]
        t, s = times_like(x, grid.times[step]), times_like(x, grid.times[step - 1])
        x0 = denoiser(x, t, cond)
        eps = fresh_noise(x, solver, generator)
        states.append(advance(denoiser.process, x, x0, t, s, memory[-1], solver=solver, eps=eps))
        memory.append(Before(x0, t))
    here = grid.steps - k, torch.arange(len(z), device=z.device)
    return Trajectory(
        torch.stack(states)[here],
        k,
        times[k - 1],
        times[k],
        cond,
        _pick(memory, here) if solver == "dpm++" else None,
        grid.times[-1],
        grid.floors(z.device)[k] if grid.boundary else None,
        Tip(states[-1], memory[-1], grid.steps - calls),
    )


def _pick(memory: list[Before], here: tuple[Tensor, Tensor]) -> Before:
    """Return the prediction and time of each sample's own step. `here` is (steps [B], rows [B])."""
    x0, t = (torch.stack([getattr(one, name) for one in memory])[here] for name in ("x0", "t"))
    return Before(x0, t)
