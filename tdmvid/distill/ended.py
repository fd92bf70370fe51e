"""Finished trajectories of a stream, which have a reward.

The states and clean predictions of each slot's current trajectory are stored. When the trajectory
ends, they replace those of the slot's previous trajectory. In every iteration the fake is trained
on one of the K states of the last finished trajectory, and the student on the current state. The
stored predictions are K to 2 K - 1 updates old at s_K; `finished_predictions` says whether they are
used or renewed.

Shapes: K is the largest number of steps, B the number of slots in a micro-batch. Histories are
[K, B, ...]; entry k - 1 belongs to s_k.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class History:
    """States and clean predictions of one trajectory per slot."""

    x: Tensor
    """States, [K, B, ...]."""
    x0: Tensor
    """Clean predictions, [K, B, ...]."""

    @classmethod
    def empty(cls, steps: int, shape: tuple[int, ...], device: torch.device | str) -> History:
        """Make a history of zeros.

        Args:
            steps: Largest number of steps K.
            shape: Shape of a micro-batch, [B, ...].
            device: Device of the tensors.

        Returns:
            The history.
        """
        return cls(*(torch.zeros(steps, *shape, device=device) for _ in range(2)))

    def note(self, k: Tensor, x: Tensor, x0: Tensor) -> None:
        """Store states and clean predictions.

        Args:
            k: Step of each slot, [B].
            x: States, [B, ...].
            x0: Clean predictions, [B, ...].
        """
        place = k - 1, torch.arange(len(k), device=k.device)
        self.x[place], self.x0[place] = x, x0.detach()

    def take(self, done: Tensor, other: History) -> None:
        """Copy slots of another history.

        Args:
            done: Slots to copy, [B] bool.
            other: History to copy from.
        """
        mask = done.view(1, -1, *[1] * (self.x.dim() - 2))
        self.x = torch.where(mask, other.x, self.x)
        self.x0 = torch.where(mask, other.x0, self.x0)

    def at(self, k: Tensor) -> tuple[Tensor, Tensor]:
        """Look up states and clean predictions.

        Args:
            k: Step of each slot, [B].

        Returns:
            States and clean predictions, each [B, ...].
        """
        place = k - 1, torch.arange(len(k), device=k.device)
        return self.x[place], self.x0[place]


@dataclass
class Ended:
    """Current and last finished trajectories of a micro-batch."""

    going: History
    """Current trajectories."""
    past: History
    """Last finished trajectories."""
    grid: list[int]
    """Index of the grid of each finished trajectory."""
    position: list[int]
    """Position of its prompt in the infinite sequence of prompts."""
    rewards: Tensor
    """Rewards of its finished sample, [B, rewards] on the host; NaN if not scored yet."""

    @classmethod
    def empty(
        cls, steps: int, shape: tuple[int, ...], rewards: int, device: torch.device | str
    ) -> Ended:
        """Make slots without finished trajectories.

        Args:
            steps: Largest number of steps K.
            shape: Shape of a micro-batch, [B, ...].
            rewards: Number of rewards.
            device: Device of the histories.

        Returns:
            The slots.
        """
        slots = shape[0]
        return cls(
            History.empty(steps, shape, device),
            History.empty(steps, shape, device),
            [0] * slots,
            [0] * slots,
            torch.full((slots, rewards), float("nan")),
        )

    def begin(self) -> None:
        """Start the current trajectories as copies of the finished ones: first steps are shared."""
        self.going = History(self.past.x.clone(), self.past.x0.clone())

    def end(self, slots: Mapping[int, tuple[int, int]]) -> None:
        """Record on the host that slots have finished, and clear their rewards.

        Args:
            slots: Slot -> index of its grid and position of its prompt.
        """
        for slot, (grid, position) in slots.items():
            self.grid[slot], self.position[slot] = grid, position
            self.rewards[slot] = float("nan")

    @property
    def unscored(self) -> list[int]:
        """Slots with a finished trajectory that is not scored yet."""
        return self.rewards.isnan().any(1).nonzero().flatten().tolist()

    def restore(self, found: Mapping[str, Tensor]) -> None:
        """Restore the state that `tensors` returned.

        Args:
            found: Name -> tensor: histories [K, B, ...], grids and positions [B], rewards
                [B, rewards].
        """
        device = self.going.x.device
        self.going, self.past = (
            History(*(found[f"{which}/{name}"].clone().to(device) for name in ("x", "x0")))
            for which in ("going", "ended")
        )
        self.grid, self.position = found["ended/grid"].tolist(), found["ended/position"].tolist()
        self.rewards = found["ended/rewards"].clone()

    def tensors(self) -> dict[str, Tensor]:
        """Return the state for a checkpoint.

        Returns:
            Name -> tensor: histories [K, B, ...], grids and positions [B], rewards [B, rewards].
        """
        return {
            "going/x": self.going.x,
            "going/x0": self.going.x0,
            "ended/x": self.past.x,
            "ended/x0": self.past.x0,
            "ended/grid": torch.tensor(self.grid),
            "ended/position": torch.tensor(self.position),
            "ended/rewards": self.rewards,
        }
