"""Count what one call of a network costs, from its config alone: nothing is allocated and nothing
computed.

The real network runs forward and backward on tensors that have shapes only, so whatever a
family's blocks do is counted as it is, LoRA included.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import (
    FlopCounterMode,
    flop_registry,
    sdpa_backward_flop_count,
    sdpa_flop_count,
)

from ..parallel.arithmetic import autocast
from ..parallel.sequence import PlannedGroup
from ..roles.recompute import is_attention
from .gpu_dtypes import GpuAutocast

aten = torch.ops.aten
FEW = 2
"""Blocks of a run of equal ones that are traced: the first and the last may differ at their ends.
"""


def _attention_flops(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query, key, value)


def _attention_backward_flops(
    grad: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any
) -> int:
    return sdpa_backward_flop_count(grad, query, key, value)


ATTENTION_ON_A_CPU = {
    aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward_flops,
}
"""Operations that the library's counter leaves out."""
NO_KERNEL = {
    getattr(aten, name)
    for name in (
        *("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"),
        *("_unsafe_view", "_local_scalar_dense", "lift_fresh", "set_", "resize_"),
    )
}
"""Operations, beside views, that start no kernel on a device."""


@dataclass(frozen=True, kw_only=True)
class Trace:
    """Cost of one call on one rank."""

    forward_flops: float
    backward_flops: float
    """Without recomputation."""
    saved: int
    """Bytes of activations kept for the backward pass."""
    saved_inputs: int
    """The same when every block keeps only its inputs."""
    saved_block: int
    """What the largest block keeps inside, once more while it is recomputed."""
    attention_flops: float
    attention_bytes: int
    """The forward's attention, and its outputs: what need not be computed again if they are kept.
    """
    exchanged: int = 0
    """Bytes that the rank sends in the forward to those that share its sample."""
    forward_moved: int = 0
    """Bytes that all kernels but matrix products and attention read and write."""
    backward_moved: int = 0
    forward_kernels: int = 0
    backward_kernels: int = 0

    def plus(self, count: int, few: Trace, more: Trace) -> Trace:
        """Return this cost and `count` times what `more` costs beyond `few`."""
        summed = {
            field.name: getattr(self, field.name)
            + count * (getattr(more, field.name) - getattr(few, field.name))
            for field in fields(self)
        }
        return Trace(**summed | {"saved_block": max(self.saved_block, more.saved_block)})

    @property
    def saved_checkpointed(self) -> int:
        """Bytes that one call keeps when every block keeps only its inputs, at most."""
        return self.saved_inputs + self.saved_block


class _Kernels(TorchDispatchMode):
    """Bytes that attention returns, bytes that all but matrix products move, and kernels."""

    def __init__(self):
        super().__init__()
        self.attention, self.moved, self.count = 0, 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func.is_view or func.namespace != "aten" or func.overloadpacket in NO_KERNEL:
            return out
        self.count += 1
        if is_attention(func):
            self.attention += sum(map(_tensor_bytes, out))
        elif not _is_matrix_product(func):
            self.moved += sum(map(_tensor_bytes, tree_leaves((args, kwargs, out))))
        return out


def _is_matrix_product(func: Any) -> bool:
    return func.overloadpacket in flop_registry or "scaled_dot_product" in str(func)


def _tensor_bytes(x: Any) -> int:
    """Bytes of a tensor, those of its storage if it is expanded; 0 of anything else."""
    if not isinstance(x, Tensor):
        return 0
    return min(x.numel() * x.element_size(), x.untyped_storage().nbytes())


class _Saved:
    """Bytes that autograd keeps, per block; every storage counts once, parameters not at all."""

    def __init__(self, network: nn.Module, blocks: list[nn.Module]):
        self.seen = {_storage(p) for p in (*network.parameters(), *network.buffers())}
        self.inside, self.inputs, self.outside = [0] * len(blocks), 0, 0
        self.current: int | None = None
        self.hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, _unchanged)
        self.handles = [
            handle
            for index, block in enumerate(blocks)
            for handle in (
                block.register_forward_pre_hook(partial(self._enter, index), with_kwargs=True),
                block.register_forward_hook(self._leave),
            )
        ]

    def __enter__(self) -> None:
        self.hooks.__enter__()

    def __exit__(self, *error: object) -> None:
        self.hooks.__exit__(*error)
        for handle in self.handles:
            handle.remove()

    def _enter(
        self, index: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        self.current = index
        for x in (*args, *kwargs.values()):
            if isinstance(x, Tensor) and x.dim() > 2:  # not the time embedding
                self.inputs += x.numel() * x.element_size()

    def _leave(self, module: nn.Module, args: tuple[Any, ...], out: Any) -> None:
        self.current = None

    def _pack(self, tensor: Tensor) -> Tensor:
        if _storage(tensor) not in self.seen:
            self.seen.add(_storage(tensor))
            size = tensor.untyped_storage().nbytes()
            if self.current is None:
                self.outside += size
            else:
                self.inside[self.current] += size
        return tensor


def trace(
    network: nn.Module,
    blocks: list[nn.Module],
    example: Callable[[], dict[str, Any]],
    *,
    dtype: torch.dtype,
    group: PlannedGroup | None = None,
) -> Trace:
    """Trace one call of a network.

    Of a long run of equal blocks a few are traced; all others cost what one more of them does.

    Args:
        network: on the meta device; it is changed.
        blocks: what gradient checkpointing recomputes.
        example: makes the keyword arguments of a call.
        dtype: of the arithmetic.
        group: the ranks that share the sample, if the network shares its tokens.
    """
    stacks = [_Stack(each, blocks) for each in network.modules() if isinstance(each, nn.ModuleList)]
    lengths = sorted({len(run) for stack in stacks for run in stack.runs if len(run) > FEW + 1})

    def call(longer: int = 0) -> Trace:
        for stack in stacks:
            stack.shorten(longer)
        there = set(network.modules())
        kept = [block for block in blocks if block in there]
        return _trace_call(network, kept, example, dtype=dtype, group=group)

    with FakeTensorMode():
        _materialise(network)
        few = total = call()
        for length in lengths:
            total = total.plus(length - FEW, few, call(length))
    return total


class _Stack:
    """A list of blocks, as its runs of equal ones."""

    def __init__(self, stack: nn.ModuleList, blocks: list[nn.Module]):
        self.stack = stack
        equal = groupby(stack, key=_signature) if set(stack) <= set(blocks) else ()
        self.runs = [list(run) for _, run in equal]

    def shorten(self, longer: int) -> None:
        """Leave few blocks of each long run, the last among them; one more of runs that have
        `longer` blocks.
        """
        if not any(len(run) > FEW + 1 for run in self.runs):
            return
        del self.stack[:]
        for run in self.runs:
            count = FEW + (len(run) == longer)
            long = len(run) > FEW + 1
            self.stack.extend([*run[: count - 1], run[-1]] if long else run)


def _signature(block: nn.Module) -> list[tuple[object, ...]]:
    """What equal blocks have in common: modules, parameters, and whether anything is hooked on."""
    return [
        (
            name,
            type(module),
            len(module._forward_hooks),
            len(module._forward_pre_hooks),
            [(p.shape, p.dtype, p.requires_grad) for p in module.parameters(recurse=False)],
        )
        for name, module in block.named_modules()
    ]


def _trace_call(
    network: nn.Module,
    blocks: list[nn.Module],
    example: Callable[[], dict[str, Any]],
    *,
    dtype: torch.dtype,
    group: PlannedGroup | None,
) -> Trace:
    """Trace one call of a network of fake tensors, as it is."""
    sent = group.sent if group else 0
    saved = _Saved(network, blocks)
    forward, backward = _counter(), _counter()
    called, returned = _Kernels(), _Kernels()
    with saved, forward, called, autocast(network, dtype), GpuAutocast():
        out = network(**example(), return_dict=False)[0]
    with backward, returned:
        out.sum().backward()
    network.zero_grad()
    counts = forward.get_flop_counts()["Global"]
    return Trace(
        forward_flops=forward.get_total_flops(),
        backward_flops=backward.get_total_flops(),
        saved=sum(saved.inside) + saved.outside,
        saved_inputs=saved.outside + saved.inputs,
        saved_block=max(saved.inside, default=0),
        attention_flops=sum(flops for name, flops in counts.items() if is_attention(name)),
        attention_bytes=called.attention,
        exchanged=group.sent - sent if group else 0,
        forward_moved=called.moved,
        backward_moved=returned.moved,
        forward_kernels=called.count,
        backward_kernels=returned.count,
    )


def decoding_bytes(vae: Any, shape: tuple[int, ...]) -> int:
    """Return the peak bytes of tensors while an autoencoder decodes, without its weights.

    Args:
        vae: on the meta device; it is changed.
        shape: of the latents.
    """
    with FakeTensorMode():
        _materialise(vae)
        latents = torch.empty(shape, dtype=next(vae.parameters()).dtype)
        with torch.no_grad(), _Live() as live:
            vae.decode(latents)
    return live.peak


class _Live(TorchDispatchMode):
    """Bytes of the storages that operations made and nobody has let go of yet, and the most of them
    at once.
    """

    def __init__(self):
        super().__init__()
        self.seen, self.now, self.peak = set(), 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            if isinstance(x, Tensor) and _storage(x) not in self.seen:
                storage = x.untyped_storage()
                self.seen.add(_storage(x))
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._gone, _storage(x), storage.nbytes())
        return out

    def _gone(self, key: int, size: int) -> None:
        self.seen.discard(key)
        self.now -= size


def _unchanged(tensor: Tensor) -> Tensor:
    return tensor


def _counter() -> FlopCounterMode:
    return FlopCounterMode(display=False, custom_mapping=ATTENTION_ON_A_CPU)


def _materialise(network: nn.Module) -> None:
    """Meta tensors become fake CPU ones: the kernels, and so what they keep, are a device's."""
    for module in network.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None:
                fake = torch.empty(parameter.shape, dtype=parameter.dtype)
                module._parameters[name] = nn.Parameter(fake, requires_grad=parameter.requires_grad)
        for name, buffer in list(module._buffers.items()):
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
