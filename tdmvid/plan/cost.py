"""Trace the cost of one network call from the teacher's config alone.

The real network runs forward and backward on fake tensors, which have shapes but no data. Nothing
is allocated or computed, and every operation of a model family's blocks is counted, LoRA included.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import (
    flop_registry,
    sdpa_backward_flop_count,
    sdpa_flop_count,
    shape_wrapper,
)

from ..parallel.arithmetic import autocast
from ..parallel.sequence import PlannedGroup
from ..roles.recompute import is_attention
from .footprint import Footprint, Live, checkpointed, measure_footprint
from .gpu_dtypes import GpuAutocast

aten = torch.ops.aten
FEW = 2
"""Number of blocks to trace from a run of equal blocks. The first and the last may differ at their
ends, so two are needed; one is enough if a single different block precedes the run.
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
"""FLOP counts of the CPU attention kernels, which PyTorch's own table lacks."""
FLOPS = flop_registry | {func: shape_wrapper(count) for func, count in ATTENTION_ON_A_CPU.items()}
"""FLOP counts of matrix products and attention, by operation."""
NO_KERNEL = {
    getattr(aten, name)
    for name in (
        *("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"),
        *("_unsafe_view", "_local_scalar_dense", "lift_fresh", "set_", "resize_"),
    )
}
"""Operations, in addition to views, that launch no kernel on a GPU."""
FOOTPRINTS = ("plain", "checkpointed")
"""Fields of a trace that are footprints, not plain numbers."""


@dataclass(frozen=True, kw_only=True)
class Trace:
    """Cost of one network call on one rank."""

    forward_flops: float
    backward_flops: float
    """Without the forward pass that gradient checkpointing recomputes."""
    plain: Footprint
    """Bytes alive if every block keeps its activations."""
    checkpointed: Footprint
    """Bytes alive if every block keeps only its inputs and is recomputed."""
    ungraded: int
    """Peak bytes alive in a call without gradients."""
    attention_flops: float
    """FLOPs of attention in the forward pass. Keeping its outputs avoids recomputing them."""
    attention_bytes: int
    """Bytes of the outputs of attention in the forward pass."""
    exchanged: int = 0
    """Bytes that the rank sends during the forward pass to the other ranks of its sequence-parallel
    group.
    """
    forward_moved: int = 0
    """Bytes that all kernels except matrix products and attention read and write."""
    backward_moved: int = 0
    forward_kernels: int = 0
    backward_kernels: int = 0

    def plus(self, count: int, few: Trace, more: Trace) -> Trace:
        """Extrapolate this cost to a network with more blocks.

        Args:
            count: Number of blocks to add.
            few: Cost of a network with few blocks.
            more: Cost of the same network with one more block.

        Returns:
            This cost plus `count` times the difference between `more` and `few`.
        """
        numbers = {
            field.name: getattr(self, field.name)
            + count * (getattr(more, field.name) - getattr(few, field.name))
            for field in fields(self)
            if field.name not in FOOTPRINTS
        }
        footprints = {
            name: getattr(self, name).plus(count, getattr(few, name), getattr(more, name))
            for name in FOOTPRINTS
        }
        return Trace(**numbers, **footprints)

    def footprint(self, checkpointing: bool) -> Footprint:
        """Return the bytes alive in a call, with or without gradient checkpointing.

        Args:
            checkpointing: Whether blocks are recomputed in the backward pass.

        Returns:
            `checkpointed` or `plain`.
        """
        return self.checkpointed if checkpointing else self.plain


class Kernels(TorchDispatchMode):
    """Count the kernels that run while this mode is active.

    Attributes:
        flops: FLOPs of matrix products and attention.
        attention_flops: FLOPs of attention alone.
        attention_bytes: Bytes of the outputs of attention.
        moved: Bytes that all other kernels read and write.
        count: Number of kernels.
    """

    def __init__(self):
        super().__init__()
        self.flops, self.attention_flops = 0, 0
        self.attention_bytes, self.moved, self.count = 0, 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        kind = func.overloadpacket
        if func.is_view or func.namespace != "aten" or kind in NO_KERNEL:
            return out
        self.count += 1
        flops = FLOPS[kind](*args, **kwargs, out_val=out) if kind in FLOPS else 0
        self.flops += flops
        if is_attention(func):
            self.attention_flops += flops
            self.attention_bytes += sum(map(_tensor_bytes, out))
        elif kind not in FLOPS and "scaled_dot_product" not in str(func):
            read = {name: value for name, value in kwargs.items() if name != "out"}
            self.moved += sum(map(_tensor_bytes, tree_leaves((args, read, out))))
        return out


def _tensor_bytes(x: Any) -> int:
    """Return the bytes of a tensor (of its storage, if the tensor is expanded), or 0 for any other
    value.
    """
    if not isinstance(x, Tensor):
        return 0
    size = x.numel() * x.element_size()
    return size if x.is_contiguous() else min(size, x.untyped_storage().nbytes())


def trace(
    network: nn.Module,
    blocks: list[nn.Module],
    example: Callable[[], dict[str, Any]],
    *,
    dtype: torch.dtype,
    group: PlannedGroup | None = None,
) -> Trace:
    """Trace one call of a network.

    Only a few blocks of a long run of equal blocks are traced. Each of the others costs as much as
    one additional traced block.

    Args:
        network: Network on the meta device. It is modified.
        blocks: Modules that gradient checkpointing recomputes.
        example: Returns the keyword arguments of a call.
        dtype: Dtype of the computation.
        group: Ranks that share the tokens of a sample, if sequence parallelism is used.

    Returns:
        Cost of one call on one rank.
    """
    stacks = [_Stack(each, blocks) for each in network.modules() if isinstance(each, nn.ModuleList)]
    counts = sorted({left for stack in stacks for left in stack.left_out if left})

    def call(longer: int = 0) -> Trace:
        for stack in stacks:
            stack.shorten(longer)
        materialise(network)  # only the blocks that are called
        there = set(network.modules())
        kept = [block for block in blocks if block in there]
        return _trace_call(network, kept, example, dtype=dtype, group=group)

    with FakeTensorMode():
        few = total = call()
        for count in counts:
            total = total.plus(count, few, call(count))
    return total


class _Stack:
    """Split a list of blocks into runs of equal blocks."""

    def __init__(self, stack: nn.ModuleList, blocks: list[nn.Module]):
        self.stack = stack
        equal = groupby(stack, key=_signature) if set(stack) <= set(blocks) else ()
        self.runs = [list(run) for _, run in equal]
        behind_first = len(self.runs) == 2 and len(self.runs[0]) == 1
        few = FEW - 1 if behind_first else FEW
        self.left_out = [len(run) - few if len(run) > few + 1 else 0 for run in self.runs]
        """Number of blocks of each run that are not traced."""

    def shorten(self, longer: int) -> None:
        """Keep few blocks of each long run, always including the last. Runs that omit `longer`
        blocks keep one more.
        """
        if not any(self.left_out):
            return
        del self.stack[:]
        for run, left in zip(self.runs, self.left_out, strict=True):
            count = len(run) - left + (left == longer and left > 0)
            self.stack.extend([*run[: count - 1], run[-1]] if left else run)


def _signature(block: nn.Module) -> list[tuple[object, ...]]:
    """Return what equal blocks have in common: modules, parameters, and the number of hooks."""
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
    """Trace one call of a network of fake tensors without shortening it."""
    called, returned = Kernels(), Kernels()
    sent = [group.sent] if group else [0]

    def call() -> Tensor:
        with autocast(network, dtype):
            out = network(**example(), return_dict=False)[0]
        return torch.cat(out) if isinstance(out, list) else out

    def first_call() -> Tensor:
        with called:
            out = call()
        sent.append(group.sent if group else 0)
        return out

    with GpuAutocast():
        plain = measure_footprint(network, blocks, first_call, backward=returned)
        with checkpointed(network):
            again = measure_footprint(network, blocks, call)
        with torch.no_grad(), Live((*network.parameters(), *network.buffers())) as live:
            call()
    return Trace(
        forward_flops=called.flops,
        backward_flops=returned.flops,
        plain=plain,
        checkpointed=again,
        ungraded=live.peak,
        attention_flops=called.attention_flops,
        attention_bytes=called.attention_bytes,
        exchanged=sent[-1] - sent[0],
        forward_moved=called.moved,
        backward_moved=returned.moved,
        forward_kernels=called.count,
        backward_kernels=returned.count,
    )


def decoding_bytes(vae: Any, shape: tuple[int, ...]) -> int:
    """Return the peak bytes of tensors while an autoencoder decodes one sample, without its
    weights.

    Args:
        vae: Autoencoder on the meta device. It is modified.
        shape: Shape of the latents, [1, C, F, H, W] or [1, C, H, W].

    Returns:
        Peak number of bytes.
    """
    with FakeTensorMode():
        materialise(vae)
        latents = torch.empty(shape, dtype=next(vae.parameters()).dtype)
        with torch.no_grad(), Live((*vae.parameters(), *vae.buffers())) as live:
            vae.decode(latents)
    return live.peak


def decoding_flops(vae: Any, shape: tuple[int, ...]) -> float:
    """Return the FLOPs of an autoencoder's matrix products and convolutions for one sample.

    Args:
        vae: Autoencoder on the meta device. It is modified.
        shape: Shape of the latents, [1, C, F, H, W] or [1, C, H, W].

    Returns:
        FLOPs.
    """
    with FakeTensorMode():
        materialise(vae)
        latents = torch.empty(shape, dtype=next(vae.parameters()).dtype)
        with torch.no_grad(), Kernels() as counted:
            vae.decode(latents)
    return float(counted.flops)


def materialise(network: nn.Module) -> None:
    """Replace meta tensors by fake CPU tensors in place.

    CPU kernels are chosen as on a real device, so the tensors that they keep are realistic.

    Args:
        network: Network whose meta parameters, buffers and other tensors are replaced.
    """
    for module in network.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None and parameter.is_meta:
                fake = torch.empty(parameter.shape, dtype=parameter.dtype)
                module._parameters[name] = nn.Parameter(fake, requires_grad=parameter.requires_grad)
        for name, buffer in list(module._buffers.items()):
            if buffer is not None and buffer.is_meta:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)
        for name, table in list(vars(module).items()):  # of positions, which is no buffer
            if isinstance(table, Tensor) and table.is_meta:
                setattr(module, name, torch.empty(table.shape, dtype=table.dtype))
