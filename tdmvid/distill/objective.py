"""Interface between the training loop and a distillation method, and a registry of methods.

A method defines where scores are compared (`draw`) and how (`loss`). Trajectory, engines and
networks are the same for all methods.

Shapes: B is the batch size; samples are [B, ...]; times are [B].
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
    """The networks of a method."""

    student: Denoiser
    """Student (theta)."""
    fake: Denoiser
    """Fake score (psi)."""
    teacher: Denoiser
    """Frozen teacher (phi), with guidance."""
    discriminator: Callable[[Tensor, Tensor, Cond], Tensor] | None = None
    """Discriminator of adversarial methods: (x_tau [B, ...], tau [B], cond) -> logits [B]."""
    real: Callable[[Tensor], Tensor] | None = None
    """Real latents for adversarial methods: uniform numbers in [0, 1), [B] -> latents [B, ...]."""


@dataclass(frozen=True)
class Draw:
    """Noised sample of the student's trajectory, at which scores are compared.

    x_tau = alpha_tau x0_hat + sigma_tau eps_mix. It is made from x_s by adding fresh noise eps of
    level beta.
    """

    x0_hat: Tensor
    """The student's clean predictions at `path.upper`, [B, ...], with a graph in the student's
    update.
    """
    x_tau: Tensor
    """Noised samples at tau, [B, ...], detached."""
    s: Tensor
    """Times from which noise is added, [B]."""
    tau: Tensor
    """Times at which scores are compared, [B]."""
    eps: Tensor
    """Fresh noise, [B, ...]."""
    eps_mix: Tensor
    """Noise in x_tau relative to x0_hat, [B, ...]."""
    beta: Tensor
    """Level of the fresh noise, [B]."""
    slope: Tensor | None = None
    """d x_tau / d x0_hat along the trajectory, [B], for methods with a gradient through x_tau."""
    x_s: Tensor | None = None
    """Samples of the trajectory at s, [B, ...], detached."""
    weight: Tensor | None = None
    """Weight of the trajectory in the loss of the role that `objective.reward_weights` names, [B];
    see reward.py. None means 1.
    """


class Objective(Protocol):
    """A distillation method: everything that the training loop reads of it."""

    @property
    def kind(self) -> str:
        """Name of the method."""
        ...

    @property
    def cfg(self) -> float:
        """Guidance scale of the teacher; 1 means no guidance."""
        ...

    @property
    def cfg_2(self) -> float | None:
        """Guidance scale of the teacher's low-noise expert; None uses `cfg`."""
        ...

    @property
    def roles(self) -> tuple[str, ...]:
        """Roles in the order of their optimiser steps in an iteration, e.g. ("fake", "student")."""
        ...

    @property
    def own_trajectories(self) -> int:
        """Number of leading updates that use their own trajectories; the rest share one set."""
        ...

    @property
    def rollout(self) -> Literal["stop", "full", "stream"]:
        """Rollout of trajectories.

        `stop`: to one k per micro-batch, the same on all ranks. `full`: K - 1 calls, with a k per
        sample. `stream`: trajectories continue from iteration to iteration.
        """
        ...

    @property
    def stagger(self) -> Literal["even", "none"]:
        """Start positions of a stream: `even`, spread over the steps; `none`, all the same."""
        ...

    @property
    def updates(self) -> Literal["sequential", "joint"]:
        """Order of updates: `sequential`, one role after the other; `joint`, all at the end."""
        ...

    @property
    def draws(self) -> Literal["own", "shared"]:
        """Draws: `own`, one per update; `shared`, one for all updates of an iteration."""
        ...

    @property
    def solver(self) -> Solver:
        """Solver of the student's trajectory."""
        ...

    @property
    def step_set(self) -> tuple[int, ...]:
        """Numbers of steps K that are trained; empty trains only the K of the grid."""
        ...

    @property
    def conditioned_on_steps(self) -> bool:
        """Whether student and fake get the number of steps K as a condition."""
        ...

    @property
    def through_scores(self) -> bool:
        """Whether the student's gradient passes through fake and teacher."""
        ...

    def draw(
        self, path: Trajectory, x0_hat: Tensor, generator: torch.Generator, process: Process
    ) -> Draw:
        """Draw the noised samples at which scores are compared.

        Args:
            path: The student's trajectory at s_k.
            x0_hat: The student's clean predictions at s_k, [B, ...].
            generator: Generator of times and noise.
            process: Process of the teacher.

        Returns:
            The draw.
        """
        ...

    def loss(self, role: str, roles: Roles, draw: Draw, cond: Cond) -> dict[str, Tensor]:
        """Compute the loss of a role.

        Args:
            role: A name of `roles`.
            roles: The networks.
            draw: A draw of `draw`, with x_tau [B, ...].
            cond: Conditioning of the batch.

        Returns:
            `loss`, a scalar with a graph to the role's parameters, and scalars to log by name.
        """
        ...


REGISTRY: dict[str, type[ObjectiveSettings]] = {}
_Method = TypeVar("_Method", bound=ObjectiveSettings)


def register(cls: type[_Method]) -> type[_Method]:
    """Register a method under the `kind` of its settings. Use as a class decorator.

    Args:
        cls: Class of the method, a subclass of its settings.

    Returns:
        The same class.
    """
    REGISTRY[cls().kind] = cls
    return cls


def objectives() -> dict[str, type[ObjectiveSettings]]:
    """Import every module of this package and return the registered methods.

    Returns:
        A mapping from `kind` to class.
    """
    for module in pkgutil.iter_modules([str(Path(__file__).parent)]):
        importlib.import_module(f"{__package__}.{module.name}")
    return REGISTRY


@functools.cache
def build_objective(settings: ObjectiveSettings) -> Objective:
    """Build a method from its settings.

    Args:
        settings: Settings of the method.

    Returns:
        The method. Equal settings return the same object.

    Raises:
        ValueError: If no method is registered under the `kind` of the settings.
    """
    known = objectives()
    if settings.kind not in known:
        raise ValueError(
            f"objective.kind={settings.kind!r} has settings but no registered method: register a"
            f" method in distill/, or choose from {', '.join(sorted(known))}"
        )
    values = {field.name: getattr(settings, field.name) for field in fields(settings)}
    return cast(Objective, known[settings.kind](**values))
