"""Trajectories of Gaussians, and random generators."""

import torch

from tdmvid.diffusion.denoiser import Cond
from tdmvid.diffusion.grid import uniform
from tdmvid.diffusion.sampler import Trajectory

NULL = Cond({})


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def with_tau(objective, tau, **settings):
    """Return an objective of a class that draws one tau, and s at the lower end of the segment."""

    def times(self, path, u, process):
        return path.lower, torch.full_like(path.lower, tau)

    return type(objective.__name__, (objective,), {"_times": times})(**settings)


def path_at(process, k, batch=4096, dim=3, seed=0):
    """Make standard normal states before call k (1..4, or a tensor of steps) of an even grid with K
    = 4.
    """
    k = torch.full((batch,), k) if isinstance(k, int) else k
    times = uniform(4, process).tensor()
    x = torch.randn(len(k), dim, generator=generator(seed))
    return Trajectory(x, k, times[k - 1], times[k], NULL)


def mixed_k(batch=4096):
    return torch.arange(batch) % 4 + 1
