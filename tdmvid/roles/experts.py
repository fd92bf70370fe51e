"""A trained role that has an engine for each expert: an iteration calls and updates one of them."""

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
    """The engines of a pair of experts, with the contract of one.

    What is trained is the expert that was called with a graph last; the other's optimiser, average
    and schedule stand still. All ranks call the same one.
    """

    def __init__(self, module: Experts, build: Callable[[Any, str], Any]):
        """Build both engines.

        Args:
            module: Both networks, with what is trained.
            build: Makes the engine of a network, given the expert's name.
        """
        self.module = module
        self.parts = {name: build(network, name) for name, network in module.networks.items()}
        self._called = module.split.names[0]

    def __call__(self, *, timestep: Tensor, **inputs: Any) -> Any:
        name = self.module.choose(timestep)
        if torch.is_grad_enabled():
            self._called = name
        return self.parts[name](timestep=timestep, **inputs)

    @property
    def trainable(self) -> dict[str, Any]:
        """The trained parameters by their names in the pair."""
        return self._joined({name: engine.trainable for name, engine in self.parts.items()})

    def backward(self, loss: Tensor) -> None:
        """Accumulate the gradient of the expert that was called."""
        self.parts[self._called].backward(loss)

    def step(self, *, skip: bool | Tensor = False) -> StepResult:
        """Step the expert that was called, as its engine does."""
        result: StepResult = self.parts[self._called].step(skip=skip)
        return result

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside, both experts compute with their averaged weights, if there are any."""
        with ExitStack() as stack:
            for engine in self.parts.values():
                stack.enter_context(engine.averaged())
            yield

    def weights(self, *, averaged: bool, everywhere: bool = True) -> dict[str, Tensor]:
        """Return both experts' trained tensors, as their engines do."""
        return self._joined(
            {
                name: engine.weights(averaged=averaged, everywhere=everywhere)
                for name, engine in self.parts.items()
            }
        )

    def snapshot(self) -> Files:
        """Return the files of both, each in a folder of its own."""
        return {
            f"{name}/{file}": data
            for name, engine in self.parts.items()
            for file, data in engine.snapshot().items()
        }

    def load(self, folder: Path) -> None:
        """Restore both from the files of a `snapshot`."""
        for name, engine in self.parts.items():
            engine.load(folder / name)

    @staticmethod
    def _joined(found: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        return {f"{name}.{key}": x for name, each in found.items() for key, x in each.items()}


def backend_of(engine: Any) -> str:
    """Return the class of a role's engine, or of its experts' engines."""
    if isinstance(engine, ExpertEngines):
        engine = next(iter(engine.parts.values()))
    return type(engine).__name__
