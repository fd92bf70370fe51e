"""One training iteration of any method (arXiv 2503.06674, Algorithm 1).

A turn is the part of an iteration in which one role computes its loss and is updated.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor

from ..diffusion.denoiser import Cond, Denoiser
from ..diffusion.grid import TimeGrid
from ..diffusion.process import Process
from ..diffusion.sampler import Trajectory
from .objective import Draw, Objective, Roles
from .stream import Stream
from .trajectories import Generators, Place, advance


class Step(Protocol):
    """Result of an optimiser step; see `parallel.engine.StepResult`."""

    @property
    def applied(self) -> bool:
        """Whether weights were updated."""
        ...

    @property
    def grad_norm(self) -> float:
        """Norm of the gradient before clipping."""
        ...

    @property
    def rescaled(self) -> bool:
        """Whether the gradient overflowed at a loss scale above 1, which is lower now."""
        ...


class Engine(Protocol):
    """Training engine of a role; see `parallel.engine.Engine`."""

    def backward(self, loss: Tensor) -> None:
        """Accumulate the gradient of a loss, a scalar."""
        ...

    def step(self, *, skip: bool | Tensor = False) -> Step:
        """Update the weights; with `skip` (a bool or scalar tensor), only clear the gradient."""
        ...


class AskedOnce:
    """Fake that reuses its prediction of its own turn, detached, in the student's turn.

    Args:
        denoiser: The fake.
    """

    def __init__(self, denoiser: Denoiser):
        self.denoiser, self.process = denoiser, denoiser.process
        self._x: Tensor | None = None
        self._x0: Tensor | None = None

    def __call__(self, x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        if x_t is self._x and self._x0 is not None:
            return self._x0
        x0 = self.denoiser(x_t, t, cond)
        self._x, self._x0 = x_t, x0.detach()
        return x0


@dataclass
class GradedPath:
    """A trajectory up to s_k, and the student call at s_k that carries the gradient."""

    path: Trajectory
    """Trajectory at s_k."""
    roles: Roles
    """The networks."""
    keep: bool
    """Whether to keep the graph of the call while the fake is updated, so the call is made once.
    Without it, the fake's turn makes the call without a graph, and the student's turn repeats it.
    Gradient accumulation needs this to hold one graph at a time.
    """
    weight: Tensor | None = None
    """Weight of the trajectory in the loss of the role that `objective.reward_weights` names, [B].
    None means 1.
    """
    _x0: Tensor | None = field(default=None, repr=False)
    _draw: Draw | None = field(default=None, repr=False)

    def x0_hat(self, *, graded: bool) -> Tensor:
        """Return the student's clean prediction at s_k, and call the student if needed.

        Args:
            graded: Whether the result needs a graph.

        Returns:
            x0_hat, [B, ...], with its graph if `graded`, otherwise detached.
        """
        if self._x0 is None or (graded and not self._x0.requires_grad):
            with torch.set_grad_enabled(graded or self.keep):
                self._x0 = self.roles.student(self.path.x, self.path.upper, self.path.cond)
        return self._x0 if graded else self._x0.detach()

    @property
    def detached(self) -> Tensor | None:
        """The clean prediction, [B, ...] detached, or None before the call."""
        return None if self._x0 is None else self._x0.detach()

    def draw(self, objective: Objective, generator: torch.Generator, *, graded: bool) -> Draw:
        """Make a draw on this trajectory, or return the first one if turns share a draw.

        Args:
            objective: The method.
            generator: Generator of times and noise.
            graded: Whether `x0_hat` of the draw needs a graph.

        Returns:
            The draw, with the weight of this trajectory.
        """
        x0_hat, draw = self.x0_hat(graded=graded), self._draw
        if draw is None:
            draw = objective.draw(self.path, x0_hat, generator, self.roles.student.process)
        if objective.draws == "shared":
            self._draw = draw
        return replace(draw, x0_hat=x0_hat, weight=self.weight)

    @classmethod
    def of_past(
        cls, path: Trajectory, x0: Tensor | None, weight: Tensor, roles: Roles
    ) -> GradedPath:
        """Make a path from a state of a finished trajectory, for the fake.

        Args:
            path: State at s_k of the finished trajectory.
            x0: Its clean prediction, [B, ...]; None calls the student again.
            weight: Weight in the loss, [B].
            roles: The networks.

        Returns:
            The path.
        """
        return cls(path, roles, keep=False, weight=weight, _x0=x0)


Reweigh = Callable[[int, list[GradedPath]], list[GradedPath]]
"""Function that maps a set of trajectories to the paths that the fake is trained on instead.

Its arguments are the number of the set, and one path per micro-batch.
"""


@dataclass(frozen=True)
class Outcome:
    """Result of an iteration."""

    scalars: dict[str, float]
    """Scalars to log, by name."""
    failed: str | None = None
    """Role with a loss or gradient that was not finite, if any."""


@dataclass
class Turns:
    """The turns of an iteration and their results so far."""

    step: int
    """Iteration."""
    objective: Objective
    """The method."""
    engines: Mapping[str, Engine]
    """Role -> engine."""
    streams: Generators
    """Random generators of the run."""
    first_stream: int
    """Index of the first micro-batch among those of all ranks."""
    reweigh: Reweigh | None = None
    """Weights trajectories by a reward."""
    scalars: dict[str, list[Tensor]] = field(default_factory=dict)
    """Name -> scalar of each micro-batch, on the device. They are fetched once, at the end."""
    norms: dict[str, float] = field(default_factory=dict)
    """Name -> gradient norm."""
    failed: str | None = None
    """First role with a loss or gradient that was not finite."""
    applied: bool = True
    """Whether every optimiser step so far changed weights."""

    def take_in_sequence(self, roll_out: Callable[[int], list[GradedPath]]) -> None:
        """Update the roles one after the other, each on all micro-batches.

        Args:
            roll_out: Makes the set of trajectories with a number; turns share set 0.
        """
        calls: list[GradedPath] = []
        learned: list[GradedPath] = []
        own = self.objective.own_trajectories
        for turn, role in enumerate(self.objective.roles):
            if turn <= own:
                number = turn + 1 if turn < own else 0
                calls = roll_out(number)
                learned = self._learned(number, calls)
            for micro, call in enumerate(learned if role == "fake" else calls):
                self._backward(turn, micro, call)
            self._update(role)
            if self.failed:
                return

    def take_jointly(self, calls: list[GradedPath]) -> None:
        """Compute the losses of all roles on each micro-batch, and update all roles at the end.

        Args:
            calls: One path per micro-batch.
        """
        learned = self._learned(0, calls)
        for micro, call in enumerate(calls):
            for turn, role in enumerate(self.objective.roles):
                self._backward(turn, micro, learned[micro] if role == "fake" else call)
        for role in self.objective.roles:
            self._update(role)

    def _learned(self, number: int, calls: list[GradedPath]) -> list[GradedPath]:
        """Return the paths that the fake is trained on; rewards can replace the student's own."""
        return calls if self.reweigh is None else self.reweigh(number, calls)

    def _backward(self, turn: int, micro: int, call: GradedPath) -> None:
        """Draw, compute the loss and back-propagate on one micro-batch."""
        role, stream = self.objective.roles[turn], self.first_stream + micro
        generator = self.streams.generator(self.step, f"{role}/{turn}", stream)
        draw = call.draw(self.objective, generator, graded=role == "student")
        losses = self.objective.loss(role, call.roles, draw, call.path.cond)
        self.engines[role].backward(losses["loss"])
        for name, value in losses.items():
            self.scalars.setdefault(f"{name}/{role}", []).append(value.detach())

    def _update(self, role: str) -> None:
        """Update the weights of a role, or only clear its gradient if a role failed before."""
        finite = torch.stack(self.scalars[f"loss/{role}"]).isfinite().all()
        result = self.engines[role].step(skip=~finite if self.failed is None else True)
        self.norms[f"grad_norm/{role}"] = result.grad_norm
        self.applied &= result.applied
        if self.failed is None and not result.applied and not result.rescaled:
            self.failed = role


def iterate(
    step: int,
    conds: list[Cond],
    noise_shape: tuple[int, ...],
    *,
    objective: Objective,
    roles: Roles,
    engines: Mapping[str, Engine],
    grid: TimeGrid,
    streams: Generators,
    first_stream: int = 0,
    stream: Stream | None = None,
    reweigh: Reweigh | None = None,
) -> Outcome:
    """Run one training iteration: update each role of the method in turn.

    The first `objective.own_trajectories` turns use their own trajectories; the rest share one set.
    If the loss or gradient of a turn is not finite, its weights are not changed and the iteration
    ends. If only the gradient overflows because of the loss scale, the engine lowers the scale and
    the iteration continues.

    Args:
        step: Iteration, from 0.
        conds: Conditioning of each micro-batch.
        noise_shape: Shape of a micro-batch, [B, ...].
        objective: The method.
        roles: The networks.
        engines: Role -> training engine.
        grid: Grid of new trajectories.
        streams: Random generators of the run.
        first_stream: Index of the first micro-batch among those of all ranks.
        stream: Trajectories that continue between iterations. They are advanced by one step. None
            rolls out new trajectories.
        reweigh: Weights trajectories by a reward.

    Returns:
        Scalars to log, and the role that failed, if any.
    """
    paths: dict[int, list[GradedPath]] = {}
    once = len(conds) == 1 or objective.updates == "joint"

    def roll_out(number: int) -> list[GradedPath]:
        made = []
        for micro, cond in enumerate(conds):
            if stream is not None:
                path = stream.path(micro, cond, number)
            else:
                place = Place(step, micro, first_stream + micro, number)
                path = advance(place, cond, noise_shape, objective, roles, grid, streams)
                path = path if reweigh else replace(path, tip=None)  # only rewards need its end
            made.append(GradedPath(path, _asked(objective, roles), keep=once and number == 0))
        if stream is not None:  # its trajectories continue from these calls
            paths[number] = made
        return made

    if stream is not None:
        stream.begin(roles.student, conds)
    turns = Turns(step, objective, engines, streams, first_stream, reweigh)
    if objective.updates == "joint":
        turns.take_jointly(roll_out(0))
    else:
        turns.take_in_sequence(roll_out)
    return _outcome(turns, paths, stream, process=roles.student.process)


def _asked(objective: Objective, roles: Roles) -> Roles:
    """Return the roles that a micro-batch asks: a shared draw calls the fake once."""
    if objective.draws != "shared" or roles.fake is None:
        return roles
    return replace(roles, fake=AskedOnce(roles.fake))


def _outcome(
    turns: Turns, paths: Mapping[int, list[GradedPath]], stream: Stream | None, process: Process
) -> Outcome:
    """Advance the trajectories of a stream, and copy all results to the host at once."""
    on, moved = turns.failed is None and turns.applied, torch.ones(0)
    means = torch.stack([torch.stack(each).float().mean() for each in turns.scalars.values()])
    if stream is not None:
        predictions = [
            [
                paths[number][micro].detached if number in paths else None
                for number in stream.numbers
            ]
            for micro in range(len(stream.states))
        ]
        moved = stream.move(turns.step, predictions, process, on=on)
    values = torch.cat([means, moved.flatten().to(means)]).tolist()
    if stream is not None:
        flags, width = values[len(means) :], moved.shape[1]
        stream.settle([flags[i : i + width] for i in range(0, len(flags), width)], on=on)
    return Outcome(dict(zip(turns.scalars, values)) | turns.norms, failed=turns.failed)
