"""Gradient checkpointing that computes a block again except for its attention.

On a long sequence attention is most of a block's work and little of its memory: one output as
large as the block's input.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts


def is_attention(operation) -> bool:
    """Whether an operation of PyTorch is one of its fused attention kernels, of any device."""
    return "scaled_dot_product" in str(operation) and "backward" not in str(operation)


def _policy(_context, operation, *args, **kwargs) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if is_attention(operation) else CheckpointPolicy.PREFER_RECOMPUTE


def keep_attention(block: nn.Module, *args) -> Tensor | tuple[Tensor, ...]:
    """Call a block so that its backward pass has its inputs and its attention's outputs; for diffusers' `enable_gradient_checkpointing`."""
    contexts = partial(create_selective_checkpoint_contexts, _policy)
    return checkpoint(block.__call__, *args, use_reentrant=False, context_fn=contexts)
