"""The contract between the loop and a distillation method.

A method differs in WHERE scores are compared (`draw`) and HOW (`loss`); the trajectory,
the engines and the networks are the same for all of them.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal, Protocol, TypeVar, cast

import torch
from torch import Tensor

from ..config import ObjectiveSettings
from ..diffusion.denoiser import Cond, Denoiser
from ..diffusion.process import Process
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
    weight: Tensor | None = None
    """How much the trajectory counts for the fake, [B]; see reward.py."""


class Objective(Protocol):
    """A method, known by its `kind`; declares all that the training loop reads."""

    @property
    def kind(self) -> str:
        """Name of the method."""
        ...

    @property
    def cfg(self) -> float:
        """The teacher's guidance; 1 is none."""
        ...

    @property
    def cfg_2(self) -> float | None:
        """That of the teacher's low-noise expert; None: the same."""
        ...

    @property
    def roles(self) -> tuple[str, ...]:
        """The order of optimiser steps in one iteration, e.g. ("fake", "student")."""
        ...

    @property
    def own_trajectories(self) -> int:
        """How many of the first turns roll out trajectories of their own; the others share some."""
        ...

    @property
    def rollout(self) -> Literal["stop", "full", "stream"]:
        """stop: a k per micro-batch, the same on all ranks, where the rollout ends; full: a k per
        sample; stream: trajectories go on from iteration to iteration.
        """
        ...

    @property
    def stagger(self) -> Literal["even", "none"]:
        """How k differs over the slots of a stream: even: as far as may be; none: not at all."""
        ...

    @property
    def updates(self) -> Literal["sequential", "joint"]:
        """sequential: a role meets those updated before it; joint: all are updated at the end."""
        ...

    @property
    def draws(self) -> Literal["own", "shared"]:
        """own: a draw for every turn; shared: one for all turns of an iteration."""
        ...

    @property
    def solver(self) -> Solver:
        """How the student's trajectory goes on."""
        ...

    @property
    def step_set(self) -> tuple[int, ...]:
        """The numbers of steps K that are trained; empty trains the grid's own K."""
        ...

    @property
    def conditioned_on_steps(self) -> bool:
        """Whether K is a condition of the networks."""
        ...

    @property
    def through_scores(self) -> bool:
        """Whether the student's gradient is taken through fake and teacher."""
        ...

    def draw(
        self, path: Trajectory, x0_hat: Tensor, generator: torch.Generator, process: Process
    ) -> Draw:
        """Choose where the scores are compared.

        Args:
            path: The student's trajectory, at s_k.
            x0_hat: The student's clean prediction there, [B, ...].
            generator: For times and noise.
            process: The teacher's.
        """
        ...

    def loss(self, role: str, roles: Roles, draw: Draw, cond: Cond) -> dict[str, Tensor]:
        """Return `loss`, with a graph to the role's parameters, and scalars worth logging."""
        ...


REGISTRY: dict[str, type[ObjectiveSettings]] = {}
_Method = TypeVar("_Method", bound=ObjectiveSettings)


def register(cls: type[_Method]) -> type[_Method]:
    """Register a method under the `kind` of its settings (a class decorator)."""
    REGISTRY[cls().kind] = cls
    return cls


def objectives() -> dict[str, type[ObjectiveSettings]]:
    """Return all methods by kind; imports every file of this folder."""
    for module in pkgutil.iter_modules([str(Path(__file__).parent)]):
        importlib.import_module(f"{__package__}.{module.name}")
    return REGISTRY


@functools.cache
def build_objective(settings: ObjectiveSettings) -> Objective:
    """Build the method that settings describe.

    Raises:
        ValueError: If no method is registered under their `kind`.
    """
    known = objectives()
    if settings.kind not in known:
        raise ValueError(
            f"objective.kind={settings.kind!r} has settings but no method: register one in"
            f" distill/, or choose from {', '.join(sorted(known))}"
        )
    values = {field.name: getattr(settings, field.name) for field in fields(settings)}
    return cast(Objective, known[settings.kind](**values))
