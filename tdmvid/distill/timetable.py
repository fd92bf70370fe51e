"""Schedule of the slots of a stream on the host: which k, K and prompt each slot has.

All of it depends only on the index of a slot in the global batch and on its number of starts, so
ranks and micro-batches need not communicate. See stream.py.

Shapes: B is the number of slots in a micro-batch. Each list has B entries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from .trajectories import Generators


@dataclass(frozen=True)
class Schedule:
    """Positions of the slots of a micro-batch on the host. Each list has B entries."""

    k: list[int]
    """Step of the next call, in 1..K."""
    grid: list[int]
    """Index of the slot's grid among the grids of the run."""
    starts: list[int]
    """Number of restarts of the slot, each with another prompt."""


@dataclass(frozen=True)
class Timetable:
    """Rules by which slots start."""

    steps: Sequence[int]
    """Number of steps K of each grid."""
    total: int
    """Number of slots of all ranks."""
    stagger: str
    """Whether the slots start `even`ly spread over the steps, or share k (`none`)."""
    streams: Generators
    """Random generators of the run."""

    def first(self, slots: range) -> Schedule:
        """Schedule the first trajectories: spread over the steps, at random if there are many K.

        Args:
            slots: Indices of a micro-batch's slots in the global batch.

        Returns:
            The schedule at the start of the run.
        """
        grids = [self._pick_grid(slot, 0) for slot in slots]
        steps = [self.steps[grid] for grid in grids]
        if self.stagger == "none":
            k = steps
        elif len(self.steps) == 1:
            k = [slot % steps[0] + 1 for slot in slots]
        else:
            k = [
                1 + int(torch.randint(count, (), generator=self._of_slot("k", slot, 0)))
                for slot, count in zip(slots, steps)
            ]
        return Schedule(k, grids, [0] * len(slots))

    def following(self, now: Schedule, slots: range) -> Schedule:
        """Return the schedule after an iteration in which all states were finite.

        Args:
            now: Schedule of the iteration.
            slots: Indices of its slots in the global batch.

        Returns:
            The schedule of the next iteration.
        """
        starts = [start + (k == 1) for start, k in zip(now.starts, now.k)]
        grids = [
            self._pick_grid(slot, start) if k == 1 else grid
            for slot, start, k, grid in zip(slots, starts, now.k, now.grid)
        ]
        return Schedule([k - 1 or self.steps[g] for k, g in zip(now.k, grids)], grids, starts)

    def prompts(self, now: Schedule, slots: range) -> list[int]:
        """Return the position of each slot's prompt in the infinite sequence of prompts.

        Args:
            now: Schedule of the iteration.
            slots: Indices of its slots in the global batch.

        Returns:
            B positions.
        """
        return [start * self.total + slot for start, slot in zip(now.starts, slots)]

    def _pick_grid(self, slot: int, start: int) -> int:
        """Draw the grid of a slot's trajectory.

        A probability proportional to 1 / K gives each K the same share of calls. The first
        trajectories are already in progress when the run starts, so each K is equally likely.
        """
        if len(self.steps) == 1:
            return 0
        weights = torch.tensor([1 / count if start else 1.0 for count in self.steps])
        return int(torch.multinomial(weights, 1, generator=self._of_slot("K", slot, start)))

    def _of_slot(self, name: str, slot: int, start: int) -> torch.Generator:
        together = self.stagger == "none"
        return self.streams.generator(start, f"slot/{name}", 0 if together else slot, device="cpu")
