"""Count the bytes that are alive in a call of a network and in its backward pass."""

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
"""Method of a network of diffusers."""


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """Bytes alive in one call and its backward pass, its inputs included, without parameters and
    their gradients: what the graph keeps, and the most at once in each part.

    Each part grows by as much with each more of equal blocks.
    """

    kept: int
    """Between the two passes."""
    before: int
    """Of the forward, ahead of the first block."""
    forward: int
    backward: int
    """Up to the first block."""
    end: int
    """In the backward of the first block and behind it, when all gradients are there."""

    @property
    def early(self) -> int:
        """Most bytes alive until the first block's backward."""
        return max(self.before, self.forward, self.backward)

    @property
    def peak(self) -> int:
        return max(self.early, self.end)

    def plus(self, count: int, few: Footprint, more: Footprint) -> Footprint:
        """Return this and `count` times what `more` has beyond `few`."""
        return Footprint(
            **{
                field.name: getattr(self, field.name)
                + count * (getattr(more, field.name) - getattr(few, field.name))
                for field in fields(self)
            }
        )


class Live(TorchDispatchMode):
    """Bytes of the storages that operations made and nobody has let go of yet, and the most of them
    at once, of all and of each part of a program.

    Args:
        known: Tensors that were there before, which do not count.
    """

    def __init__(self, known: Iterable[Tensor] = ()):
        super().__init__()
        self.known = {_storage(x) for x in known}
        self.seen: set[int] = set()
        self.now, self.part, self.peaks = 0, "", {"": 0}

    @property
    def peak(self) -> int:
        return max(self.peaks.values())

    def begin(self, part: str) -> None:
        """Count towards another part of the program from here on."""
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
    """Measure a call with its backward pass; gradients of parameters are dropped as they come.

    Args:
        network: Of fake tensors.
        blocks: What gradient checkpointing computes again.
        call: Calls the network once.
        backward: What to enter for the backward pass.
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
    """Tell `live` where the first block of a call begins, and where its backward pass does."""
    first: list[nn.Module] = []

    def enter(block: nn.Module, args: Any, kwargs: Any) -> None:
        if not first:
            first.append(block)
            live.begin("forward")

    def leave(block: nn.Module, args: Any, out: Any) -> None:
        if first == [block] and live.part == "forward":  # not when it is computed again
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
    """Call a block that is computed again under the rules of a GPU; a backward pass leaves modes of
    functions.
    """
    return checkpoint(
        block.__call__,
        *args,
        use_reentrant=False,
        context_fn=lambda: (nullcontext(), GpuAutocast()),
    )


@contextmanager
def checkpointed(network: nn.Module) -> Iterator[None]:
    """Inside, backward passes compute blocks again."""
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
