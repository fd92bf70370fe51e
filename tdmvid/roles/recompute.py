"""Gradient checkpointing that recomputes a block except for its attention.

On long sequences attention is most of a block's work but little of its memory: one output as large
as the block's input.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint


def is_attention(operation: object) -> bool:
    """Return whether a PyTorch operation is one of its fused attention kernels (forward)."""
    return "scaled_dot_product" in str(operation) and "backward" not in str(operation)


class _Keep(TorchDispatchMode):
    """Record the outputs of attention operations, as tuples."""

    def __init__(self, kept: list[Any]):
        super().__init__()
        self.kept = kept

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if is_attention(func):
            self.kept.append(
                tuple(x.detach() if isinstance(x, Tensor) else x for x in out)
            )  # the autograd graph is recorded at a higher level
        return out


class _Reuse(TorchDispatchMode):
    """Return recorded outputs instead of computing attention, and release them.

    Other operations are computed, however many there are. DeepSpeed gathers weights here that were
    still available in the forward pass; PyTorch's own contexts
    (`create_selective_checkpoint_contexts`) treat that as an error.
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
    """Call a block so that only its inputs and attention outputs are kept for the backward pass.

    Passed to diffusers' `enable_gradient_checkpointing`.

    Args:
        block: The block to call.
        args: Its arguments.

    Returns:
        The block's output.
    """
    return checkpoint(block.__call__, *args, use_reentrant=False, context_fn=_contexts)
