"""One training iteration, for any objective (arXiv 2503.06674, Algorithm 1)."""

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
    """What an optimiser step reports; see `parallel.engine.StepResult`."""

    @property
    def applied(self) -> bool: ...
    @property
    def grad_norm(self) -> float: ...
    @property
    def rescaled(self) -> bool: ...


class Engine(Protocol):
    """What an iteration needs of a trainable role."""

    def backward(self, loss: Tensor) -> None: ...
    def step(self, *, skip: bool | Tensor = False) -> Step: ...


class AskedOnce:
    """A fake whose answer in its own turn serves the student's turn too, without its graph."""

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
    """A trajectory up to s_k and the one student call on it that carries a gradient.

    With `keep`, its graph is kept while the fake is updated, so the call is made once;
    without, the fake's turn makes it without a graph (gradient accumulation: one graph at a time).
    """

    path: Trajectory
    roles: Roles
    keep: bool
    weight: Tensor | None = None
    """How much the trajectory counts for the fake, [B]."""
    _x0: Tensor | None = field(default=None, repr=False)
    _draw: Draw | None = field(default=None, repr=False)

    def x0_hat(self, *, graded: bool) -> Tensor:
        """Return the clean prediction at s_k: with its graph if `graded`, detached otherwise."""
        if self._x0 is None or (graded and not self._x0.requires_grad):
            with torch.set_grad_enabled(graded or self.keep):
                self._x0 = self.roles.student(self.path.x, self.path.upper, self.path.cond)
        return self._x0 if graded else self._x0.detach()

    @property
    def detached(self) -> Tensor | None:
        """The clean prediction, if it was asked for."""
        return None if self._x0 is None else self._x0.detach()

    def draw(self, objective: Objective, generator: torch.Generator, *, graded: bool) -> Draw:
        """A new draw on this trajectory, or its first again if the objective's turns share one."""
        x0_hat = self.x0_hat(graded=graded)
        if self._draw is None or objective.draws == "own":
            self._draw = objective.draw(self.path, x0_hat, generator, self.roles.student.process)
        return replace(self._draw, x0_hat=x0_hat, weight=self.weight)

    @classmethod
    def of_past(cls, path: Trajectory, x0: Tensor, weight: Tensor, roles: Roles) -> GradedPath:
        """Return a state of a trajectory that has ended, whose clean prediction is known."""
        return cls(path, roles, keep=False, weight=weight, _x0=x0)


Reweigh = Callable[[int, list[GradedPath]], list[GradedPath]]
"""Number of a set of trajectories and its calls -> what the fake learns from in their place."""


@dataclass(frozen=True)
class Outcome:
    """Scalars to log, and the role whose loss or gradient was not finite, if any."""

    scalars: dict[str, float]
    failed: str | None = None


@dataclass
class Turns:
    """The turns of an iteration: what they report, and whose loss or gradient was not finite."""

    step: int
    objective: Objective
    engines: Mapping[str, Engine]
    streams: Generators
    first_stream: int
    reweigh: Reweigh | None = None
    scalars: dict[str, list[Tensor]] = field(default_factory=dict)
    """On the device: they are fetched once, at the end."""
    norms: dict[str, float] = field(default_factory=dict)
    failed: str | None = None
    applied: bool = True
    """Whether every step so far changed weights."""

    def take_in_sequence(self, roll_out: Callable[[int], list[GradedPath]]) -> None:
        """Let each role take its turn on all micro-batches, and meet those updated before it.

        Args:
            roll_out: Makes a set of trajectories by its number: 0 for the one that turns share.
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
        """Let each micro-batch take all turns, and update all roles at the end."""
        learned = self._learned(0, calls)
        for micro, call in enumerate(calls):
            for turn, role in enumerate(self.objective.roles):
                self._backward(turn, micro, learned[micro] if role == "fake" else call)
        for role in self.objective.roles:
            self._update(role)

    def _learned(self, number: int, calls: list[GradedPath]) -> list[GradedPath]:
        """What the fake learns from: the student's own calls, unless a reward says otherwise."""
        return calls if self.reweigh is None else self.reweigh(number, calls)

    def _backward(self, turn: int, micro: int, call: GradedPath) -> None:
        """Take a turn on one micro-batch: a draw, its loss, the gradient."""
        role, stream = self.objective.roles[turn], self.first_stream + micro
        generator = self.streams.generator(self.step, f"{role}/{turn}", stream)
        draw = call.draw(self.objective, generator, graded=role == "student")
        losses = self.objective.loss(role, call.roles, draw, call.path.cond)
        self.engines[role].backward(losses["loss"])
        for name, value in losses.items():
            self.scalars.setdefault(f"{name}/{role}", []).append(value.detach())

    def _update(self, role: str) -> None:
        """Step a role's weights; behind one that failed, only forget the gradient."""
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
    """Let each role of the objective take its turn on trajectories, new ones or those of `stream`.

    The first `objective.own_trajectories` turns each have trajectories of their own. A turn whose
    loss or gradient is not finite changes nothing and ends the iteration; one whose gradient
    overflowed for its loss scale alone changes nothing but that.

    Args:
        conds: One Cond per micro-batch.
        noise_shape: [B, ...] of a micro-batch.
        grid: Of new trajectories.
        first_stream: Number of the first micro-batch among those of all ranks.
        stream: Trajectories that go on, and are moved.
        reweigh: Gives trajectories their weights by a reward.
    """
    paths: dict[int, list[GradedPath]] = {}
    once = len(conds) == 1 or objective.updates == "joint"

    def roll_out(number: int) -> list[GradedPath]:
        paths[number] = []
        for micro, cond in enumerate(conds):
            if stream is not None:
                path = stream.path(micro, cond, number)
            else:
                place = Place(step, micro, first_stream + micro, number)
                path = advance(place, cond, noise_shape, objective, roles, grid, streams)
            asked = roles
            if objective.draws == "shared" and roles.fake is not None:
                asked = replace(roles, fake=AskedOnce(roles.fake))
            paths[number].append(GradedPath(path, asked, keep=once and number == 0))
        return paths[number]

    if stream is not None:
        stream.begin(roles.student, conds)
    turns = Turns(step, objective, engines, streams, first_stream, reweigh)
    if objective.updates == "joint":
        turns.take_jointly(roll_out(0))
    else:
        turns.take_in_sequence(roll_out)
    return _outcome(turns, paths, stream, process=roles.student.process)


def _outcome(
    turns: Turns, paths: Mapping[int, list[GradedPath]], stream: Stream | None, process: Process
) -> Outcome:
    """Move the trajectories that go on, and fetch all that the host wants to know at once."""
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
