"""Trajectory Distribution Matching (TDM, arXiv 2503.06674).

For each step k of the student, the distribution q(x_tau) on the student's trajectory is matched to
the teacher's distribution at the same tau, for tau in the segment [s_{k-1}, s_k]. One fake network
models all K segments, because they do not overlap (Eq. 9).

Shapes: B is the batch size; samples are [B, ...]; times and weights are [B].
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..config import TDMSettings
from ..diffusion.denoiser import Cond
from ..diffusion.process import Process, broadcast
from ..diffusion.sampler import Before, Trajectory, ddim_step, extrapolated
from .losses import (
    distance,
    effective_sample_share,
    importance_weight,
    per_sample_mean,
    snr_weight,
    velocity_weight,
)
from .objective import Draw, Roles, register

MARGINS = 0.5
"""Largest share of a segment that both margins of tau take. Many steps and a large shift of the
time grid make segments shorter than the margins."""


@register
class TDM(TDMSettings):
    """Draw and losses of TDM (arXiv 2503.06674), with its settings."""

    def draw(
        self, path: Trajectory, x0_hat: Tensor, generator: torch.Generator, process: Process
    ) -> Draw:
        """Draw s, tau and noise, and sample x_tau from q(x_tau | x_s).

        x_s is on the student's trajectory, one solver step from `path.x`.

        Args:
            path: The student's trajectory at s_k.
            x0_hat: The student's clean predictions at s_k, [B, ...].
            generator: Generator of times and noise.
            process: Process of the teacher.

        Returns:
            The draw, with x_tau [B, ...] and tau [B].
        """
        clean = x0_hat.detach()
        u = torch.rand(2, len(clean), generator=generator, device=clean.device)
        eps = torch.randn(clean.shape, generator=generator, device=clean.device)
        s, tau = self._times(path, u, process)
        if self.from_clean:
            s = torch.zeros_like(s)
        ahead = clean
        if self.solver == "dpm++":
            assert path.before is not None, "dpm++ needs the previous prediction"
            ahead = extrapolated(process, clean, path.upper, s, path.before)
        scale, beta = process.bridge(s, tau)
        x_s = ddim_step(process, path.x, ahead, path.upper, s)
        x_tau = process.renoise(x_s, eps, s, tau)
        return Draw(
            x0_hat,
            x_tau,
            s,
            tau,
            eps,
            process.eps_from_x0(x_tau, clean, tau),
            beta,
            self._slope(path, s, scale, process),
            x_s,
        )

    def _slope(self, path: Trajectory, s: Tensor, scale: Tensor, process: Process) -> Tensor:
        """Compute d x_tau / d x0_hat, [B]."""
        (alpha_s, sigma_s), (alpha_u, sigma_u) = (
            process.alpha_sigma(s),
            process.alpha_sigma(path.upper),
        )
        ahead = torch.ones_like(s)
        if self.solver == "dpm++":
            assert path.before is not None, "dpm++ needs the previous prediction"
            one = torch.ones_like(s)
            ahead = extrapolated(
                process, one, path.upper, s, Before(torch.zeros_like(s), path.before.t)
            )
        return scale * (alpha_s - sigma_s * alpha_u / sigma_u) * ahead

    def _times(self, path: Trajectory, u: Tensor, process: Process) -> tuple[Tensor, Tensor]:
        """Map uniform numbers u, [2, B], to s and tau, each [B]."""
        s, zero = path.lower, torch.zeros_like(path.lower)
        end = {"separate": path.upper, "to_terminal": path.start, "everywhere": 1.0}[self.segments]
        upper = torch.as_tensor(end, dtype=s.dtype, device=s.device).expand_as(s)
        everywhere = self.segments == "everywhere"
        below, above = self._margins(upper - (zero if everywhere else s), process)
        if self.randmid:  # leave room for both margins of tau
            last = torch.minimum(path.upper, upper - above) - below
            s = process.snap(s + u[1] * (last - s).clamp(min=0))
        low = below + (zero if everywhere else s)
        if self.fresh_noise > 0:
            low = torch.maximum(
                low,
                _time_of_noise(process, zero if self.from_clean else s, upper, self.fresh_noise),
            )
        if path.floor is not None:
            low = torch.maximum(low, path.floor)
        low = torch.minimum(low, upper)  # of fresh noise or of an expert: the upper end is left
        high = torch.maximum(upper - above, low)
        return s, process.snap(low + u[0] * (high - low))

    def _margins(self, length: Tensor, process: Process) -> tuple[Tensor, Tensor]:
        """Return both margins of tau in segments of a length [B].

        Together they take at most `MARGINS` of a segment. The lower one keeps a table entry.
        """
        together = max(self.margin_low + self.margin_high, 1e-9)
        share = (MARGINS * length / together).clamp(max=1)
        return (share * self.margin_low).clamp(min=process.resolution), share * self.margin_high

    def loss(self, role: str, roles: Roles, draw: Draw, cond: Cond) -> dict[str, Tensor]:
        """Compute the fake's denoising loss or the student's matching loss.

        Args:
            role: `fake` or `student`.
            roles: The denoisers.
            draw: A draw of `draw`.
            cond: Conditioning of the batch.

        Returns:
            `loss`, a scalar with a graph to the role's parameters, and scalars to log: `ess`
            (effective sample size of the importance weights, as a share of B) for the fake, `gap`
            (mean |teacher - fake|, divided by the mean normaliser) for the student.
        """
        return (self._fake if role == "fake" else self._student)(roles, draw, cond)

    def _fake(self, roles: Roles, draw: Draw, cond: Cond) -> dict[str, Tensor]:
        """Compute the weighted score matching loss L_psi of arXiv 2503.06674 for x0 predictions.

        The variance of the exact target falls with the share of fresh noise in x_tau, beta^2 /
        sigma^2, so its draws are weighted by this share.
        """
        alpha, sigma = roles.fake.process.alpha_sigma(draw.tau)
        predicted = roles.fake(draw.x_tau, draw.tau, cond)
        weight = (
            snr_weight(alpha, sigma, self.snr_ceiling)
            if self.fake_weight == "snr"
            else velocity_weight(sigma, self.snr_ceiling)
        )
        target, share, importance = self._target(draw, roles.fake.process)
        counted = importance * share * weight * self._reward_weight("fake", draw)
        loss = (counted * per_sample_mean((predicted - target).square())).mean()
        return {"loss": loss, "ess": effective_sample_share(importance)}

    def _target(self, draw: Draw, process: Process) -> tuple[Tensor, Tensor, Tensor]:
        """Return the fake's target [B, ...], and two weights of each sample [B]: for the variance
        of the target, and for importance.
        """
        one = torch.ones_like(draw.tau)
        if self.fake_target == "exact":
            return exact_target(draw, process), fresh_share(draw, process), one
        importance = importance_weight(draw.eps_mix, draw.eps, self.importance)
        return draw.x0_hat.detach(), one, importance

    def _student(self, roles: Roles, draw: Draw, cond: Cond) -> dict[str, Tensor]:
        """Compute the surrogate loss (arXiv 2503.06674, Eq. 11).

        A descent step moves x0_hat along teacher - fake.
        """
        with torch.no_grad():
            teacher = roles.teacher(draw.x_tau, draw.tau, cond)
            fake = roles.fake(draw.x_tau, draw.tau, cond)
            clean = draw.x0_hat.detach()
            target = clean + teacher - fake
            norm = per_sample_mean((clean - teacher).abs()).clamp(min=1e-8)
            weighted = norm / self._reward_weight("student", draw)
        loss = distance(draw.x0_hat, target, weighted, kind=self.distance, huber_c=self.huber_c)
        return {"loss": loss, "gap": (teacher - fake).abs().mean() / norm.mean()}

    def _reward_weight(self, role: str, draw: Draw) -> Tensor:
        """Return the weights by the reward in the loss of a role, [B]; 1 without rewards."""
        if draw.weight is None or role != self.reward_weights:
            return torch.ones_like(draw.tau)
        return draw.weight


def fresh_share(draw: Draw, process: Process) -> Tensor:
    """Compute the share of the fresh noise in the variance of all noise in x_tau.

    Args:
        draw: A draw.
        process: Process of the teacher.

    Returns:
        beta^2 / sigma_tau^2, [B].
    """
    return (draw.beta / process.alpha_sigma(draw.tau)[1]).square()


def exact_target(draw: Draw, process: Process) -> Tensor:
    """Compute the clean prediction that belongs to the score of q(x_tau | x_s).

    x0* = (x_tau - sigma_tau^2 eps / beta) / alpha_tau, whose mean given x_tau is Tweedie's formula
    with the score of q(x_tau). With x_tau = (alpha_tau / alpha_s) x_s + beta eps it becomes

        x0* = (x_s - (alpha_tau / alpha_s) sigma_s^2 eps / beta) / alpha_s,

    which is finite at alpha_tau = 0 (zero terminal SNR), where x0* = x_s / alpha_s.

    Args:
        draw: A draw with x_s and beta > 0.
        process: Process of the teacher.

    Returns:
        x0*, [B, ...].
    """
    assert draw.x_s is not None, "the exact target needs x_s"
    alpha, sigma = process.alpha_sigma(draw.s)
    scale, _ = process.bridge(draw.s, draw.tau)
    noise = broadcast(scale * sigma.square() / draw.beta, draw.eps) * draw.eps
    return (draw.x_s - noise) / broadcast(alpha, draw.eps)


def _time_of_noise(process: Process, s: Tensor, upper: Tensor, level: float) -> Tensor:
    """Find the first time in [s, upper] at which q(x_tau | x_s) has this noise level, [B].

    Uses bisection. Returns `upper` where the level is never reached.
    """
    below, above = s, upper
    for _ in range(16):
        middle = (below + above) / 2
        enough = process.bridge(s, middle)[1] >= level
        below, above = torch.where(enough, below, middle), torch.where(enough, middle, above)
    return above
