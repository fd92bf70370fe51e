"""Parts of parameters that each rank stores under DeepSpeed ZeRO.

With ZeRO-3, a parameter that is not in use is an empty tensor. Its flattened values are padded to a
multiple of the number of ranks and split into equal parts, one per rank: `ds_tensor`. The functions
that gather are collective.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def full_shape(parameter: Any) -> tuple[int, ...]:
    """Return the full shape of a parameter, sharded or not.

    Args:
        parameter: A parameter, possibly sharded by ZeRO-3.

    Returns:
        Its full shape.
    """
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def own_part(parameter: Any) -> Tensor:
    """Return the part of a parameter that this rank stores.

    Args:
        parameter: A parameter, possibly sharded by ZeRO-3.

    Returns:
        A flat part, [P] with P = ceil(numel / ranks), with ZeRO-3; otherwise the whole parameter.
    """
    return getattr(parameter, "ds_tensor", parameter).detach()


def gather_everywhere(part: Tensor, parameter: Any) -> Tensor:
    """Gather a parameter on all ranks. Collective.

    Args:
        part: Result of `own_part`, or a tensor of the same layout.
        parameter: The parameter that `part` belongs to.

    Returns:
        The whole tensor on the CPU, [...] in the shape of `full_shape`.
    """
    if not hasattr(parameter, "ds_tensor"):
        return part.clone().cpu()
    part = _where_ranks_meet(part)
    flat = part.new_empty(part.numel() * dist.get_world_size())
    dist.all_gather_into_tensor(flat, part)
    return flat[: parameter.ds_numel].view(parameter.ds_shape).clone().cpu()


def _where_ranks_meet(part: Tensor) -> Tensor:
    """Move a part to the device of the backend, because NCCL cannot read host memory."""
    return part.contiguous().to("cuda" if dist.get_backend() == "nccl" else part.device)


def gather_on_rank0(part: Tensor, parameter: Any) -> Tensor | None:
    """Gather a parameter on rank 0. Collective.

    Args:
        part: Result of `own_part`, or a tensor of the same layout.
        parameter: The parameter that `part` belongs to.

    Returns:
        On rank 0 the whole tensor on the CPU, [...] in the shape of `full_shape`; None elsewhere.
    """
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
    """Copy this rank's part of a whole tensor into `part`.

    Args:
        part: Tensor to fill, in the layout of `own_part`.
        whole: Whole tensor, [...] in the shape of `full_shape`.
        parameter: The parameter that the tensors belong to.
    """
    if not hasattr(parameter, "ds_tensor"):
        part.copy_(whole)
        return
    flat = torch.zeros(part.numel() * dist.get_world_size(), dtype=whole.dtype)
    flat[: whole.numel()] = whole.flatten()
    part.copy_(flat[dist.get_rank() * part.numel() :][: part.numel()])
