"""The contract between the loop and a distillation method.

A method differs in WHERE scores are compared (`draw`) and HOW (`loss`); the trajectory,
the engines and the networks are the same for all of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..diffusion.denoiser import Cond, Denoiser
from ..diffusion.sampler import Trajectory


@dataclass(frozen=True)
class Roles:
    """The three denoisers: student (theta), fake score (psi), frozen and guided teacher (phi)."""

    student: Denoiser
    fake: Denoiser
    teacher: Denoiser


@dataclass(frozen=True)
class Draw:
    """One noised draw from the student's trajectory; samples are [B, ...], times [B].

    x0_hat is the student's clean prediction at `path.upper` (it carries the gradient in the
    student's turn); x_tau = alpha_tau x0_hat + sigma_tau eps_mix is detached, and was made
    from x_s by the fresh noise eps, whose level is beta.
    """

    x0_hat: Tensor
    x_tau: Tensor
    s: Tensor
    tau: Tensor
    eps: Tensor
    eps_mix: Tensor
    beta: Tensor


class Objective(Protocol):
    """A method; also its own frozen config dataclass."""

    cfg: float
    roles: tuple[str, ...]
    """The order of optimiser steps in one iteration, e.g. ("fake", "student")."""

    def draw(self, path: Trajectory, x0_hat: Tensor, generator: torch.Generator, process) -> Draw:
        """Where the scores are compared."""
        ...

    def loss(self, role: str, roles: Roles, draw: Draw, cond: Cond) -> dict[str, Tensor]:
        """`loss`, with a graph to the role's parameters, and scalars worth logging."""
        ...
