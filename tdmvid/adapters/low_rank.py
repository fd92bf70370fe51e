"""LoRA layers that compute in the dtype of their input, whatever the dtype of their weights.

The base keeps its own dtype and needs no autocast, so its norms give the same results as in the
stock pipeline, on every device. The update is added inside the matrix product, without further
passes over the activations. In the backward pass the adapter's gradient of the input is added to
the base's in the same way.

Shapes: M rows (batch and tokens), r rank, N outputs.
"""

from __future__ import annotations

from typing import Any

import torch
from peft import LoraConfig
from peft.tuners import lora
from torch import Tensor, nn
from torch.nn.functional import linear


def use_own_layers(config: LoraConfig) -> LoraConfig:
    """Return `config`, modified so that peft uses the layer classes of this module."""
    config._register_custom_module(
        {
            nn.Linear: AdaptedLinear,
            nn.Conv1d: _AdaptedConv1d,
            nn.Conv2d: _AdaptedConv2d,
            nn.Conv3d: _AdaptedConv3d,
        }
    )
    return config


class _Down(nn.Linear):
    """x itself, for the base layer, and x A^T in the dtype of x, [..., r]."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        weight = self.weight.to(x.dtype)
        if torch.compiler.is_compiling() or not (torch.is_grad_enabled() and x.requires_grad):
            return x, linear(x, weight)
        apply: Any = _Reduce.apply
        base, low = apply(x, weight)
        return base, low


class _Reduce(torch.autograd.Function):
    """x and x A^T. The backward pass adds the second output's gradient to the first's, in place.

    So the first output must go to a linear layer alone, whose backward pass makes a new tensor.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(x, weight)
        return x, linear(x, weight)

    @staticmethod
    def backward(ctx: Any, base: Tensor, low: Tensor) -> tuple[Tensor, Tensor | None]:
        x, weight = ctx.saved_tensors
        rows, low = base.flatten(0, -2), low.flatten(0, -2)
        to_weight = low.t() @ x.flatten(0, -2) if ctx.needs_input_grad[1] else None
        into = None if torch.is_grad_enabled() else rows  # gradients of gradients need a new tensor
        return torch.addmm(rows, low, weight, out=into).view(base.shape), to_weight


class _Up(nn.Linear):
    """base + scale h B^T in the dtype of h, [..., N]; without autograd, in place in `base`."""

    def forward(self, h: Tensor, base: Tensor, scale: float) -> Tensor:  # type: ignore[override]
        rows, weight = base.flatten(0, -2), self.weight.to(h.dtype).t()
        if torch.is_grad_enabled():
            out = torch.addmm(rows, h.flatten(0, -2), weight, alpha=scale)
        else:
            out = rows.addmm_(h.flatten(0, -2), weight, alpha=scale)
        if self.bias is not None:
            out = out + (scale * self.bias).to(h.dtype)
        return out.view(base.shape)


def _as(kind: type[nn.Linear], layer: Any) -> nn.Linear:
    """Return a layer of another class that shares the parameters of `layer`."""
    with torch.device("meta"):
        made = kind(layer.in_features, layer.out_features, layer.bias is not None)
    made.weight, made.bias = layer.weight, layer.bias
    return made


class AdaptedLinear(lora.Linear):
    """A linear layer with adapters that compute in the dtype of its input.

    With peft's `cast_input_dtype_enabled` it computes in the adapter's dtype, as peft does.
    """

    def update_layer(self, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """Add an adapter as peft does, and replace its factors by the layers of this module."""
        super().update_layer(adapter_name, *args, **kwargs)
        self.lora_A[adapter_name] = _as(_Down, self.lora_A[adapter_name])
        self.lora_B[adapter_name] = _as(_Up, self.lora_B[adapter_name])

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return the base layer's output plus the active adapters' updates, [..., N]."""
        low: dict[str, Tensor] = {}
        if not (self.disable_adapters or self.merged):
            for name in self.active_adapters:
                if name in self.lora_A:
                    x, low[name] = self._reduce(name, x)
        out: Tensor = self.base_layer(x, *args, **kwargs)
        for name, h in low.items():
            up: Any = self.lora_B[name]
            out = up(h, out.to(h.dtype), self.scaling[name]).to(out.dtype)
        return out

    def _reduce(self, name: str, x: Tensor) -> tuple[Tensor, Tensor]:
        down: Any = self.lora_A[name]
        cast = self.cast_input_dtype_enabled and x.dtype != down.weight.dtype
        base, low = down(x.to(down.weight.dtype) if cast else x)
        return (x if cast else base), low


class _InInputDtype:
    """Makes peft's layer compute in the dtype of its input."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        low = x.dtype != torch.float32 and not self.cast_input_dtype_enabled  # type: ignore[attr-defined]
        with torch.autocast(x.device.type, x.dtype, enabled=low, cache_enabled=False):
            out: Tensor = super().forward(x, *args, **kwargs)  # type: ignore[misc]
        return out


class _AdaptedConv1d(_InInputDtype, lora.layer.Conv1d):
    """A convolution with adapters that compute in the dtype of its input."""


class _AdaptedConv2d(_InInputDtype, lora.layer.Conv2d):
    """A convolution with adapters that compute in the dtype of its input."""


class _AdaptedConv3d(_InInputDtype, lora.layer.Conv3d):
    """A convolution with adapters that compute in the dtype of its input."""
