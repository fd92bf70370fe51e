"""Autocast's rules of a GPU for tensors on a CPU, where autocast leaves more in half precision."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as nnf
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

FLOAT32 = frozenset(
    {
        nnf.layer_norm,
        nnf.rms_norm,
        nnf.group_norm,
        nnf.softmax,
        nnf.log_softmax,
        nnf.softplus,
        nnf.mse_loss,
        torch.layer_norm,
        torch.rms_norm,
        torch.group_norm,
        torch.softmax,
        torch.log_softmax,
        torch.exp,
        torch.log,
        torch.pow,
        torch.rsqrt,
        torch.reciprocal,
        torch.sum,
        torch.cumsum,
        torch.prod,
        torch.norm,
        torch.linalg.vector_norm,
        torch.ops.aten.upsample_nearest2d.default,
        torch._C._nn.upsample_nearest1d,
        torch._C._nn.upsample_nearest2d,
        torch._C._nn.upsample_nearest3d,
        Tensor.softmax,
        Tensor.exp,
        Tensor.log,
        Tensor.pow,
        Tensor.__pow__,
        Tensor.rsqrt,
        Tensor.reciprocal,
        Tensor.sum,
        Tensor.cumsum,
        Tensor.prod,
        Tensor.norm,
    }
)
"""Of PyTorch's list "CUDA Ops that can autocast to float32", what networks call."""


class GpuAutocast(TorchFunctionMode):
    """Inside, what autocast of a GPU computes in float32 gets float32, where autocast is on."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in FLOAT32 and torch.is_autocast_enabled("cpu"):
            args, kwargs = tree_map_only(Tensor, _widen, (args, kwargs))
            with torch.autocast("cpu", enabled=False):
                return func(*args, **kwargs)
        return func(*args, **kwargs)


def _widen(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
