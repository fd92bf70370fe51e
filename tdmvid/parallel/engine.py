"""One trainable role: its network, optimiser, clipping, averaging, and its state on disk.

An engine is called like its module. `TorchEngine` is one process; `deepspeed_engine.py`
has the same contract over ZeRO.
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
"""A role's state as the files of its folder, in host memory, by relative path."""
Shapes = Mapping[str, tuple[int, ...]]
REMEDY = "resume with the config that wrote it"


@dataclass(frozen=True)
class StepResult:
    """What one optimiser step did; `applied` is False when loss or gradient was not finite.

    `rescaled`: it only overflowed because the loss scale was too high, and that is lower now.
    """

    applied: bool
    grad_norm: float
    lr: float
    rescaled: bool = False


class TorchEngine:
    """A role in one process.

    `ema` > 0 keeps an exponential moving average of the trainable parameters; `dtype` is that
    of the network's arithmetic.
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
        """Accumulate the gradient of the mean over micro-batches."""
        (loss / self.accumulation * self.scale.value).backward()

    def step(self, *, skip: bool | Tensor = False) -> StepResult:
        """Clip, step and average; with `skip`, or a gradient that is not finite, only forget the
        gradient.

        The host waits for the device once, for whether to step.
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
        """Inside, the module holds the averaged weights, if there are any."""
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
        """Copies of the trainable tensors by parameter name, the average if there is one and it is
        asked for; `everywhere` is for engines of several ranks.
        """
        source = self.average if averaged and self.average else self.trainable
        return {name: tensor.detach().clone() for name, tensor in source.items()}

    def snapshot(self) -> Files:
        """Weights, average and optimiser state as they are now: what `load` reads."""
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
        """Restore the files of a `snapshot`, bit for bit; ValueError if it belongs to another
        model.
        """
        if self.average and not (folder / "average.safetensors").exists():
            raise ValueError(
                f"{folder} holds no average: resume with the ema it was written with, 0"
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
    """Read a checkpoint's file inside.

    Yields:
        Its path.

    Raises:
        ValueError: With the path, for whatever a library raises about what the file holds.
    """
    try:
        yield path
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # of pickle, zipfile, torch, json, safetensors: each of its own kind
        reason = (str(error).splitlines() or [""])[0][:80]
        raise ValueError(
            f"{path} cannot be loaded ({type(error).__name__}: {reason}): resume another checkpoint"
        ) from error


def shapes_of(tensors: Mapping[str, Tensor]) -> Shapes:
    """Return the shape of every tensor by name."""
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def check_shapes(given: Shapes, own: Shapes, where: str, remedy: str) -> None:
    """Check that tensors are those of a network.

    Args:
        given: Of the tensors.
        own: Of the network.
        where: What the tensors are from; begins the message.
        remedy: What to do; ends the message.

    Raises:
        ValueError: For the first name whose shape differs, or which one side lacks.
    """
    if given != own:
        name, shape = min(given.items() ^ own.items())
        raise ValueError(f"{where} {name} {shape} does not fit this model; {remedy}")
