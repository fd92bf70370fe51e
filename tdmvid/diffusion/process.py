"""Forward processes: x_t = alpha(t) x0 + sigma(t) eps, for t in [0, 1]; 0 is clean, 1 is noise.

Only this module knows the time units of networks. Results are float32.
Shapes: B is the batch size; samples are [B, ...]; t, alpha and sigma are [B].
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor


def broadcast(a: Tensor, x: Tensor) -> Tensor:
    """Reshape values per sample so that they broadcast against samples.

    Args:
        a: One value per sample, [B].
        x: Samples, [B, ...]; only the number of dimensions is used.

    Returns:
        The values as [B, 1, ..., 1], with the number of dimensions of x.
    """
    return a.view(-1, *[1] * (x.dim() - 1))


class Process(ABC):
    """Gaussian forward process, with conversions between its parametrisations."""

    @abstractmethod
    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Compute signal and noise level.

        Args:
            t: Times, [B].

        Returns:
            alpha and sigma, each [B] float32.
        """

    @abstractmethod
    def timestep(self, t: Tensor) -> Tensor:
        """Convert times to the units that the network was trained with.

        Args:
            t: Times, [B].

        Returns:
            Timesteps of the network, [B].
        """

    def snap(self, t: Tensor) -> Tensor:
        """Round times to those of the process. A continuous process returns them unchanged.

        Args:
            t: Times, [B].

        Returns:
            The nearest times of the process, [B].
        """
        return t

    resolution: float = 0.0
    """Distance between neighbouring times of a tabulated process; 0 for a continuous one."""

    def levels(self, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Compute signal and noise level in a shape that broadcasts against samples.

        Args:
            t: Times, [B].
            x: Samples, [B, ...]; only the number of dimensions is used.

        Returns:
            alpha and sigma, each [B, 1, ..., 1] float32.
        """
        alpha, sigma = self.alpha_sigma(t)
        return broadcast(alpha, x), broadcast(sigma, x)

    def noise(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """Noise clean samples: x_t = alpha x0 + sigma eps.

        Args:
            x0: Clean samples, [B, ...].
            eps: Standard normal noise, [B, ...].
            t: Times, [B].

        Returns:
            x_t, [B, ...].
        """
        alpha, sigma = self.levels(t, x0)
        return alpha * x0 + sigma * eps

    def eps_from_x0(self, x_t: Tensor, x0: Tensor, t: Tensor) -> Tensor:
        """Compute the noise in x_t: eps = (x_t - alpha x0) / sigma.

        Args:
            x_t: Noisy samples, [B, ...].
            x0: Clean samples, [B, ...].
            t: Times with sigma > 0, [B]; alpha may be 0.

        Returns:
            eps, [B, ...].
        """
        alpha, sigma = self.levels(t, x_t)
        return (x_t - alpha * x0) / sigma

    def x0_from_eps(self, x_t: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """Compute the clean part of x_t: x0 = (x_t - sigma eps) / alpha.

        Args:
            x_t: Noisy samples, [B, ...].
            eps: Noise in x_t, [B, ...].
            t: Times with alpha > 0, [B].

        Returns:
            x0, [B, ...].
        """
        alpha, sigma = self.levels(t, x_t)
        return (x_t - sigma * eps) / alpha

    def bridge(self, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Compute scale and noise level of q(x_t | x_s) = N(scale x_s, beta^2).

        scale = alpha_t / alpha_s and beta^2 = sigma_t^2 - (alpha_t sigma_s / alpha_s)^2
        (arXiv 2503.06674, forward process).

        Args:
            s: Earlier (cleaner) times with alpha > 0, [B].
            t: Later times, t >= s, [B].

        Returns:
            scale and beta, each [B].
        """
        alpha_s, sigma_s = self.alpha_sigma(s)
        alpha_t, sigma_t = self.alpha_sigma(t)
        scale = alpha_t / alpha_s
        return scale, (sigma_t.square() - (scale * sigma_s).square()).clamp(min=0).sqrt()

    def renoise(self, x_s: Tensor, eps: Tensor, s: Tensor, t: Tensor) -> Tensor:
        """Sample x_t from q(x_t | x_s).

        Args:
            x_s: Samples at time s, [B, ...].
            eps: Fresh standard normal noise, [B, ...].
            s: Times of x_s with alpha > 0, [B].
            t: Later times, t >= s, [B].

        Returns:
            x_t, [B, ...].
        """
        scale, beta = self.bridge(s, t)
        return broadcast(scale, x_s) * x_s + broadcast(beta, x_s) * eps


class TabulatedVP(Process):
    """Variance-preserving process from the `alphas_cumprod` table of a scheduler.

    Index i of N entries is the time t = (i + 1) / N, with alpha = sqrt(alphas_cumprod[i]). t = 0 is
    the clean sample (alpha = 1).

    Args:
        alphas_cumprod: Table of the scheduler, [N]. The last entry may be 0 (zero terminal SNR).
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
        """Look up sqrt(alphas_cumprod) and sqrt(1 - alphas_cumprod): [B] -> two [B] float32."""
        if self._alpha.device != t.device:
            self._alpha, self._sigma = self._alpha.to(t.device), self._sigma.to(t.device)
        index = self._index(t)
        return self._alpha[index], self._sigma[index]

    def timestep(self, t: Tensor) -> Tensor:
        """Return the table index of each time, 0 to N - 1: [B] -> [B]."""
        return self._index(t) - 1

    def snap(self, t: Tensor) -> Tensor:
        """Round times to multiples of 1 / N: [B] -> [B]."""
        return (self._index(t).double() / self.count).float()

    def x0_from_v(self, x_t: Tensor, v: Tensor, t: Tensor) -> Tensor:
        """Convert a v-prediction: x0 = alpha x_t - sigma v, with v = alpha eps - sigma x0.

        Args:
            x_t: Noisy samples, [B, ...].
            v: Predictions of the network, [B, ...].
            t: Times, [B]; alpha may be 0.

        Returns:
            x0, [B, ...].
        """
        alpha, sigma = self.levels(t, x_t)
        return alpha * x_t - sigma * v

    def v_from_x0(self, x_t: Tensor, x0: Tensor, t: Tensor) -> Tensor:
        """Convert clean samples to v: v = (alpha x_t - x0) / sigma, the inverse of `x0_from_v`.

        Args:
            x_t: Noisy samples, [B, ...].
            x0: Clean samples, [B, ...].
            t: Times with sigma > 0, [B].

        Returns:
            v, [B, ...].
        """
        alpha, sigma = self.levels(t, x_t)
        return (alpha * x_t - x0) / sigma


class RectifiedFlow(Process):
    """Rectified flow: alpha = 1 - t, sigma = t. The network predicts the velocity eps - x0.

    Args:
        scale: Factor from times to timesteps of the network.
    """

    def __init__(self, scale: float = 1000.0):
        self.scale = scale

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return 1 - t and t: [B] -> two [B] float32."""
        t = t.float()
        return 1 - t, t

    def timestep(self, t: Tensor) -> Tensor:
        """Return t times the scale: [B] -> [B]."""
        return t * self.scale

    def x0_from_velocity(self, x_t: Tensor, velocity: Tensor, t: Tensor) -> Tensor:
        """Convert a velocity prediction: x0 = x_t - t velocity.

        Args:
            x_t: Noisy samples, [B, ...].
            velocity: Predictions of the network, [B, ...].
            t: Times, [B].

        Returns:
            x0, [B, ...].
        """
        return x_t - broadcast(t, x_t) * velocity

    def velocity_from_x0(self, x_t: Tensor, x0: Tensor, t: Tensor) -> Tensor:
        """Convert clean samples to velocities: eps - x0 = (x_t - x0) / t.

        Args:
            x_t: Noisy samples, [B, ...].
            x0: Clean samples, [B, ...].
            t: Times above 0, [B].

        Returns:
            The velocity, [B, ...].
        """
        return (x_t - x0) / broadcast(t, x_t)
