"""Measure the bytes alive during a network call and its backward pass."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

from .gpu_dtypes import GpuAutocast

SWITCH = "enable_gradient_checkpointing"
"""Method of diffusers networks that enables gradient checkpointing."""


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """Bytes alive during one call and its backward pass.

    Inputs are included; parameters and their gradients are not. Each field grows linearly with the
    number of equal blocks.
    """

    kept: int
    """Bytes that the graph keeps between the forward and the backward pass."""
    before: int
    """Peak of the forward pass before the first block."""
    forward: int
    """Peak of the forward pass from the first block on."""
    backward: int
    """Peak of the backward pass until it reaches the first block."""
    end: int
    """Peak of the backward pass of the first block and after it, when all gradients exist."""

    @property
    def early(self) -> int:
        """Peak bytes before the backward pass of the first block."""
        return max(self.before, self.forward, self.backward)

    @property
    def peak(self) -> int:
        """Peak bytes of the whole call and its backward pass."""
        return max(self.early, self.end)

    def plus(self, count: int, few: Footprint, more: Footprint) -> Footprint:
        """Extrapolate this footprint to a network with more blocks.

        Args:
            count: Number of blocks to add.
            few: Footprint of a network with few blocks.
            more: Footprint of the same network with one more block.

        Returns:
            This footprint plus `count` times the difference between `more` and `few`.
        """
        return Footprint(
            **{
                field.name: getattr(self, field.name)
                + count * (getattr(more, field.name) - getattr(few, field.name))
                for field in fields(self)
            }
        )


class Live(TorchDispatchMode):
    """Track the bytes of storages that operations created and that are still referenced.

    Records the peak of the whole program and of each of its parts.

    Args:
        known: Tensors that existed before. They are not counted.
    """

    def __init__(self, known: Iterable[Tensor] = ()):
        super().__init__()
        self.known = {_storage(x) for x in known}
        self.seen: set[int] = set()
        self.now, self.part, self.peaks = 0, "", {"": 0}

    @property
    def peak(self) -> int:
        """Peak bytes over all parts."""
        return max(self.peaks.values())

    def begin(self, part: str) -> None:
        """Start another part of the program. Its peak is recorded separately.

        Args:
            part: Name of the part.
        """
        self.part = part
        self._note_peak()

    def _note_peak(self) -> None:
        self.peaks[self.part] = max(self.peaks.get(self.part, 0), self.now)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            if isinstance(x, Tensor):
                self._note(x)
        return out

    def _note(self, tensor: Tensor) -> None:
        key = _storage(tensor)
        if key in self.known or key in self.seen:
            return
        storage = tensor.untyped_storage()
        self.seen.add(key)
        self.now += storage.nbytes()
        self._note_peak()
        weakref.finalize(storage, self._gone, key, storage.nbytes())

    def _gone(self, key: int, size: int) -> None:
        self.seen.discard(key)
        self.now -= size


def measure_footprint(
    network: nn.Module,
    blocks: list[nn.Module],
    call: Callable[[], Tensor],
    *,
    backward: AbstractContextManager[Any] | None = None,
) -> Footprint:
    """Measure a call and its backward pass. Gradients of parameters are freed as soon as they
    arrive.

    Args:
        network: Network of fake tensors.
        blocks: Modules that gradient checkpointing recomputes.
        call: Calls the network once and returns its output.
        backward: Context to enter for the backward pass.

    Returns:
        Bytes alive in each part.
    """
    dropped = [
        parameter.register_post_accumulate_grad_hook(_drop_gradient)
        for parameter in network.parameters()
        if parameter.requires_grad
    ]
    live = Live((*network.parameters(), *network.buffers()))
    with live, _parts(live, blocks):
        live.begin("before")
        out = call()
        kept = live.now
        live.begin("backward")
        with backward or nullcontext():
            out.sum().backward()
    for handle in dropped:
        handle.remove()
    return Footprint(
        kept=kept,
        **{part: live.peaks.get(part, 0) for part in ("before", "forward", "backward", "end")},
    )


@contextmanager
def _parts(live: Live, blocks: list[nn.Module]) -> Iterator[None]:
    """Tell `live` where the first block's forward pass and its backward pass begin."""
    first: list[nn.Module] = []

    def enter(block: nn.Module, args: Any, kwargs: Any) -> None:
        if not first:
            first.append(block)
            live.begin("forward")

    def leave(block: nn.Module, args: Any, out: Any) -> None:
        if first == [block] and live.part == "forward":  # not when the block is recomputed
            for x in tree_leaves(out):
                if isinstance(x, Tensor) and x.requires_grad:
                    x.register_hook(partial(_begin_end, live))

    handles = [
        handle
        for block in blocks
        for handle in (
            block.register_forward_pre_hook(enter, with_kwargs=True),
            block.register_forward_hook(leave),
        )
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _begin_end(live: Live, gradient: Tensor) -> None:
    live.begin("end")


def _drop_gradient(parameter: Tensor) -> None:
    parameter.grad = None


def _checkpoint(block: nn.Module, *args: Any) -> Any:
    """Call a block under gradient checkpointing. The recomputation runs in a backward pass, which
    leaves function modes, so GPU autocast rules are entered again.
    """
    return checkpoint(
        block.__call__,
        *args,
        use_reentrant=False,
        context_fn=lambda: (nullcontext(), GpuAutocast()),
    )


@contextmanager
def checkpointed(network: nn.Module) -> Iterator[None]:
    """Enable gradient checkpointing within this context.

    Args:
        network: Network whose diffusers models are switched.
    """
    models: list[Any] = [m for m in network.modules() if hasattr(m, SWITCH)]
    for model in models:
        model.enable_gradient_checkpointing(_checkpoint)
    try:
        yield
    finally:
        for model in models:
            model.disable_gradient_checkpointing()


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
