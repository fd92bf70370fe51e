"""How near samples of the toy are to its data: the sliced 2-Wasserstein distance."""

from __future__ import annotations

from collections.abc import Callable

import torch

from tdmvid.backbones.gaussian import Mixture, sliced_wasserstein
from tdmvid.diffusion.denoiser import Cond, Denoiser
from tdmvid.diffusion.grid import shifted
from tdmvid.diffusion.sampler import Solver, sample

NULL = Cond({})
"""The toy has no prompts."""


def distance_to_data(
    sample: Callable[[torch.Generator], torch.Tensor],
    mixture: Mixture,
    *,
    sets: int = 4,
    count: int = 20_000,
) -> float:
    """Return the mean sliced W2 distance of samples to several sets of data.

    Args:
        sample: Draws samples [count, 2] with a generator.
        mixture: Distribution of the data.
        sets: Number of independent sets of data.
        count: Size of each set.

    Returns:
        The distance.
    """
    found = []
    for seed in range(sets):
        generator = torch.Generator().manual_seed(1000 + seed)
        data = mixture.sample(count, generator)
        found.append(sliced_wasserstein(sample(generator), data, seed=seed))
    return sum(found) / sets


def score(
    denoiser: Denoiser,
    steps: int,
    *,
    shift: float = 1.0,
    sets: int = 4,
    count: int = 20_000,
    solver: Solver = "ddim",
    mixture: Mixture | None = None,
) -> float:
    """Return the sliced W2 distance of a sampler to the data.

    A student that is conditioned on the number of steps receives it.

    Args:
        denoiser: Student or teacher.
        steps: Number of sampling steps.
        shift: Flow shift of the grid.
        sets: Number of independent sets of data.
        count: Size of each set.
        solver: Sampling solver.
        mixture: Distribution of the data; default: the circle.

    Returns:
        The distance.
    """

    def drawn(generator):
        return samples(denoiser, steps, generator, shift=shift, count=count, solver=solver)

    return distance_to_data(drawn, mixture or Mixture.circle(), sets=sets, count=count)


def samples(
    denoiser: Denoiser,
    steps: int,
    generator: torch.Generator,
    *,
    shift: float = 1.0,
    count: int = 20_000,
    solver: Solver = "ddim",
) -> torch.Tensor:
    """Sample in a number of steps.

    Args:
        denoiser: Student or teacher.
        steps: Number of sampling steps.
        generator: Random number generator.
        shift: Flow shift of the grid.
        count: Number of samples.
        solver: Sampling solver.

    Returns:
        Samples [count, 2].
    """
    z = torch.randn(count, 2, generator=generator)
    return sample(
        denoiser,
        z,
        NULL.with_step_count(steps, count, "cpu"),
        shifted(steps, shift, denoiser.process),
        solver=solver,
        generator=generator,
    )


def floor(*, sets: int = 4, count: int = 20_000) -> float:
    """Return the sliced W2 distance between different draws of the data.

    Args:
        sets: Number of independent sets of data.
        count: Size of each set.

    Returns:
        The distance.
    """
    mixture = Mixture.circle()
    return distance_to_data(
        lambda generator: mixture.sample(count, generator), mixture, sets=sets, count=count
    )
