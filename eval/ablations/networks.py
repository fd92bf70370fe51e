"""A student to repair, and the recall of samples, for the mixture of Gaussians."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from tdmvid.diffusion.denoiser import Cond
from tdmvid.diffusion.grid import shifted
from tdmvid.diffusion.sampler import ddim_step


def recall(found: Tensor, data: Tensor, neighbours: int = 3) -> float:
    """Return the share of data within the manifold of the samples (arXiv 1904.06991).

    A data point is within it if it is closer to a sample than that sample's k-th neighbour.

    Args:
        found: Samples [N, D].
        data: Data [M, D].
        neighbours: Number of neighbours k.

    Returns:
        Share in [0, 1].
    """
    radius = torch.cdist(found, found).kthvalue(neighbours + 1, 1).values
    return (torch.cdist(data, found) <= radius).any(1).float().mean().item()


def consistent(start, teacher, iterations: int = 800):
    """Train a student like that of consistency distillation, which jumps from each state to the end
    of the teacher's 16-step path.

    It is trained by regression with a constant learning rate, so it is intentionally rough.

    Args:
        start: Network to start from.
        teacher: The exact teacher.
        iterations: Number of iterations.

    Returns:
        The student.
    """
    student, generator, process = (
        copy.deepcopy(start),
        torch.Generator().manual_seed(3),
        teacher.process,
    )
    optimizer = torch.optim.Adam(student.parameters(), lr=5e-4)
    grid = shifted(16, 1.0, process)
    for _ in range(iterations):
        z = torch.randn(256, 2, generator=generator)
        states, x = [], z
        with torch.no_grad():
            for k in range(grid.steps, 0, -1):
                t, s = (torch.full((256,), grid.times[i]) for i in (k, k - 1))
                states.append((x, t))
                x = ddim_step(process, x, teacher(x, t, Cond({})), t, s)
        at, t = states[int(torch.randint(16, (1,), generator=generator))]
        loss = (student(at, t, Cond({})) - x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return student
