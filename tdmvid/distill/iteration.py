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


def pick_k(
    objective: Objective, grid: TimeGrid, batch: int, shared: torch.Generator, own: torch.Generator
) -> Tensor:
    """The step of each sample, [B] in 1..K: one for all ranks if the rollout stops there, else per
    sample.
    """
    if objective.rollout == "stop":
        return torch.randint(1, grid.steps + 1, (1,), generator=shared).expand(batch)
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
    """Roll out, then let each role of the objective take its turn on the same trajectories.

    A turn whose loss or gradient is not finite changes nothing and ends the iteration; one whose
    gradient overflowed for its loss scale alone changes nothing but that.

    Args:
        conds: One Cond per micro-batch.
        noise_shape: [B, ...] of a micro-batch.
        first_stream: Number of the first micro-batch among those of all ranks.
    """
    paths = []
    for stream, cond in enumerate(conds, first_stream):
        path = advance(step, cond, noise_shape, objective, roles, grid, streams, stream)
        asked = roles
        if objective.draws == "shared" and roles.fake is not None:
            asked = replace(roles, fake=AskedOnce(roles.fake))
        paths.append(GradedPath(path, asked, keep=len(conds) == 1))

    scalars: dict[str, list[Tensor]] = {}  # on the device: they are fetched once, at the end
    norms: dict[str, float] = {}
    for turn, role in enumerate(objective.roles):
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
    step: int,
    cond: Cond,
    noise_shape: tuple[int, ...],
    objective: Objective,
    roles: Roles,
    grid: TimeGrid,
    streams: Generators,
    stream: int,
) -> Trajectory:
    """Roll one micro-batch out from noise up to a step k of the student's grid.

    Args:
        noise_shape: [B, ...].
        stream: Number of the micro-batch among those of all ranks.
    """
    shared = streams.generator(step, "k", device="cpu")
    own = streams.generator(step, "k", stream, device="cpu")
    k = pick_k(objective, grid, noise_shape[0], shared, own)
    device = streams.device
    z = torch.randn(noise_shape, generator=streams.generator(step, "z", stream), device=device)
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
        generator=streams.generator(step, "renoise", stream),
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
