"""Where the slots of a stream stand, on the host and on the device; see stream.py.

Shapes: B slots of a micro-batch; states are [B, ...], times and steps [B].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..diffusion.sampler import Before

Made = tuple[Tensor, Before]
"""The next state of a set of trajectories, and what a multistep solver remembers."""


@dataclass(frozen=True)
class Schedule:
    """What the slots of a micro-batch do next, as the host knows it: lists of B entries."""

    k: list[int]
    """Step of the next call."""
    grid: list[int]
    """Which of the run's grids."""
    starts: list[int]
    """How often the slot has started again with another prompt."""


@dataclass(frozen=True)
class States:
    """Where a micro-batch stands, on the device; k, grid: [B], as in `Schedule`."""

    k: Tensor
    grid: Tensor
    sets: tuple[Tensor, ...]
    """x, [B, ...]: one that turns share, then those of turns with trajectories of their own."""
    before: tuple[Before, ...] = ()
    """Of a multistep solver, for each set."""


def stepped(state: States, made: Sequence[Made]) -> States:
    """Return the states one step on, for slots that are not done."""
    before = tuple(each for _, each in made) if state.before else ()
    return States(state.k - 1, state.grid, tuple(x for x, _ in made), before)


def select(mask: Tensor, one: States, other: States) -> States:
    """Return the slots of `one` where the mask is set, [B], and those of `other` elsewhere."""

    def where(a: Tensor, b: Tensor) -> Tensor:
        return torch.where(mask.view(-1, *[1] * (a.dim() - 1)), a, b)

    return States(
        where(one.k, other.k),
        where(one.grid, other.grid),
        tuple(map(where, one.sets, other.sets)),
        tuple(Before(where(a.x0, b.x0), where(a.t, b.t)) for a, b in zip(one.before, other.before)),
    )
