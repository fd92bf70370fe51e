"""A frozen base in eight bits a weight: the linear layers of its blocks, by torchao, weights only.

A layer makes its weight whole again, in the base's dtype, whenever it computes: memory is saved,
not work, and results and gradients are those of a plain network whose weights are the rounded ones.
What lies outside the blocks (embeddings, last projection), norms and convolutions stay as they are.
"""

from __future__ import annotations

import importlib.util
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from ..config import QuantizeKind

ROW_BYTES = {"int8": 5, "float8": 4}
"""Beside an output channel's weights: its scale in float32, and of int8 a zero point."""


class QuantizedLinear(nn.Linear):
    """A frozen linear layer whose weight is a tensor of torchao."""

    @classmethod
    def of(cls, layer: nn.Linear) -> QuantizedLinear:
        """Return a replacement for a layer, with its very parameters."""
        with torch.device("meta"):
            made = cls(layer.in_features, layer.out_features, layer.bias is not None)
        made.weight, made.bias = layer.weight, layer.bias
        return made.train(layer.training)

    def forward(self, x: Tensor) -> Tensor:
        return _Linear.apply(x, self.weight, self.bias)


@runtime_checkable
class Quantizable(Protocol):
    """A linear layer with more than a weight and a bias, which knows its own replacement."""

    def quantized(self) -> QuantizedLinear: ...


class _Linear(torch.autograd.Function):
    """x W^T + b. Autograd on the operations of torchao would keep every whole weight until the
    backward pass; this makes it again.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.weight = weight
        return linear(x, weight.dequantize(), bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return gradient @ ctx.weight.dequantize().to(gradient.dtype), None, None


def check_torchao() -> None:
    """Raise ValueError if torchao is not installed."""
    if not importlib.util.find_spec("torchao"):
        raise ValueError(
            "model.quantize needs torchao: pip install -e '.[quantize]' in the clone, or choose"
            " 'none'"
        )


def quantize(network: nn.Module, blocks: list[nn.Module], kind: QuantizeKind) -> None:
    """Round the weights of all linear layers of `blocks` in place, one after the other; before
    adapters are attached.
    """
    from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig, quantize_

    chosen = {id(layer) for layer in linear_layers(blocks)}
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear) and id(child) in chosen:
                own = child.quantized() if isinstance(child, Quantizable) else None
                setattr(parent, name, own or QuantizedLinear.of(child))
    # Its own settings of the compiler would also turn float32 products on a GPU into TF32.
    settings = {"int8": Int8WeightOnlyConfig, "float8": Float8WeightOnlyConfig}[kind](
        set_inductor_config=False
    )
    quantize_(network, settings, filter_fn=lambda module, name: isinstance(module, QuantizedLinear))
    for layer in linear_layers(blocks):
        _keep_zeros(layer.weight)


def _keep_zeros(weight: Any) -> None:
    """torchao's float8 makes NaN of a row of zeros, 0 / 0; such rows stay zero. A last block's text
    has them, whose output nobody reads.
    """
    weight.qdata.view(torch.uint8)[weight.scale.flatten() == 0] = 0


def linear_layers(blocks: list[nn.Module]) -> list[nn.Linear]:
    """Return what is quantised, each layer once."""
    found = {
        id(module): module
        for block in blocks
        for module in block.modules()
        if isinstance(module, nn.Linear)
    }
    return list(found.values())


def planned_bytes(network: nn.Module, blocks: list[nn.Module], kind: QuantizeKind) -> int:
    """Return the bytes of a plain network's parameters if it were quantised; works on meta too."""
    whole = sum(p.numel() * p.element_size() for p in network.parameters())
    if kind == "none":
        return whole
    return whole - sum(
        layer.weight.numel() * (layer.weight.element_size() - 1)
        - layer.out_features * ROW_BYTES[kind]
        for layer in linear_layers(blocks)
    )


def held_bytes(network: nn.Module) -> int:
    """Return the bytes of a network's parameters, quantised or not."""
    return sum(
        part.numel() * part.element_size() for p in network.parameters() for part in parts(p)
    )


def parts(parameter: Tensor) -> list[Tensor]:
    """Return the plain tensors that hold a parameter: itself, or what torchao made of it."""
    if not hasattr(parameter, "__tensor_flatten__"):
        return [parameter]
    return [getattr(parameter, name) for name in parameter.__tensor_flatten__()[0]]
