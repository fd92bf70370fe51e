"""The exact score of a mixture of Gaussians: the backbone of the tests.

Shapes: B batch, M modes, D dimensions.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..diffusion.denoiser import Cond
from ..diffusion.process import Process, broadcast


class Mixture:
    """An isotropic mixture: means [M, D], weights [M], one standard deviation for all modes."""

    def __init__(self, means: Tensor, weights: Tensor, std: float):
        self.means, self.weights, self.std = means, weights / weights.sum(), std

    @classmethod
    def circle(cls) -> Mixture:
        """Eight unequal modes (1 2 3 4 4 3 2 1) on a circle of radius 1.5, standard deviation 0.12."""
        angle = torch.arange(8) * (2 * math.pi / 8)
        return cls(1.5 * torch.stack([angle.cos(), angle.sin()], 1), torch.tensor([1.0, 2, 3, 4, 4, 3, 2, 1]), 0.12)

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """[count, D]."""
        mode = torch.multinomial(self.weights, count, replacement=True, generator=generator)
        return self.means[mode] + self.std * torch.randn(count, self.means.shape[1], generator=generator)


class ExactDenoiser:
    """E[x0 | x_t] of a mixture: the perfect teacher, at every alpha from 0 to 1."""

    def __init__(self, mixture: Mixture, process: Process):
        self.mixture, self.process = mixture, process

    def __call__(self, x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        mix = self.mixture
        alpha, sigma = (a[:, None] for a in self.process.alpha_sigma(t))
        variance = (alpha * mix.std).square() + sigma.square()  # [B, 1]
        offset = x_t[:, None] - alpha[..., None] * mix.means  # [B, M, D]
        share = (mix.weights.log() - offset.square().sum(-1) / (2 * variance)).softmax(-1)
        per_mode = mix.means + (alpha * mix.std**2 / variance)[..., None] * offset
        return (share[..., None] * per_mode).sum(1)


class ResidualNetwork(nn.Module):
    """The exact denoiser plus a multilayer perceptron that starts at zero, as an adapter does."""

    def __init__(self, base: ExactDenoiser, *, width: int = 128, seed: int = 0):
        super().__init__()
        self.base, self.process = base, base.process
        dim = base.mixture.means.shape[1]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.layers = nn.Sequential(
                nn.Linear(dim + 16, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(),
                nn.Linear(width, width), nn.SiLU(), nn.Linear(width, dim),
            )
        nn.init.zeros_(self.layers[-1].weight)
        nn.init.zeros_(self.layers[-1].bias)
        self.register_buffer("frequencies", 2.0 ** torch.arange(8) * (math.pi / 2), persistent=False)

    def forward(self, x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        phase = broadcast(t, x_t) * self.frequencies
        features = torch.cat([x_t, phase.sin(), phase.cos()], 1)
        return self.base(x_t, t, cond) + self.layers(features)


def sliced_wasserstein(a: Tensor, b: Tensor, *, directions: int = 128, seed: int = 0) -> float:
    """Sliced 2-Wasserstein distance of two sample sets [N, D] of equal size, over random directions."""
    axis = torch.randn(a.shape[1], directions, generator=torch.Generator().manual_seed(seed))
    axis = axis / axis.norm(dim=0)
    return ((a @ axis).sort(0).values - (b @ axis).sort(0).values).square().mean().sqrt().item()
