"""Denoisers, the interface of every network: a function (x_t, t, cond) -> x0.

Shapes: B is the batch size; x_t and x0 are [B, ...] with any trailing shape; t is [B] in [0, 1].
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from .guidance import CONSTANT, Combine, GuidanceSchedule, extrapolate
from .process import Process, broadcast

STEPS = "steps"
"""Name of the condition that gives student and fake the number of sampling steps K, [B]."""


class Cond(Mapping[str, Tensor]):
    """Conditioning of a batch: named tensors of shape [B, ...].

    A backbone chooses the names (`prompt_embeds`, `pooled_prompt_embeds`, ...). A method only
    selects, joins and moves batches.

    Args:
        tensors: Name -> tensor [B, ...], all with the same batch size.
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
        """Batch size B; 0 for the empty Cond of an unconditional model."""
        return len(next(iter(self._tensors.values()))) if self._tensors else 0

    def to(self, *args: Any, **kwargs: Any) -> Cond:
        """Move or cast every tensor.

        Args:
            *args: Arguments of `Tensor.to`.
            **kwargs: Keyword arguments of `Tensor.to`.

        Returns:
            The conditioning with the converted tensors.
        """
        return Cond({name: tensor.to(*args, **kwargs) for name, tensor in self.items()})

    def rows(self, index: slice | Tensor) -> Cond:
        """Select samples of the batch.

        Args:
            index: Slice, mask [B] or indices [N].

        Returns:
            The conditioning of these samples, tensors [N, ...].
        """
        return Cond({name: tensor[index] for name, tensor in self.items()})

    def with_step_count(self, steps: int, batch: int, device: torch.device | str) -> Cond:
        """Add the same number of steps K for all samples.

        Args:
            steps: K.
            batch: Batch size B; needed because an unconditional Cond is empty.
            device: Device of the new tensor.

        Returns:
            The conditioning with K, [B] float32, under the name `STEPS`.
        """
        return self.with_step_counts(torch.full((batch,), float(steps), device=device))

    def with_step_counts(self, steps: Tensor) -> Cond:
        """Add the number of steps K of each sample.

        Args:
            steps: K of each sample, [B].

        Returns:
            The conditioning with K, [B] float32, under the name `STEPS`.
        """
        return Cond({**self, STEPS: steps.float()})

    def expand(self, batch: int) -> Cond:
        """Expand the conditioning of one sample to a batch, without a copy.

        Args:
            batch: Batch size B.

        Returns:
            The conditioning with tensors [B, ...].
        """
        return Cond(
            {name: tensor.expand(batch, *tensor.shape[1:]) for name, tensor in self.items()}
        )

    def replaced_by(self, other: Cond) -> Cond:
        """Replace tensors by those of another conditioning.

        Args:
            other: Conditioning of the same batch size.

        Returns:
            The conditioning with the tensors of `other`, and all tensors that `other` lacks.
        """
        return Cond({**self, **other})

    @staticmethod
    def cat(conds: list[Cond]) -> Cond:
        """Join batches along the batch dimension.

        Args:
            conds: Conditionings with the same names.

        Returns:
            The conditioning of the joined batch, [sum of B, ...].
        """
        return Cond({name: torch.cat([cond[name] for cond in conds]) for name in conds[0]})


def step_level(steps: Tensor, shift: float = 3.0) -> Tensor:
    """Map the number of steps K to the range of a time: shift / (K + shift - 1).

    With shift 3, the values for 1, 2, 4 and 8 steps are 1, 0.75, 0.5 and 0.3.

    Args:
        steps: K of each sample, [B].
        shift: Shift of the scale.

    Returns:
        Level of each sample in (0, 1], [B].
    """
    return shift / (steps + shift - 1)


class Denoiser(Protocol):
    """Interface of every network: predicts the clean sample from a noisy one."""

    process: Process
    """Forward process that the network was trained with."""

    def __call__(self, x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """Predict the clean sample.

        Args:
            x_t: Noisy samples, [B, ...].
            t: Times in [0, 1], [B].
            cond: Conditioning of the batch.

        Returns:
            The predicted x0, [B, ...] float32.
        """
        ...


class Guided:
    """Denoiser with classifier-free guidance, D(null) + cfg (D(cond) - D(null)) by default.

    cfg = 1 means no guidance. Both branches run in one call of twice the batch size, at every time.
    Tensors that `null` lacks, such as a given first frame, are the same in both branches.

    Args:
        denoiser: Unguided denoiser.
        null: Conditioning of the unconditional branch, for one sample.
        cfg: Guidance scale.
        schedule: Change of the scale with time.
        combine: How the family's stock pipeline combines the branches, `Backbone.combine`.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        null: Cond,
        cfg: float,
        schedule: GuidanceSchedule = CONSTANT,
        combine: Combine = extrapolate,
    ):
        self.denoiser, self.null, self.cfg, self.schedule = denoiser, null, cfg, schedule
        self.combine = combine
        self.process = denoiser.process

    def scale(self, x_t: Tensor, t: Tensor) -> float | Tensor:
        """Compute the guidance scale.

        Args:
            x_t: Noisy samples, [B, ...]; only the shape is used.
            t: Times, [B].

        Returns:
            One number for a constant schedule, otherwise the scale of each sample, [B, 1, ...].
        """
        if self.schedule == CONSTANT:
            return self.cfg
        return broadcast(self.schedule(self.cfg, t, self.process.timestep(t)), x_t)

    def __call__(self, x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        if self.cfg == 1.0 and self.schedule.second in (None, 1.0):
            return self.denoiser(x_t, t, cond)
        both = Cond.cat([cond.replaced_by(self.null.expand(len(x_t))), cond])
        without, with_ = self.denoiser(torch.cat([x_t, x_t]), torch.cat([t, t]), both).chunk(2)
        return self.combine(x_t, without, with_, self.scale(x_t, t))
