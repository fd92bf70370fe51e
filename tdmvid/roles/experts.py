"""Train a role with two experts: one engine each, and every iteration updates one of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..backbones.experts import Experts
from ..parallel.engine import Files, StepResult


class ExpertEngines:
    """The engines of two experts, with the interface of one engine.

    Each iteration trains the expert that was last called with gradients. The other's optimiser,
    average and schedule do not advance. All ranks call the same expert.

    Args:
        module: Both networks, with their trainable parameters.
        build: (network, expert name) -> its engine.
    """

    def __init__(self, module: Experts, build: Callable[[Any, str], Any]):

        self.module = module
        self.parts = {name: build(network, name) for name, network in module.networks.items()}
        self._called = module.split.names[0]

    def __call__(self, *, timestep: Tensor, **inputs: Any) -> Any:
        """Call the expert that `timestep` [B] selects."""
        name = self.module.choose(timestep)
        if torch.is_grad_enabled():
            self._called = name
        return self.parts[name](timestep=timestep, **inputs)

    @property
    def trainable(self) -> dict[str, Any]:
        """The trained parameters, named `<expert>.<parameter>`."""
        return self._joined({name: engine.trainable for name, engine in self.parts.items()})

    def backward(self, loss: Tensor) -> None:
        """Accumulate the gradient of the expert that was called; `loss` is a scalar."""
        self.parts[self._called].backward(loss)

    def step(self, *, skip: bool | Tensor = False) -> StepResult:
        """Step the optimiser of the expert that was called, and return its engine's result.

        Args:
            skip: Whether to discard the gradient instead.
        """
        result: StepResult = self.parts[self._called].step(skip=skip)
        return result

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Use the averaged weights of both experts inside the context, if there are any."""
        with ExitStack() as stack:
            for engine in self.parts.values():
                stack.enter_context(engine.averaged())
            yield

    def weights(self, *, averaged: bool, everywhere: bool = True) -> dict[str, Tensor]:
        """Return the trained tensors of both experts, named `<expert>.<parameter>`.

        Args:
            averaged: Whether to return averaged weights.
            everywhere: Whether all ranks get them, or only the first.
        """
        return self._joined(
            {
                name: engine.weights(averaged=averaged, everywhere=everywhere)
                for name, engine in self.parts.items()
            }
        )

    def snapshot(self) -> Files:
        """Return the checkpoint files of both experts, one folder each."""
        return {
            f"{name}/{file}": data
            for name, engine in self.parts.items()
            for file, data in engine.snapshot().items()
        }

    def load(self, folder: Path) -> None:
        """Restore both experts from the files of `snapshot`."""
        for name, engine in self.parts.items():
            engine.load(folder / name)

    @staticmethod
    def _joined(found: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        return {f"{name}.{key}": x for name, each in found.items() for key, x in each.items()}


def backend_of(engine: Any) -> str:
    """Return the class name of a role's engine, or of its experts' engines."""
    if isinstance(engine, ExpertEngines):
        engine = next(iter(engine.parts.values()))
    return type(engine).__name__
