"""What a rank keeps of a parameter under DeepSpeed's ZeRO, and how the ranks' parts go together.

With ZeRO-3 a parameter is an empty tensor while nobody uses it. Its flattened values, padded to a
multiple of the ranks, are cut into equal parts, one a rank: `ds_tensor`. The functions that gather
are collective.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def full_shape(parameter: Any) -> tuple[int, ...]:
    """Return the shape of a parameter while it is whole."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def own_part(parameter: Any) -> Tensor:
    """Return what this rank keeps of a parameter: a flat part with ZeRO-3, else all of it."""
    return getattr(parameter, "ds_tensor", parameter).detach()


def gather_everywhere(part: Tensor, parameter: Any) -> Tensor:
    """Put the ranks' parts together, on every rank's CPU."""
    if not hasattr(parameter, "ds_tensor"):
        return part.clone().cpu()
    part = _where_ranks_meet(part)
    flat = part.new_empty(part.numel() * dist.get_world_size())
    dist.all_gather_into_tensor(flat, part)
    return flat[: parameter.ds_numel].view(parameter.ds_shape).clone().cpu()


def _where_ranks_meet(part: Tensor) -> Tensor:
    """On the device of the ranks' backend: NCCL does not read host memory."""
    return part.contiguous().to("cuda" if dist.get_backend() == "nccl" else part.device)


def gather_on_rank0(part: Tensor, parameter: Any) -> Tensor | None:
    """Put the ranks' parts together on rank 0's CPU; return None elsewhere."""
    first = dist.get_rank() == 0
    if not hasattr(parameter, "ds_tensor"):
        return part.clone().cpu() if first else None
    part = _where_ranks_meet(part)
    parts = [torch.empty_like(part) for _ in range(dist.get_world_size())] if first else None
    dist.gather(part, parts)
    if parts is None:
        return None
    return torch.cat(parts)[: parameter.ds_numel].view(parameter.ds_shape).cpu()


def assign_own_part(part: Tensor, whole: Tensor, parameter: Any) -> None:
    """Copy this rank's part of a whole tensor into `part`."""
    if not hasattr(parameter, "ds_tensor"):
        part.copy_(whole)
        return
    flat = torch.zeros(part.numel() * dist.get_world_size(), dtype=whole.dtype)
    flat[: whole.numel()] = whole.flatten()
    part.copy_(flat[dist.get_rank() * part.numel() :][: part.numel()])
