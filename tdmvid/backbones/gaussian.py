"""Exact scores of Gaussian mixtures, and small networks: the model family of the tests.

Shapes: B batch, M modes, D dimensions.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..diffusion.denoiser import STEPS, Cond, step_level
from ..diffusion.process import Process


class Mixture:
    """An isotropic Gaussian mixture.

    Args:
        means: [M, D].
        weights: [M], positive; normalised here.
        std: Standard deviation of every mode.
    """

    def __init__(self, means: Tensor, weights: Tensor, std: float):
        self.means, self.weights, self.std = means, weights / weights.sum(), std

    @classmethod
    def circle(cls) -> Mixture:
        """Return eight modes on a circle of radius 1.5, weights 1 2 3 4 4 3 2 1, std 0.12."""
        angle = torch.arange(8) * (2 * math.pi / 8)
        return cls(
            1.5 * torch.stack([angle.cos(), angle.sin()], 1),
            torch.tensor([1.0, 2, 3, 4, 4, 3, 2, 1]),
            0.12,
        )

    @classmethod
    def grid(cls) -> Mixture:
        """Return 25 modes on a square of side 3, weights 1 to 16 in every row, std 0.08."""
        row, column = torch.meshgrid(torch.arange(5), torch.arange(5), indexing="ij")
        means = 0.75 * torch.stack([column, row], -1).flatten(0, 1).float() - 1.5
        return cls(means, 2.0 ** ((row + 2 * column) % 5).flatten(), 0.08)

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """Draw samples, [count, D]."""
        mode = torch.multinomial(self.weights, count, replacement=True, generator=generator)
        return self.means[mode] + self.std * torch.randn(
            count, self.means.shape[1], generator=generator
        )


class ExactDenoiser:
    """E[x0 | x_t] of a mixture: a perfect teacher, for every alpha from 0 to 1."""

    def __init__(self, mixture: Mixture, process: Process):
        self.mixture, self.process = mixture, process

    def __call__(self, x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """Return E[x0 | x_t], [B, D], for x_t [B, D] at times t [B]; `cond` is not used."""
        mix = self.mixture
        alpha, sigma = (a[:, None] for a in self.process.alpha_sigma(t))
        variance = (alpha * mix.std).square() + sigma.square()  # [B, 1]
        offset = x_t[:, None] - alpha[..., None] * mix.means  # [B, M, D]
        share = (mix.weights.log() - offset.square().sum(-1) / (2 * variance)).softmax(-1)
        per_mode = mix.means + (alpha * mix.std**2 / variance)[..., None] * offset
        return (share[..., None] * per_mode).sum(1)


def _zero_at_first(width: int) -> nn.Sequential:
    """Return the layers that read K; their output is zero at initialisation."""
    layers = nn.Sequential(nn.Linear(8, width), nn.ReLU(), last := nn.Linear(width, width))
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return layers


class VelocityNetwork(nn.Module):
    """A multilayer perceptron that predicts v; x0 = alpha x_t - sigma v for either process.

    Its inputs include sines and cosines of x_t: the modes are ten times narrower than the data, and
    without these inputs the error of the score is several times larger.

    Args:
        process: Gives alpha and sigma.
        dim: D.
        width: Hidden channels.
        seed: Seed of the initial weights.
        conditioned_on_steps: Whether to add layers that read K, with zero output at first.
    """

    ripples: Tensor
    frequencies: Tensor

    def __init__(
        self,
        process: Process,
        *,
        dim: int = 2,
        width: int = 128,
        seed: int = 0,
        conditioned_on_steps: bool = False,
    ):
        super().__init__()
        self.process = process
        self.register_buffer("ripples", torch.tensor([0.5, 1.0]) * math.pi, persistent=False)
        self.register_buffer(
            "frequencies", torch.tensor([0.5, 1.0, 2.0, 4.0]) * (math.pi / 2), persistent=False
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.layers = nn.Sequential(
                nn.Linear(5 * dim + 8, width),
                nn.ReLU(),
                nn.Linear(width, width),
                nn.ReLU(),
                nn.Linear(width, width),
                nn.ReLU(),
                nn.Linear(width, dim),
            )
            self.steps = _zero_at_first(width) if conditioned_on_steps else None

    def forward(self, x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """Return x0, [B, D], for x_t [B, D] at times t [B]; K is read from `cond` if given."""
        alpha, sigma = self.process.levels(t, x_t)
        phase = (x_t[..., None] * self.ripples).flatten(1)
        hidden = self.layers[0](torch.cat([x_t, phase.sin(), phase.cos(), self._waves(t)], 1))
        if self.steps is not None and STEPS in cond:
            hidden = hidden + self.steps(self._waves(step_level(cond[STEPS])))
        return alpha * x_t - sigma * self.layers[1:](hidden)

    def _waves(self, t: Tensor) -> Tensor:
        phase = t[:, None] * self.frequencies
        return torch.cat([phase.sin(), phase.cos()], 1)


class Critic(nn.Module):
    """A multilayer perceptron that discriminates between distributions of x_t.

    Args:
        dim: D.
        width: Hidden channels.
        seed: Seed of the initial weights.
    """

    def __init__(self, *, dim: int = 2, width: int = 128, seed: int = 0):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.layers = nn.Sequential(
                nn.Linear(dim + 2, width),
                nn.SiLU(),
                nn.Linear(width, width),
                nn.SiLU(),
                nn.Linear(width, 1),
            )

    def forward(self, x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """Return logits [B] for x_t [B, D] at times t [B], given K if `cond` has it."""
        level = step_level(cond[STEPS]) if STEPS in cond else torch.zeros_like(t)
        return self.layers(torch.cat([x_t, t[:, None], level[:, None]], 1))[:, 0]


def fit_to_teacher(
    network: VelocityNetwork,
    teacher: ExactDenoiser,
    *,
    steps: int = 1500,
    batch: int = 512,
    lr: float = 5e-3,
) -> None:
    """Regress the network's v on the exact denoiser's, so that it starts as a pretrained model.

    Args:
        network: Trained in place.
        teacher: The target.
        steps: Number of Adam steps.
        batch: Samples per step.
        lr: Initial learning rate, decayed linearly to 0.
    """
    generator, process = torch.Generator().manual_seed(1), teacher.process
    optimizer = torch.optim.Adam(network.parameters(), lr=lr)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = lr * (1 - step / steps)
        t = process.snap(torch.rand(batch, generator=generator).clamp(min=0.002))
        x0 = teacher.mixture.sample(batch, generator)
        x_t = process.noise(x0, torch.randn(x0.shape, generator=generator), t)
        error = network(x_t, t, Cond({})) - teacher(x_t, t, Cond({}))
        weight = process.alpha_sigma(t)[1].square().reciprocal()
        loss = (weight[:, None] * error.square()).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def sliced_wasserstein(a: Tensor, b: Tensor, *, directions: int = 128, seed: int = 0) -> float:
    """Compute the sliced 2-Wasserstein distance of two sample sets of equal size.

    Args:
        a, b: Samples, [N, D].
        directions: Number of random projections.
        seed: Seed of the projections.

    Returns:
        The root mean square distance over directions and samples.
    """
    axis = torch.randn(a.shape[1], directions, generator=torch.Generator().manual_seed(seed))
    axis = axis / axis.norm(dim=0)
    return ((a @ axis).sort(0).values - (b @ axis).sort(0).values).square().mean().sqrt().item()
