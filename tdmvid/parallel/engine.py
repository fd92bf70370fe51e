"""Training engine of one role: network, optimiser, clipping, averaging and checkpoints.

An engine is called like its module. `TorchEngine` runs in one process. `deepspeed_engine.py`
implements the same interface with ZeRO.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from ..config import OptimConfig
from .arithmetic import autocast
from .host_copies import to_host
from .optim import LossScale, build_optimizer

Files = dict[str, bytes | memoryview]
"""Checkpoint files of a role in host memory: relative path -> content."""
Shapes = Mapping[str, tuple[int, ...]]
REMEDY = "resume with the config that wrote it"


@dataclass(frozen=True)
class StepResult:
    """Result of an optimiser step."""

    applied: bool
    """Whether weights were updated; False if loss or gradient was not finite."""
    grad_norm: float
    """Norm of the gradient before clipping."""
    lr: float
    """Learning rate of the step."""
    rescaled: bool = False
    """Whether the gradient overflowed at a loss scale above 1, which is lower now."""


class TorchEngine:
    """Training engine of a role in one process.

    Args:
        module: The network; parameters with `requires_grad` are trained.
        config: Optimiser settings.
        total_steps: Number of updates, for the learning rate schedule.
        accumulation: Micro-batches per update.
        ema: Decay of a moving average of the trainable parameters; 0 keeps none.
        dtype: Data type of the network's computation.
    """

    def __init__(
        self,
        module: nn.Module,
        config: OptimConfig,
        *,
        total_steps: int,
        accumulation: int = 1,
        ema: float = 0.0,
        dtype: torch.dtype = torch.float32,
    ):
        self.module, self.config = module, config
        self.total_steps, self.accumulation, self.decay = total_steps, accumulation, ema
        self.trainable = {name: p for name, p in module.named_parameters() if p.requires_grad}
        assert self.trainable, "a role without trainable parameters"
        self.optimizer = build_optimizer(config, list(self.trainable.values()), fused=True)
        self.average = (
            {name: p.detach().clone() for name, p in self.trainable.items()} if ema else {}
        )
        self.scale = LossScale.of(dtype)
        self.autocast = autocast(module, dtype)
        self.updates = 0

    def __call__(self, *args, **kwargs):
        with self.autocast:
            return self.module(*args, **kwargs)

    def backward(self, loss: Tensor) -> None:
        """Accumulate the gradient of the mean loss over micro-batches.

        Args:
            loss: Loss of one micro-batch, a scalar.
        """
        (loss / self.accumulation * self.scale.value).backward()

    def step(self, *, skip: bool | Tensor = False) -> StepResult:
        """Clip the gradient, update the weights and the moving average.

        The host waits for the device once, to learn whether to update.

        Args:
            skip: Whether to only clear the gradient, a bool or a scalar tensor. A gradient that is
                not finite has the same effect.

        Returns:
            The result of the step.
        """
        parameters = list(self.trainable.values())
        if self.scale.value != 1:
            torch._foreach_div_(
                [p.grad for p in parameters if p.grad is not None], self.scale.value
            )
        limit = self.config.clip if self.config.clip > 0 else float("inf")
        norm = torch.nn.utils.clip_grad_norm_(parameters, limit)
        norm, skipped = torch.stack(
            [norm, torch.as_tensor(skip, dtype=norm.dtype, device=norm.device)]
        ).tolist()
        rate = self.config.rate(self.updates, self.total_steps)
        applied = not skipped and norm < float("inf")
        if applied:
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            self.optimizer.step()
            self.updates += 1
            self._update_average()
        self.optimizer.zero_grad(set_to_none=True)
        return StepResult(applied, norm, rate, rescaled=not skipped and self.scale.update(applied))

    @torch.no_grad()
    def _update_average(self) -> None:
        if self.average:
            torch._foreach_lerp_(
                list(self.average.values()), list(self.trainable.values()), 1 - self.decay
            )

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Use the averaged weights in the module inside the block, if there are any."""
        own = {name: self.trainable[name].detach().clone() for name in self.average}
        try:
            self._assign(self.average)
            yield
        finally:
            self._assign(own)

    @torch.no_grad()
    def _assign(self, weights: dict[str, Tensor]) -> None:
        for name, tensor in weights.items():
            self.trainable[name].copy_(tensor)

    def weights(self, *, averaged: bool, everywhere: bool = True) -> dict[str, Tensor]:
        """Copy the trainable tensors.

        Args:
            averaged: Whether to return the moving average, if there is one.
            everywhere: Has no effect here; see `DeepSpeedEngine.weights`.

        Returns:
            Parameter name -> tensor [...] in the parameter's shape.
        """
        source = self.average if averaged and self.average else self.trainable
        return {name: tensor.detach().clone() for name, tensor in source.items()}

    def snapshot(self) -> Files:
        """Copy weights, average and optimiser state to host memory.

        Returns:
            The checkpoint files, which `load` reads.
        """
        weights, average, optimizer_state = to_host(
            (self.trainable, self.average, self.optimizer.state_dict())
        )
        files: Files = {"weights.safetensors": _serialize(weights)}
        if average:
            files["average.safetensors"] = _serialize(average)
        state = {
            "optimizer": optimizer_state,
            "updates": self.updates,
            "scale": asdict(self.scale),
        }
        optimizer = io.BytesIO()
        torch.save(state, optimizer)
        return files | {"optimizer.pt": optimizer.getbuffer()}

    @torch.no_grad()
    def load(self, folder: Path) -> None:
        """Restore the state of a `snapshot`; the restored state is bit-identical.

        Args:
            folder: Checkpoint folder of the role.

        Raises:
            ValueError: If a file cannot be loaded or belongs to another model.
        """
        if self.average and not (folder / "average.safetensors").exists():
            raise ValueError(
                f"{folder} has no average of the weights, because it was written with ema=0: resume"
                " with ema=0"
            )
        self._copy(folder / "weights.safetensors", self.trainable)
        if self.average:
            self._copy(folder / "average.safetensors", self.average)
        with naming(folder / "optimizer.pt") as path:
            state = torch.load(path, weights_only=True)
            self.optimizer.load_state_dict(state["optimizer"])
            self.updates, self.scale = state["updates"], LossScale(**state["scale"])

    @staticmethod
    def _copy(path: Path, into: Mapping[str, Tensor]) -> None:
        with naming(path):
            saved = load_file(path)
        check_shapes(shapes_of(saved), shapes_of(into), f"{path}:", REMEDY)
        for name, tensor in saved.items():
            into[name].copy_(tensor)


def _serialize(tensors: Mapping[str, Tensor]) -> bytes:
    return save({name: tensor.detach().contiguous() for name, tensor in tensors.items()})


@contextmanager
def naming(path: Path) -> Iterator[Path]:
    """Turn errors of reading a checkpoint file into one that names the file.

    Args:
        path: The file that is read inside the block.

    Yields:
        The path.

    Raises:
        ValueError: If the block raises any error other than out of memory.
    """
    try:
        yield path
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # pickle, zipfile, torch, json, safetensors: many types of errors
        reason = (str(error).splitlines() or [""])[0][:80]
        raise ValueError(
            f"{path} cannot be loaded ({type(error).__name__}: {reason}): resume from another"
            " checkpoint"
        ) from error


def shapes_of(tensors: Mapping[str, Tensor]) -> Shapes:
    """Return the shape of every tensor.

    Args:
        tensors: Name -> tensor of any shape [...].

    Returns:
        Name -> shape.
    """
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def check_shapes(given: Shapes, own: Shapes, where: str, remedy: str) -> None:
    """Check that tensors match a network in names and shapes.

    Args:
        given: Shapes of the tensors.
        own: Shapes of the network.
        where: Source of the tensors, the start of the message.
        remedy: Remedy, the end of the message.

    Raises:
        ValueError: If a name is missing on one side, or a shape differs.
    """
    if given != own:
        name, shape = min(given.items() ^ own.items())
        raise ValueError(f"{where} {name} {shape} does not fit this model; {remedy}")
