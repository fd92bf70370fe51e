"""Copy GPU tensors to host memory, for checkpoints."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only


def to_host(state: Any) -> Any:
    """Copy the GPU tensors in nested state to pinned host memory.

    All copies are queued first, so the host waits only once per device.

    Args:
        state: Tensors and other values in nested lists, tuples and dicts.

    Returns:
        The state with copies of GPU tensors of the same shapes; CPU tensors are not copied.
    """
    devices = {x.device for x in tree_leaves(state) if isinstance(x, Tensor) and x.is_cuda}
    if not devices:
        return state
    copied = tree_map_only(Tensor, _queued, state)
    for device in devices:
        torch.cuda.synchronize(device)
    return copied


def _queued(x: Tensor) -> Tensor:
    if not x.is_cuda:
        return x
    pinned = torch.empty(x.shape, dtype=x.dtype, pin_memory=True)
    return pinned.copy_(x.detach(), non_blocking=True)
