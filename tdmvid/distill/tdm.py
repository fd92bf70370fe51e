"""Trajectory Distribution Matching (arXiv 2503.06674).

For each step k of the student, q(x_tau) of its own trajectory in the segment
[s_{k-1}, s_k] is matched to the teacher's distribution at the same tau. One fake score
serves all K segments because they do not overlap (Eq. 9).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ..diffusion.denoiser import Cond
from ..diffusion.process import Process, broadcast
from ..diffusion.sampler import Before, Solver, Trajectory, ddim_step, extrapolated
from .losses import (
    distance,
    effective_sample_share,
    importance_weight,
    per_sample_mean,
    snr_weight,
    velocity_weight,
)
from .objective import Draw, Roles, register


@register
@dataclass(frozen=True)
class TDM:
    """TDM's options; the defaults are those of the authors' released code."""

    kind: Literal["tdm"] = "tdm"
    cfg: float = 1.0
    """The teacher's guidance; 1 is none."""
    match: Literal["noisy", "clean"] = "noisy"
    """What is noised to tau: the trajectory's next state x_s, or the clean prediction (the paper's
    Table 8; DMD2's draw).
    """
    solver: Solver = "ddim"
    """How the student's trajectory goes on, see diffusion/sampler.py."""
    step_set: tuple[int, ...] = ()
    """Draw K from these every iteration (TDM-unify); empty trains the grid's own K alone."""
    k_condition: bool = True
    """Tell student and fake which K of the set it is, see adapters/step_condition.py."""
    segments: Literal["separate", "to_terminal", "everywhere"] = "separate"
    """tau in [s_{k-1}, s_k], or in [s_{k-1}, 1]: overlapping segments, which bias the one fake
    score; or in (0, 1], for `match` clean.
    """
    randmid: bool = False
    """Start the draw at a uniform time in [s_{k-1}, s_k - margin_low] instead of s_{k-1}."""
    margin_low: float = 0.02
    """tau stays at least this far above s (and at least one table entry)."""
    fresh_noise: float = 0.0
    """tau also stays where the fresh noise in x_tau has at least this level beta: nearly clean
    draws say nothing of a mode's mass.
    """
    margin_high: float = 0.01
    """tau stays this far below the segment's upper end."""
    distance: Literal["huber", "huber_vector", "l2"] = "huber"
    """The generator's loss, see losses.distance."""
    huber_c: float | None = None
    """None: 1e-3 for huber, 0.00054 sqrt(dimensions) for huber_vector."""
    fake_target: Literal["x0_hat", "exact"] = "x0_hat"
    """Regress on the student's prediction with importance weights (the released code), or on the
    exact conditional score.

    Only the exact one has the trajectory's own score as its optimum: a fake that regresses on
    x0_hat recognises it in the noise that x_s still carries.
    """
    importance: Literal["mean", "sum", "none"] = "mean"
    fake_weight: Literal["snr", "velocity"] = "snr"
    """snr: min(SNR, ceiling), the released code's, for eps-networks. velocity: min(1 / sigma^2,
    ceiling), the loss that v- and flow-networks are pretrained with; where the SNR ends at zero, as
    CogVideoX's does, the other hardly teaches the fake the first step.
    """
    snr_ceiling: float = 5.0
    fake_updates: int = 1
    """Fake updates per student update, each with a draw of its own."""
    draws: Literal["own", "shared"] = "own"
    """own: each turn has its own tau and noise, and the student sees the updated fake; shared: one
    draw and one call of the fake serve both.
    """
    rollout: Literal["stop", "full"] = "stop"
    """stop: one k for the whole iteration, the rollout ends there; full: a k per sample, K - 1
    calls.
    """

    def __post_init__(self):
        if not (0 <= self.margin_low < 1 and 0 <= self.margin_high < 1):
            raise ValueError(
                f"objective.margin_low={self.margin_low}, margin_high={self.margin_high}: margins"
                " are not negative, and less than 1"
            )
        if self.huber_c is not None and (self.huber_c <= 0 or self.distance == "l2"):
            raise ValueError(
                f"objective.huber_c={self.huber_c}, distance={self.distance!r}: it is above 0, and"
                " of the distances huber and huber_vector alone"
            )
        if self.fake_updates < 1:
            raise ValueError(
                f"objective.fake_updates={self.fake_updates}: the fake score needs at least 1"
                " update per iteration"
            )
        if self.draws == "shared" and (self.fake_updates > 1 or self.through_scores):
            raise ValueError(
                f"objective.draws='shared', fake_updates={self.fake_updates}, kind={self.kind!r}:"
                " one call of the fake serves one update of it and a gradient that does not pass"
                " through it; use draws='own', or fake_updates=1 and another kind than 'fisher'"
            )
        if not 0 <= self.fresh_noise < 1:
            raise ValueError(
                f"objective.fresh_noise={self.fresh_noise}: a noise level in [0, 1); 0 leaves the"
                " margins alone"
            )
        if not 0 <= self.cfg <= 1000 or self.snr_ceiling <= 0:
            raise ValueError(
                f"objective.cfg={self.cfg}, snr_ceiling={self.snr_ceiling}: guidance is >= 0 (and"
                " at most 1000) and the ceiling > 0"
            )
        if self.fake_weight == "velocity" and self.fake_target == "exact":
            raise ValueError(
                "objective.fake_weight='velocity': the exact target's variance is infinite at zero"
                " SNR; use fake_target='x0_hat', or 'snr'"
            )
        if self.importance == "sum" and (self.fake_target == "exact" or self.from_clean):
            raise ValueError(
                "objective.importance='sum': the exact target has no weights, and from a clean"
                " prediction all are 1; use x0_hat, noisy and ddim, or leave it out"
            )
        if self.segments == "everywhere" and self.randmid:
            raise ValueError(
                "objective.randmid=true with segments='everywhere', where tau does not depend on s:"
                " set it to false, or segments to 'separate'"
            )
        if self.segments == "everywhere" and self.match == "noisy":
            raise ValueError(
                "objective.segments='everywhere': tau must lie above a noisy x_s; use"
                " match='clean', or segments='separate'"
            )
        if any(k < 1 for k in self.step_set) or len(set(self.step_set)) < len(self.step_set):
            raise ValueError(
                f"objective.step_set={self.step_set}: numbers of steps, each once and at least 1"
            )

    through_scores: ClassVar[bool] = False
    """Whether the student's gradient is taken through fake and teacher."""

    @property
    def roles(self) -> tuple[str, ...]:
        """The fake first, so that the student sees an updated score."""
        return ("fake",) * self.fake_updates + ("student",)

    @property
    def told_steps(self) -> bool:
        """Whether the networks get K as a condition."""
        return bool(self.step_set) and self.k_condition

    @property
    def from_clean(self) -> bool:
        """Whether the clean prediction is noised to tau; with `renoise` the next state is one with
        fresh noise, so that is no other draw.
        """
        return self.match == "clean" or self.solver == "renoise"

    def draw(
        self, path: Trajectory, x0_hat: Tensor, generator: torch.Generator, process: Process
    ) -> Draw:
        """s, tau and noise; x_tau ~ q(x_tau | x_s) with x_s on the trajectory, one solver step from
        `path.x`.
        """
        clean = x0_hat.detach()
        u = torch.rand(2, len(clean), generator=generator, device=clean.device)
        eps = torch.randn(clean.shape, generator=generator, device=clean.device)
        s, tau = self._times(path, u, process)
        if self.from_clean:
            s = torch.zeros_like(s)
        ahead = (
            clean
            if self.solver != "dpm++"
            else extrapolated(process, clean, path.upper, s, path.before)
        )
        scale, beta = process.bridge(s, tau)
        x_tau = process.renoise(ddim_step(process, path.x, ahead, path.upper, s), eps, s, tau)
        return Draw(
            x0_hat,
            x_tau,
            s,
            tau,
            eps,
            process.eps_from_x0(x_tau, clean, tau),
            beta,
            self._slope(path, s, scale, process),
        )

    def _slope(self, path: Trajectory, s: Tensor, scale: Tensor, process: Process) -> Tensor:
        """d x_tau / d x0_hat: [B]."""
        (alpha_s, sigma_s), (alpha_u, sigma_u) = (
            process.alpha_sigma(s),
            process.alpha_sigma(path.upper),
        )
        ahead = 1.0
        if self.solver == "dpm++":
            one = torch.ones_like(s)
            ahead = extrapolated(
                process, one, path.upper, s, Before(torch.zeros_like(s), path.before.t)
            )
        return scale * (alpha_s - sigma_s * alpha_u / sigma_u) * ahead

    def _times(self, path: Trajectory, u: Tensor, process: Process) -> tuple[Tensor, Tensor]:
        s, gap = path.lower, max(self.margin_low, process.resolution)
        if self.randmid:
            s = process.snap(s + u[1] * (path.upper - gap - s).clamp(min=0))
        upper = path.upper if self.segments == "separate" else torch.ones_like(s)
        low = gap + (torch.zeros_like(s) if self.segments == "everywhere" else s)
        if self.fresh_noise > 0:
            low = torch.maximum(
                low,
                _time_of_noise(
                    process, torch.zeros_like(s) if self.from_clean else s, upper, self.fresh_noise
                ),
            )
        low = torch.minimum(low, upper)  # a segment shorter than the margin: its upper end
        high = torch.maximum(upper - self.margin_high, low)
        return s, process.snap(low + u[0] * (high - low))

    def loss(self, role: str, roles: Roles, draw: Draw, cond: Cond) -> dict[str, Tensor]:
        """The fake's denoising loss or the student's matching loss."""
        return (self._fake if role == "fake" else self._student)(roles, draw, cond)

    def _fake(self, roles: Roles, draw: Draw, cond: Cond) -> dict[str, Tensor]:
        """Weighted score matching (arXiv 2503.06674, L_psi), in the x0 parametrisation.

        The exact target x0* = (x_tau - sigma^2 eps / beta) / alpha is compared as alpha x0*,
        so nothing is divided by an alpha of zero. Its variance is sigma^4 / (alpha beta)^2 times
        that of the fresh noise, so a draw counts by beta^2 / sigma^2, the share of fresh noise in
        x_tau.
        """
        alpha, sigma = roles.fake.process.alpha_sigma(draw.tau)
        predicted = roles.fake(draw.x_tau, draw.tau, cond)
        if self.fake_target == "exact":
            target = draw.x_tau - broadcast(sigma.square() / draw.beta, draw.eps) * draw.eps
            error = (broadcast(alpha, target) * predicted - target).square()
            weight = (
                torch.minimum(1 / sigma.square(), self.snr_ceiling / alpha.square())
                * (draw.beta / sigma).square()
            )
            importance = torch.ones_like(weight)
        else:
            error = (predicted - draw.x0_hat.detach()).square()
            weight = (
                snr_weight(alpha, sigma, self.snr_ceiling)
                if self.fake_weight == "snr"
                else velocity_weight(sigma, self.snr_ceiling)
            )
            importance = importance_weight(draw.eps_mix, draw.eps, self.importance)
        loss = (importance * weight * per_sample_mean(error)).mean()
        return {"loss": loss, "ess": effective_sample_share(importance)}

    def _student(self, roles: Roles, draw: Draw, cond: Cond) -> dict[str, Tensor]:
        """The surrogate loss whose gradient in x0_hat points along teacher - fake (arXiv
        2503.06674, Eq. 11).
        """
        with torch.no_grad():
            teacher = roles.teacher(draw.x_tau, draw.tau, cond)
            fake = roles.fake(draw.x_tau, draw.tau, cond)
            clean = draw.x0_hat.detach()
            target = clean + teacher - fake
            norm = per_sample_mean((clean - teacher).abs()).clamp(min=1e-8)
        loss = distance(draw.x0_hat, target, norm, kind=self.distance, huber_c=self.huber_c)
        return {"loss": loss, "gap": (teacher - fake).abs().mean() / norm.mean()}


def _time_of_noise(process: Process, s: Tensor, upper: Tensor, level: float) -> Tensor:
    """The first time in [s, upper] at which q(x_tau | x_s) has that noise level, by bisection;
    `upper` if it never has: [B].
    """
    below, above = s, upper
    for _ in range(16):
        middle = (below + above) / 2
        enough = process.bridge(s, middle)[1] >= level
        below, above = torch.where(enough, below, middle), torch.where(enough, middle, above)
    return above
