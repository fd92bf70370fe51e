"""CUDA's rules for tensors on a CPU: its autocast, which returns float32 from more operations, and
its RMS norm, which is a single kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as nnf
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

aten = torch.ops.aten
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
RMS_NORM = (nnf.rms_norm, torch.rms_norm)


class GpuAutocast(TorchFunctionMode):
    """Applies CUDA's rules while active.

    Where autocast is on, operations that CUDA's autocast computes in float32 get float32 inputs. An
    RMS norm of fake tensors is one operation forward and one backward.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in FLOAT32 and torch.is_autocast_enabled("cpu"):
            args, kwargs = tree_map_only(Tensor, _widen, (args, kwargs))
            with torch.autocast("cpu", enabled=False):
                return _call(func, args, kwargs)
        return _call(func, args, kwargs)


def _call(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return _rms_norm(*args, **kwargs) if func in RMS_NORM else func(*args, **kwargs)


def _rms_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
) -> Tensor:
    """Compute `torch.rms_norm` with the operations of a CUDA build of PyTorch 2.9 or later.

    A CUDA build calls `_fused_rms_norm` and `_fused_rms_norm_backward`. Each is one kernel that
    reads and writes the input's dtype and computes in float32. A CPU build splits the norm into
    about ten operations. If weight and input differ in dtype, a CUDA build splits it, too.
    """
    equal = weight is None or weight.dtype == input.dtype
    if not (equal and isinstance(input, FakeTensor)):
        return torch.rms_norm(input, normalized_shape, weight, eps)
    out: Tensor = _FusedRmsNorm.apply(input, list(normalized_shape), weight, eps)
    return out


class _FusedRmsNorm(torch.autograd.Function):
    """One operation each way; called below autograd, dispatch modes see it before it is split."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, shape: list[int], weight: Tensor | None, eps: float | None
    ) -> Tensor:
        with torch._C._AutoDispatchBelowAutograd():
            out, rstd = aten._fused_rms_norm(x, shape, weight, eps)
        ctx.save_for_backward(x, weight, rstd)
        ctx.shape = shape
        return cast(Tensor, out)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, rstd = ctx.saved_tensors
        needed = [ctx.needs_input_grad[0], ctx.needs_input_grad[2]]
        with torch._C._AutoDispatchBelowAutograd():
            to_x, to_weight = aten._fused_rms_norm_backward(
                gradient.contiguous(), x, ctx.shape, rstd, weight, needed
            )
        return to_x, None, to_weight, None


def _widen(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
