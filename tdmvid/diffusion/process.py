"""Forward processes: x_t = alpha(t) x0 + sigma(t) eps, for t in [0, 1]; 0 is clean, 1 is noise.

Only this module knows what a network calls its time. All arithmetic is in float32.
Shapes: B batch; samples are [B, ...]; t, alpha and sigma are [B].
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor


def broadcast(a: Tensor, x: Tensor) -> Tensor:
    """[B] -> [B, 1, ..., 1] with as many dimensions as x."""
    return a.view(-1, *[1] * (x.dim() - 1))


class Process(ABC):
    """A Gaussian forward process and the conversions between its parametrisations."""

    @abstractmethod
    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Signal and noise level at t: [B] -> two [B], float32."""

    @abstractmethod
    def timestep(self, t: Tensor) -> Tensor:
        """t in the units that the network was trained with: [B] -> [B]."""

    def snap(self, t: Tensor) -> Tensor:
        """The nearest time that the process knows; the identity for a continuous process."""
        return t

    resolution: float = 0.0
    """The distance between neighbouring times of a tabulated process; 0 for a continuous one."""

    def levels(self, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """alpha and sigma at t, shaped to broadcast against x."""
        alpha, sigma = self.alpha_sigma(t)
        return broadcast(alpha, x), broadcast(sigma, x)

    def noise(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """alpha x0 + sigma eps."""
        alpha, sigma = self.levels(t, x0)
        return alpha * x0 + sigma * eps

    def eps_from_x0(self, x_t: Tensor, x0: Tensor, t: Tensor) -> Tensor:
        """The noise in x_t given its clean part; needs sigma(t) > 0 only."""
        alpha, sigma = self.levels(t, x_t)
        return (x_t - alpha * x0) / sigma

    def x0_from_eps(self, x_t: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """The clean part of x_t given its noise; needs alpha(t) > 0."""
        alpha, sigma = self.levels(t, x_t)
        return (x_t - sigma * eps) / alpha

    def bridge(self, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and noise level of q(x_t | x_s) = N(scale x_s, beta^2), s <= t, alpha(s) > 0: two
        [B].

        beta^2 = sigma_t^2 - (alpha_t sigma_s / alpha_s)^2 (arXiv 2503.06674, the forward process).
        """
        alpha_s, sigma_s = self.alpha_sigma(s)
        alpha_t, sigma_t = self.alpha_sigma(t)
        scale = alpha_t / alpha_s
        return scale, (sigma_t.square() - (scale * sigma_s).square()).clamp(min=0).sqrt()

    def renoise(self, x_s: Tensor, eps: Tensor, s: Tensor, t: Tensor) -> Tensor:
        """A sample of q(x_t | x_s), s <= t."""
        scale, beta = self.bridge(s, t)
        return broadcast(scale, x_s) * x_s + broadcast(beta, x_s) * eps


class TabulatedVP(Process):
    """Variance preserving, from a scheduler's `alphas_cumprod` of N entries; t = (index + 1) / N.

    t = 0 is the clean sample (alpha = 1). The last entry may be 0 (zero terminal SNR).
    """

    def __init__(self, alphas_cumprod: Tensor):
        table = torch.cat(
            [torch.ones(1, dtype=torch.float64), alphas_cumprod.detach().cpu().double()]
        )
        self._alpha, self._sigma = (
            table.clamp(min=0).sqrt().float(),
            (1 - table).clamp(min=0).sqrt().float(),
        )
        self.count = len(alphas_cumprod)
        self.resolution = 1.0 / self.count

    def _index(self, t: Tensor) -> Tensor:
        return (t.double() * self.count).round().long()

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        if self._alpha.device != t.device:
            self._alpha, self._sigma = self._alpha.to(t.device), self._sigma.to(t.device)
        index = self._index(t)
        return self._alpha[index], self._sigma[index]

    def timestep(self, t: Tensor) -> Tensor:
        return self._index(t) - 1

    def snap(self, t: Tensor) -> Tensor:
        return (self._index(t).double() / self.count).float()

    def x0_from_v(self, x_t: Tensor, v: Tensor, t: Tensor) -> Tensor:
        """alpha x_t - sigma v; defined at every alpha, 0 included (v = alpha eps - sigma x0)."""
        alpha, sigma = self.levels(t, x_t)
        return alpha * x_t - sigma * v

    def v_from_x0(self, x_t: Tensor, x0: Tensor, t: Tensor) -> Tensor:
        """The v-prediction that x0_from_v inverts; needs sigma(t) > 0."""
        alpha, sigma = self.levels(t, x_t)
        return (alpha * x_t - x0) / sigma


class RectifiedFlow(Process):
    """alpha = 1 - t, sigma = t; the network predicts the velocity eps - x0 and is told t *
    scale.
    """

    def __init__(self, scale: float = 1000.0):
        self.scale = scale

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        t = t.float()
        return 1 - t, t

    def timestep(self, t: Tensor) -> Tensor:
        return t * self.scale

    def x0_from_velocity(self, x_t: Tensor, velocity: Tensor, t: Tensor) -> Tensor:
        """x_t - t velocity; defined everywhere."""
        return x_t - broadcast(t, x_t) * velocity

    def velocity_from_x0(self, x_t: Tensor, x0: Tensor, t: Tensor) -> Tensor:
        """eps - x0 = (x_t - x0) / t; needs t > 0."""
        return (x_t - x0) / broadcast(t, x_t)
