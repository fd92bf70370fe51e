"""The last ended trajectory of each slot of a stream, which a reward is known of.

While a slot's trajectory goes on, its states and clean predictions are kept; when it ends they take
the place of the last one's. In every iteration the fake learns from one of the K states of the last
one, and the student stands on the current state: neither costs a call.

Shapes: K the most steps; B slots of a micro-batch; histories are [K, B, ...], entry k - 1 for s_k.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class History:
    """States and clean predictions of a trajectory in each slot, [K, B, ...]."""

    x: Tensor
    x0: Tensor

    @classmethod
    def empty(cls, steps: int, shape: tuple[int, ...], device: torch.device | str) -> History:
        """Return a history of `steps` steps; shape: [B, ...]."""
        return cls(*(torch.zeros(steps, *shape, device=device) for _ in range(2)))

    def note(self, k: Tensor, x: Tensor, x0: Tensor) -> None:
        """Keep a state [B, ...] and its clean prediction at step k, [B]."""
        place = k - 1, torch.arange(len(k), device=k.device)
        self.x[place], self.x0[place] = x, x0.detach()

    def take(self, done: Tensor, other: History) -> None:
        """Take the slots of another history where `done` is set, [B]."""
        mask = done.view(1, -1, *[1] * (self.x.dim() - 2))
        self.x = torch.where(mask, other.x, self.x)
        self.x0 = torch.where(mask, other.x0, self.x0)

    def at(self, k: Tensor) -> tuple[Tensor, Tensor]:
        """Return state and clean prediction at step k, [B]."""
        place = k - 1, torch.arange(len(k), device=k.device)
        return self.x[place], self.x0[place]


@dataclass
class Ended:
    """The trajectories of a micro-batch: those that go on, and the last that have ended."""

    going: History
    past: History
    grid: list[int]
    """Which of the run's grids an ended trajectory had."""
    position: list[int]
    """Of its prompt, in the endless order of prompts."""
    rewards: Tensor
    """Of its finished sample, [B, rewards] on the host; NaN where it is not scored yet."""

    @classmethod
    def empty(
        cls, steps: int, shape: tuple[int, ...], rewards: int, device: torch.device | str
    ) -> Ended:
        """Return slots in which no trajectory has ended; shape: [B, ...]."""
        slots = shape[0]
        return cls(
            History.empty(steps, shape, device),
            History.empty(steps, shape, device),
            [0] * slots,
            [0] * slots,
            torch.full((slots, rewards), float("nan")),
        )

    def begin(self) -> None:
        """Let the trajectories that go on be the ended ones, whose first steps they share."""
        self.going = History(self.past.x.clone(), self.past.x0.clone())

    def end(self, slots: Mapping[int, tuple[int, int]]) -> None:
        """Note on the host which slots have ended; slots: their grid and their prompt's place."""
        for slot, (grid, position) in slots.items():
            self.grid[slot], self.position[slot] = grid, position
            self.rewards[slot] = float("nan")

    @property
    def unscored(self) -> list[int]:
        """Slots whose ended trajectory is not scored yet."""
        return self.rewards.isnan().any(1).nonzero().flatten().tolist()

    def restore(self, found: Mapping[str, Tensor]) -> None:
        """Go on from what `tensors` returned."""
        device = self.going.x.device
        self.going, self.past = (
            History(*(found[f"{which}/{name}"].clone().to(device) for name in ("x", "x0")))
            for which in ("going", "ended")
        )
        self.grid, self.position = found["ended/grid"].tolist(), found["ended/position"].tolist()
        self.rewards = found["ended/rewards"].clone()

    def tensors(self) -> dict[str, Tensor]:
        """Return all that `restore` needs, by name."""
        return {
            "going/x": self.going.x,
            "going/x0": self.going.x0,
            "ended/x": self.past.x,
            "ended/x0": self.past.x0,
            "ended/grid": torch.tensor(self.grid),
            "ended/position": torch.tensor(self.position),
            "ended/rewards": self.rewards,
        }
