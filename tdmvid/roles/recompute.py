"""Gradient checkpointing that computes a block again except for its attention.

On a long sequence attention is most of a block's work and little of its memory: one output as
large as the block's input.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint


def is_attention(operation: object) -> bool:
    """Return whether an operation of PyTorch is one of its fused attention kernels."""
    return "scaled_dot_product" in str(operation) and "backward" not in str(operation)


class _Keep(TorchDispatchMode):
    """Keep what attention returns: a list of tuples."""

    def __init__(self, kept: list[Any]):
        super().__init__()
        self.kept = kept

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if is_attention(func):
            self.kept.append(
                tuple(x.detach() if isinstance(x, Tensor) else x for x in out)
            )  # without the graph that it gets above
        return out


class _Reuse(TorchDispatchMode):
    """Return what was kept instead of computing attention, and drop it.

    All else is computed, in whatever number: DeepSpeed gathers weights here that it still had in
    the forward pass, which PyTorch's own contexts (`create_selective_checkpoint_contexts`) take for
    an error.
    """

    def __init__(self, kept: list[Any]):
        super().__init__()
        self.kept, self.next = kept, 0

    def __enter__(self):
        self.next = 0
        return super().__enter__()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if not is_attention(func):
            return func(*args, **(kwargs or {}))
        out, self.kept[self.next] = self.kept[self.next], None
        self.next += 1
        return func(*args, **(kwargs or {})) if out is None else out


def _contexts() -> tuple[_Keep, _Reuse]:
    kept: list[Any] = []
    return _Keep(kept), _Reuse(kept)


def keep_attention(block: nn.Module, *args) -> Tensor | tuple[Tensor, ...]:
    """Call a block so that its backward pass keeps its inputs and its attention's outputs.

    For diffusers' `enable_gradient_checkpointing`.
    """
    return checkpoint(block.__call__, *args, use_reentrant=False, context_fn=_contexts)
