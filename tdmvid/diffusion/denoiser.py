"""What a network is to the method: a function (x_t, t, cond) -> x0.

Shapes: B batch; x_t and x0 are [B, ...] of any trailing shape; t is [B] in [0, 1].
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from .guidance import CONSTANT, GuidanceSchedule
from .process import Process, broadcast

STEPS = "steps"
"""Name of the condition that tells student and fake in how many steps they are to sample: K, [B].
"""


class Cond(Mapping[str, Tensor]):
    """The conditioning of a batch: named tensors, each with the batch first.

    A backbone decides the names (`prompt_embeds`, `pooled_prompt_embeds`, ...); the
    method only ever selects, joins and moves batches.
    """

    def __init__(self, tensors: Mapping[str, Tensor]):
        self._tensors = dict(tensors)
        sizes = {name: len(tensor) for name, tensor in self._tensors.items()}
        assert len(set(sizes.values())) <= 1, f"batch sizes differ: {sizes}"

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    @property
    def batch(self) -> int:
        """Batch size; 0 for an unconditional model's empty Cond."""
        return len(next(iter(self._tensors.values()))) if self._tensors else 0

    def to(self, *args: Any, **kwargs: Any) -> Cond:
        """As `Tensor.to`, for every tensor."""
        return Cond({name: tensor.to(*args, **kwargs) for name, tensor in self.items()})

    def rows(self, index: slice | Tensor) -> Cond:
        """The conditioning of some samples of the batch."""
        return Cond({name: tensor[index] for name, tensor in self.items()})

    def with_step_count(self, steps: int, batch: int, device: torch.device | str) -> Cond:
        """Return the conditioning with K for each of `batch` samples."""
        return self.with_step_counts(torch.full((batch,), float(steps), device=device))

    def with_step_counts(self, steps: Tensor) -> Cond:
        """Return the conditioning with each sample's own K: [B]."""
        return Cond({**self, STEPS: steps.float()})

    def expand(self, batch: int) -> Cond:
        """One sample's conditioning for a batch of `batch`, without copying."""
        return Cond(
            {name: tensor.expand(batch, *tensor.shape[1:]) for name, tensor in self.items()}
        )

    def replaced_by(self, other: Cond) -> Cond:
        """Return the conditioning with those tensors that `other` has; all others stay."""
        return Cond({**self, **other})

    @staticmethod
    def cat(conds: list[Cond]) -> Cond:
        """Batches joined along the batch dimension; all must have the same names."""
        return Cond({name: torch.cat([cond[name] for cond in conds]) for name in conds[0]})


def step_level(steps: Tensor, shift: float = 3.0) -> Tensor:
    """K on the scale of a time: shift / (K + shift - 1), so 1, 2, 4, 8 steps are 1, 0.75, 0.5, 0.3:
    [B] -> [B].
    """
    return shift / (steps + shift - 1)


class Denoiser(Protocol):
    """A network behind the one contract of the method."""

    process: Process

    def __call__(self, x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """The predicted clean sample, float32, in the shape of x_t."""
        ...


class Guided:
    """Classifier-free guidance, D(null) + cfg (D(cond) - D(null)); cfg = 1 is the plain denoiser.

    Both branches go through the network in one call of twice the batch, at every time. What `null`
    does not name, such as a given first frame, is the same in both.

    Args:
        denoiser: unguided.
        null: the condition of the other branch, of one sample.
        cfg: the scale.
        schedule: how the scale changes with time.
    """

    def __init__(
        self, denoiser: Denoiser, null: Cond, cfg: float, schedule: GuidanceSchedule = CONSTANT
    ):
        self.denoiser, self.null, self.cfg, self.schedule = denoiser, null, cfg, schedule
        self.process = denoiser.process

    def scale(self, x_t: Tensor, t: Tensor) -> float | Tensor:
        """Return the scale at t: one number, or of each sample, [B, 1, ...]."""
        if self.schedule == CONSTANT:
            return self.cfg
        return broadcast(self.schedule(self.cfg, t, self.process.timestep(t)), x_t)

    def __call__(self, x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        if self.cfg == 1.0 and self.schedule.second in (None, 1.0):
            return self.denoiser(x_t, t, cond)
        both = Cond.cat([cond.replaced_by(self.null.expand(len(x_t))), cond])
        without, with_ = self.denoiser(torch.cat([x_t, x_t]), torch.cat([t, t]), both).chunk(2)
        return without + self.scale(x_t, t) * (with_ - without)
