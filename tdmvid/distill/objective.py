"""The contract between the loop and a distillation method.

A method differs in WHERE scores are compared (`draw`) and HOW (`loss`); the trajectory,
the engines and the networks are the same for all of them.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from ..diffusion.denoiser import Cond, Denoiser
from ..diffusion.sampler import Solver, Trajectory


@dataclass(frozen=True)
class Roles:
    """The three denoisers: student (theta), fake score (psi), frozen and guided teacher (phi).

    Adversarial methods also need a `discriminator` (x_tau, tau, cond) -> logits [B], and `real`
    latents: [B] uniform numbers in [0, 1) -> [B, ...].
    """

    student: Denoiser
    fake: Denoiser
    teacher: Denoiser
    discriminator: Callable[[Tensor, Tensor, Cond], Tensor] | None = None
    real: Callable[[Tensor], Tensor] | None = None


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
    slope: Tensor | None = None
    """d x_tau / d x0_hat along the trajectory, [B]; for methods whose gradient passes through
    x_tau.
    """


class Objective(Protocol):
    """A method; also its own frozen config dataclass, known by its `kind`."""

    kind: str
    cfg: float
    solver: Solver
    step_set: tuple[int, ...]
    through_scores: bool
    draws: str
    """"own": a draw for every turn; "shared": one for all turns of an iteration."""
    roles: tuple[str, ...]
    """The order of optimiser steps in one iteration, e.g. ("fake", "student")."""

    def draw(self, path: Trajectory, x0_hat: Tensor, generator: torch.Generator, process) -> Draw:
        """Where the scores are compared."""
        ...

    def loss(self, role: str, roles: Roles, draw: Draw, cond: Cond) -> dict[str, Tensor]:
        """`loss`, with a graph to the role's parameters, and scalars worth logging."""
        ...


REGISTRY: dict[str, type] = {}


def register(cls: type) -> type:
    """Class decorator: make a method known by the default of its field `kind`."""
    REGISTRY[cls.__dataclass_fields__["kind"].default] = cls
    return cls


def objectives() -> dict[str, type]:
    """All methods by kind: imports every file of this folder."""
    for module in pkgutil.iter_modules([str(Path(__file__).parent)]):
        importlib.import_module(f"{__package__}.{module.name}")
    return REGISTRY
