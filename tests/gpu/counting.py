"""Count what a GPU would do: kernels, bytes, live storages, attention, copies, waits, and what is
sent to other ranks.
"""

from __future__ import annotations

import math
import sys
import weakref
from collections import Counter as Tally
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as nnf
from collectives import collect
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten
ATTEND = nnf.scaled_dot_product_attention
MATRIX = ("mm", "addmm", "bmm", "baddbmm", "addmm_", "convolution", "convolution_backward")
NO_KERNEL = (
    "empty",
    "empty_like",
    "empty_strided",
    "new_empty",
    "new_empty_strided",
    "lift_fresh",
    "_unsafe_view",
    "_reshape_alias",
)
FLASH_WIDTH = 256
"""Channels of a head up to which FlashAttention works."""
FEW_VALUES = 64
"""Values up to which float64 is no fault: the times of samples are counted in it on purpose."""
SKIPPED = ("/torch/", "/tests/gpu/", "/contextlib.py", "<")


@dataclass
class Counts:
    """What one stretch of a program does on the device. Bytes are those that kernels read and
    write; every event has the line that caused it.
    """

    launches: int = 0
    matrix_bytes: int = 0
    """Of matrix products, convolutions and attention."""
    elementwise_bytes: int = 0
    by_operation: Tally[str] = field(default_factory=Tally)
    """Elementwise bytes."""
    by_line: Tally[str] = field(default_factory=Tally)
    """Elementwise bytes of the forward."""
    peak: int = 0
    """Most bytes of storages alive at once."""
    sent: Tally[str] = field(default_factory=Tally)
    """Bytes that this rank sends to others, by collective."""
    kernels: Tally[str] = field(default_factory=Tally)
    """Calls of attention, by kernel."""
    waits: Tally[str] = field(default_factory=Tally)
    """The host reads a value of the device."""
    copies: Tally[str] = field(default_factory=Tally)
    """Blocking copies between host and device."""
    unequal: Tally[str] = field(default_factory=Tally)
    """Attention whose query, key and value differ in dtype."""
    slow: Tally[str] = field(default_factory=Tally)
    """Attention that FlashAttention could do, by another kernel."""
    doubles: Tally[str] = field(default_factory=Tally)
    """Kernels in float64 of more than `FEW_VALUES`."""

    @property
    def bytes(self) -> int:
        return self.matrix_bytes + self.elementwise_bytes

    def as_dict(self) -> dict[str, Any]:
        """Return all counts for JSON (`asdict` would build a Counter of pairs)."""
        return {
            name: dict(value) if isinstance(value, Tally) else value
            for name, value in vars(self).items()
        }


class Counter(TorchDispatchMode):
    """Counts the kernels of the pretended device; enter it inside FakeTensorMode.

    A tensor without data has no values: the host reads 0 from the device, and `host_value` from its
    own tensors, among which is the step k where a rollout stops.
    """

    def __init__(self, *, host_value: int = 1, lines: bool = False):
        super().__init__()
        self.host_value, self.lines = host_value, lines
        self.counts = Counts()
        self.kernel = ""
        self.live = 0
        self.alive: dict[int, int] = {}
        self.stack = ExitStack()

    def __enter__(self):
        self.stack.enter_context(patch.object(nnf, ATTEND.__name__, self._attend))
        self.stack.enter_context(patch.object(FakeTensor, "tolist", self._tolist()))
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        self.stack.close()

    def _attend(
        self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **options
    ) -> Tensor:
        """Attention as it is called, before autocast makes dtypes equal."""
        if len({query.dtype, key.dtype, value.dtype}) > 1 and query.is_cuda:
            self.counts.unequal[f"{query.dtype}, {key.dtype}, {value.dtype} at {_line()}"] += 1
        self.kernel = "math"
        out = ATTEND(query, key, value, attn_mask, **options)
        if self.kernel == "math":
            self.counts.kernels["math"] += 1
        possible = attn_mask is None and query.shape[-1] <= FLASH_WIDTH
        if query.is_cuda and possible and self.kernel not in ("flash", "cudnn"):
            where = f"{self.kernel} in {out.dtype}, {tuple(query.shape)} at {_line()}"
            self.counts.slow[where] += 1
        return out

    def restart(self) -> Counts:
        """Count anew from here; return what was counted."""
        done, self.counts = self.counts, Counts(peak=self.live)
        return done

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is aten._local_scalar_dense.default:
            if not isinstance(args[0], FakeTensor) or args[0].constant is not None:
                return func(*args, **kwargs)
            return self._read(args[0])
        if func.namespace == "c10d":
            return collect(func, args, self.counts.sent)
        out = func(*args, **kwargs)
        read = {name: value for name, value in kwargs.items() if name != "out"}
        inputs = [x for x in tree_leaves((args, read)) if isinstance(x, Tensor)]
        outputs = [x for x in tree_leaves(out) if isinstance(x, Tensor)]
        self._note_copy(func, inputs, outputs, args, kwargs)
        if any(x.device.type == "cuda" for x in outputs):
            self._note_kernel(func, inputs, outputs)
            for x in outputs:
                self._note_storage(x)
        return out

    def _read(self, tensor: Tensor) -> int | float | bool:
        """What `item` reads."""
        if tensor.device.type == "cuda":
            self.counts.waits[_line()] += 1
            return _number(0, tensor.dtype)
        return _number(self.host_value, tensor.dtype)

    def _tolist(self):
        def tolist(tensor: Tensor) -> Any:
            """One wait, however many values."""
            if tensor.device.type == "cuda":
                self.counts.waits[_line()] += 1
            value = 0 if tensor.device.type == "cuda" else self.host_value
            return _filled(tuple(tensor.shape), _number(value, tensor.dtype))

        return tolist

    def _note_kernel(self, func: Any, inputs: list[Tensor], outputs: list[Tensor]) -> None:
        name, counts = func._schema.name.split("::")[-1], self.counts
        if _is_view(func) or name in NO_KERNEL:
            return
        counts.launches += 1
        moved = sum(map(_touched, outputs)) + sum(map(_touched, _read_by(name, inputs, outputs)))
        attention = "scaled_dot_product" in name or "efficient_attention" in name
        if attention and "backward" not in name:
            self.kernel = next(k for k in ("flash", "efficient", "cudnn") if k in name)
            counts.kernels[self.kernel] += 1
        if attention or name in MATRIX:
            counts.matrix_bytes += moved
        else:
            counts.elementwise_bytes += moved
            dtypes = "+".join(sorted({str(x.dtype)[6:] for x in (*inputs, *outputs)}))
            counts.by_operation[f"{name} {dtypes}"] += moved
            if self.lines:
                counts.by_line[_line()] += moved
        double = (x for x in outputs if x.dtype in (torch.float64, torch.complex128))
        if any(x.numel() > FEW_VALUES for x in double):
            counts.doubles[f"{name} at {_line()}"] += 1

    def _note_copy(
        self,
        func: Any,
        inputs: list[Tensor],
        outputs: list[Tensor],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> None:
        """Copies between host and device that wait."""
        name = func._schema.name.split("::")[-1]
        devices = {x.device.type for x in (*inputs, *outputs)}
        if not {"cuda", "cpu"} <= devices or not outputs[0].numel():
            return
        blocking = not kwargs.get("non_blocking", len(args) > 2 and args[2])
        if name in ("_to_copy", "copy_") and blocking:
            source, target = inputs[-1].device.type, outputs[0].device.type
            self.counts.copies[f"{source} to {target}, {inputs[-1].numel()} at {_line()}"] += 1
        elif name in ("index", "index_put_", "index_put"):
            self.counts.copies[f"index of the host at {_line()}"] += 1

    def _note_storage(self, tensor: Tensor) -> None:
        if tensor.device.type != "cuda":
            return
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self.alive:
            return
        self.alive[key] = storage.nbytes()
        self.live += storage.nbytes()
        self.counts.peak = max(self.counts.peak, self.live)
        weakref.finalize(storage, self._gone, key)

    def _gone(self, key: int) -> None:
        self.live -= self.alive.pop(key)


def _is_view(func: Any) -> bool:
    """Whether an operation returns a part of its input and computes nothing."""
    returns = func._schema.returns
    return bool(returns) and all(r.alias_info and not r.alias_info.is_write for r in returns)


def _read_by(name: str, inputs: list[Tensor], outputs: list[Tensor]) -> list[Tensor]:
    """The inputs that a kernel reads whole."""
    if name == "copy_":
        return inputs[1:]
    if name in ("zero_", "fill_", "normal_", "uniform_"):
        return []
    if name in ("embedding", "index", "index_select", "gather"):
        return outputs
    return inputs


def _touched(tensor: Tensor) -> int:
    """Bytes of a tensor that a kernel moves: what is expanded is read once."""
    if tensor.device.type != "cuda":
        return 0
    count = math.prod(n for n, step in zip(tensor.shape, tensor.stride()) if step)
    return count * tensor.element_size()


def _number(value: int, dtype: torch.dtype) -> int | float | bool:
    if dtype == torch.bool:
        return bool(value)
    return float(value) if dtype.is_floating_point else value


def _filled(shape: tuple[int, ...], value: Any) -> Any:
    return [_filled(shape[1:], value) for _ in range(shape[0])] if shape else value


@cache
def _is_library(path: str) -> bool:
    return any(part in path for part in SKIPPED)


def _line() -> str:
    """The line of a model or of ours that is being run, "backward" in autograd's threads."""
    frame = sys._getframe(1)
    while frame is not None:
        if not _is_library(frame.f_code.co_filename):
            return f"{'/'.join(Path(frame.f_code.co_filename).parts[-2:])}:{frame.f_lineno}"
        frame = frame.f_back
    return "backward"


class _NoData(FakeTensorMode):
    """Tensors without data, some of them on a device that is never initialised."""

    avoid_device_init = True


def _apply(module: nn.Module, convert: Any, recurse: bool = True) -> nn.Module:
    """`Module._apply` that makes new parameters: PyTorch swaps fake ones, which fails if anything
    holds a weak reference.
    """
    for child in module.children() if recurse else ():
        _apply(child, convert)
    for name, parameter in module._parameters.items():
        if parameter is not None:
            with torch.no_grad():
                new = convert(parameter)
            if new is not parameter:
                module._parameters[name] = nn.Parameter(new, parameter.requires_grad)
    for name, buffer in module._buffers.items():
        if buffer is not None:
            module._buffers[name] = convert(buffer)
    return module


@contextmanager
def device(*, host_value: int = 1, lines: bool = False) -> Iterator[Counter]:
    """Inside, tensors have no data, and those on "cuda" are counted, by line of code if asked."""
    with (
        _NoData(allow_non_fake_inputs=True),
        Counter(host_value=host_value, lines=lines) as counter,
        patch.object(nn.Module, "_apply", _apply),
    ):
        yield counter
