"""State of the slots of a stream on the device; see stream.py.

Shapes: B is the number of slots in a micro-batch; states are [B, ...], times and steps are [B].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..diffusion.sampler import Before

Made = tuple[Tensor, Before]
"""Next states of a set of trajectories, [B, ...], and their previous clean predictions."""


@dataclass(frozen=True)
class States:
    """States of the slots of a micro-batch on the device."""

    k: Tensor
    """Step of the next call, [B]."""
    grid: Tensor
    """Index of the slot's grid, [B]."""
    sets: tuple[Tensor, ...]
    """States, each [B, ...]: the shared set, then one per update with its own trajectories."""
    before: tuple[Before, ...] = ()
    """Previous clean predictions of each set, for a multistep solver; otherwise empty."""


def stepped(state: States, made: Sequence[Made]) -> States:
    """Build the states of the next step. Only valid for slots with k > 1.

    Args:
        state: Current states.
        made: Next state and clean prediction of each set.

    Returns:
        The states at k - 1.
    """
    before = tuple(each for _, each in made) if state.before else ()
    return States(state.k - 1, state.grid, tuple(x for x, _ in made), before)


def select(mask: Tensor, one: States, other: States) -> States:
    """Select between two states, slot by slot.

    Args:
        mask: Slots to take from `one`, [B] bool.
        one: States where the mask is true.
        other: States where the mask is false.

    Returns:
        The selected states.
    """

    def where(a: Tensor, b: Tensor) -> Tensor:
        return torch.where(mask.view(-1, *[1] * (a.dim() - 1)), a, b)

    return States(
        where(one.k, other.k),
        where(one.grid, other.grid),
        tuple(map(where, one.sets, other.sets)),
        tuple(Before(where(a.x0, b.x0), where(a.t, b.t)) for a, b in zip(one.before, other.before)),
    )
