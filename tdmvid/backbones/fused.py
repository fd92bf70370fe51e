"""Elementwise operations of a transformer with fewer passes over its activations.

Every function computes what diffusers' code computes, up to rounding. A kernel reads and writes the
activations' dtype and computes in float32 internally. Under torch.compile the plain expressions are
used and the compiler fuses them.

Shapes: B batch, L tokens, H heads, D channels of a head or of a token.
"""

from __future__ import annotations

import copy
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

Module = TypeVar("Module", bound=nn.Module)


def as_class(kind: type[Module], module: nn.Module) -> Module:
    """Return a module of class `kind` that shares parameters, children and settings of `module`."""
    made = kind.__new__(kind)
    made.__dict__ |= {
        name: copy.copy(value) if isinstance(value, dict) else value
        for name, value in module.__dict__.items()
    }
    return made


def modulate(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Return x (1 + scale) + shift.

    Args:
        x: [B, L, D].
        scale, shift: [B, 1, D], [1, 1, D] or [B, L, D], any floating-point dtype.

    Returns:
        [B, L, D] in the dtype of x.
    """
    if torch.compiler.is_compiling():
        return (x * (1 + scale) + shift).to(x.dtype)
    out: Tensor = _MultiplyAdd.apply(shift, x, 1 + scale, x.dtype)
    return out


def add_gated(x: Tensor, gate: Tensor, update: Tensor) -> Tensor:
    """Return x + gate * update.

    Args:
        x, update: [B, L, D].
        gate: [B, 1, D], [1, 1, D] or [B, L, D], any floating-point dtype.

    Returns:
        [B, L, D] in the dtype of x.
    """
    if torch.compiler.is_compiling():
        return (x + gate * update).to(x.dtype)
    out: Tensor = _MultiplyAdd.apply(x, update, gate, x.dtype)
    return out


class _MultiplyAdd(torch.autograd.Function):
    """base + x * factor in one pass, for any combination of dtypes."""

    @staticmethod
    def forward(ctx: Any, base: Tensor, x: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
        ctx.save_for_backward(x if ctx.needs_input_grad[2] else None, factor)
        ctx.base = base.shape, base.dtype
        out = torch.empty(x.shape, dtype=dtype, device=x.device)
        return torch.addcmul(base, x, factor, out=out)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, factor = ctx.saved_tensors
        to_base = to_x = to_factor = None
        if ctx.needs_input_grad[0]:
            to_base = gradient.sum_to_size(ctx.base[0]).to(ctx.base[1])
        if ctx.needs_input_grad[1]:
            to_x = torch.mul(gradient, factor, out=torch.empty_like(gradient))
        if ctx.needs_input_grad[2]:
            to_factor = (gradient * x).sum_to_size(factor.shape).to(factor.dtype)
        return to_base, to_x, to_factor, None


def rotate(x: Tensor, cos: Tensor, sin: Tensor, *, text: int = 0) -> Tensor:
    """Rotate each pair of neighbouring channels by its token's angle (RoPE, arXiv 2104.09864).

    Args:
        x: Queries or keys, [B, L, H, D].
        cos, sin: [L - text, D], each value repeated for its pair of channels, as in diffusers.
        text: Number of leading tokens that are not rotated.

    Returns:
        [B, L, H, D] in the dtype of x.
    """
    if torch.compiler.is_compiling():
        return torch.cat([x[:, :text], _turn(x[:, text:], cos[:, None], sin[:, None])], 1)
    out: Tensor = _Rotate.apply(x, cos, sin, text)
    return out


def _turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
    return (x * cos + torch.stack([-b, a], -1).flatten(-2) * sin).to(x.dtype)


class _Rotate(torch.autograd.Function):
    """Rotary embedding; the gradient is rotated by the opposite angle."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor, text: int) -> Tensor:
        ctx.save_for_backward(cos, sin)
        ctx.text = text
        return _rotated(x, cos, sin, text)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        cos, sin = ctx.saved_tensors
        return _rotated(gradient, cos, -sin, ctx.text), None, None, None


def _rotated(x: Tensor, cos: Tensor, sin: Tensor, text: int) -> Tensor:
    """Rotate in three passes: swap pairs, multiply x by cos, add the swapped pairs times sin."""
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if text:
        out[:, :text] = x[:, :text]
    x, turned = x[:, text:], out[:, text:]
    signed = torch.stack([-sin[:, 0::2], sin[:, 1::2]], -1).flatten(1)[:, None]
    swapped = x.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
    torch.mul(x, cos[:, None], out=turned)
    turned.addcmul_(swapped, signed)
    return out
