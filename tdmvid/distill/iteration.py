"""One training iteration, for any objective (arXiv 2503.06674, Algorithm 1)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor

from ..diffusion.denoiser import Cond, Denoiser
from ..diffusion.grid import TimeGrid
from ..diffusion.sampler import Trajectory, rollout
from .objective import Draw, Objective, Roles


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


class Generators(Protocol):
    """Seeded randomness by step and name; see `parallel.rng.Streams`."""

    @property
    def device(self) -> torch.device | str: ...
    def generator(
        self, step: int, name: str, stream: int = 0, *, device: torch.device | str | None = None
    ) -> torch.Generator: ...


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
    _x0: Tensor | None = field(default=None, repr=False)
    _draw: Draw | None = field(default=None, repr=False)

    def x0_hat(self, *, graded: bool) -> Tensor:
        """Return the clean prediction at s_k: with its graph if `graded`, detached otherwise."""
        if self._x0 is None or (graded and not self._x0.requires_grad):
            with torch.set_grad_enabled(graded or self.keep):
                self._x0 = self.roles.student(self.path.x, self.path.upper, self.path.cond)
        return self._x0 if graded else self._x0.detach()

    def draw(self, objective: Objective, generator: torch.Generator, *, graded: bool) -> Draw:
        """A new draw on this trajectory, or its first again if the objective's turns share one."""
        x0_hat = self.x0_hat(graded=graded)
        if self._draw is None or objective.draws == "own":
            self._draw = objective.draw(self.path, x0_hat, generator, self.roles.student.process)
        return replace(self._draw, x0_hat=x0_hat)


@dataclass(frozen=True)
class Outcome:
    """Scalars to log, and the role whose loss or gradient was not finite, if any."""

    scalars: dict[str, float]
    failed: str | None = None


@dataclass(frozen=True)
class Place:
    """Which trajectory of a run it is, on which its random numbers depend."""

    step: int
    micro: int = 0
    """Number of the micro-batch among those of its rank: the accumulation step."""
    stream: int = 0
    """Number of the micro-batch among those of all ranks."""
    number: int = 0
    """0 for the trajectory that turns of an iteration share, else that of a turn's own."""

    def name(self, what: str) -> str:
        """Return the name of a random stream."""
        return f"{what}/{self.number}" if self.number else what


def pick_k(
    place: Place, objective: Objective, grid: TimeGrid, batch: int, streams: Generators
) -> Tensor:
    """Draw the step of each sample, [B] in 1..K on the host.

    Where the rollout stops it is one for the micro-batch, and the same on all ranks, which then
    make as many calls; else one per sample.
    """
    if objective.rollout == "stop":
        shared = streams.generator(place.step, place.name("k"), place.micro, device="cpu")
        return torch.randint(1, grid.steps + 1, (1,), generator=shared).expand(batch)
    own = streams.generator(place.step, place.name("k"), place.stream, device="cpu")
    return torch.randint(1, grid.steps + 1, (batch,), generator=own)


def pick_grid(grids: Sequence[TimeGrid], shared: torch.Generator) -> TimeGrid:
    """The grid of one iteration, the same on all ranks: it decides how many calls are made."""
    return grids[int(torch.randint(len(grids), (1,), generator=shared))]


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
) -> Outcome:
    """Roll out, then let each role of the objective take its turn on these trajectories.

    The first `objective.own_trajectories` turns each have trajectories of their own. A turn whose
    loss or gradient is not finite changes nothing and ends the iteration; one whose gradient
    overflowed for its loss scale alone changes nothing but that.

    Args:
        conds: One Cond per micro-batch.
        noise_shape: [B, ...] of a micro-batch.
        first_stream: Number of the first micro-batch among those of all ranks.
    """

    def roll_out(number: int, *, keep: bool) -> list[GradedPath]:
        paths = []
        for micro, cond in enumerate(conds):
            place = Place(step, micro, first_stream + micro, number)
            path = advance(place, cond, noise_shape, objective, roles, grid, streams)
            asked = roles
            if objective.draws == "shared" and roles.fake is not None:
                asked = replace(roles, fake=AskedOnce(roles.fake))
            paths.append(GradedPath(path, asked, keep=keep))
        return paths

    paths: list[GradedPath] = []
    scalars: dict[str, list[Tensor]] = {}  # on the device: they are fetched once, at the end
    norms: dict[str, float] = {}
    for turn, role in enumerate(objective.roles):
        if turn < objective.own_trajectories:
            paths = roll_out(turn + 1, keep=False)
        elif turn == objective.own_trajectories:
            paths = roll_out(0, keep=len(conds) == 1)
        for stream, call in enumerate(paths, first_stream):
            generator = streams.generator(step, f"{role}/{turn}", stream)
            draw = call.draw(objective, generator, graded=role == "student")
            losses = objective.loss(role, call.roles, draw, call.path.cond)
            engines[role].backward(losses["loss"])
            for name, value in losses.items():
                scalars.setdefault(f"{name}/{role}", []).append(value.detach())
        finite = torch.stack(scalars[f"loss/{role}"]).isfinite().all()
        result = engines[role].step(skip=~finite)
        norms[f"grad_norm/{role}"] = result.grad_norm
        if not result.applied and not result.rescaled:
            return Outcome(_means(scalars) | norms, failed=role)
    return Outcome(_means(scalars) | norms)


def advance(
    place: Place,
    cond: Cond,
    noise_shape: tuple[int, ...],
    objective: Objective,
    roles: Roles,
    grid: TimeGrid,
    streams: Generators,
) -> Trajectory:
    """Roll one micro-batch, [B, ...] of `noise_shape`, out from noise up to a step k of the
    student's grid.
    """
    step, stream, device = place.step, place.stream, streams.device
    k = pick_k(place, objective, grid, noise_shape[0], streams)
    noise = streams.generator(step, place.name("z"), stream)
    z = torch.randn(noise_shape, generator=noise, device=device)
    if objective.conditioned_on_steps:
        cond = cond.with_step_count(grid.steps, len(z), device)
    calls = grid.steps - int(k[0]) if objective.rollout == "stop" else grid.steps - 1
    return rollout(
        roles.student,
        z,
        cond,
        grid,
        k.to(device),
        calls=calls,
        solver=objective.solver,
        generator=streams.generator(step, place.name("renoise"), stream),
    )


def _means(scalars: dict[str, list[Tensor]]) -> dict[str, float]:
    return dict(
        zip(
            scalars,
            torch.stack(
                [torch.stack(values).float().mean() for values in scalars.values()]
            ).tolist(),
        )
    )
