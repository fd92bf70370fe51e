"""Quantize the linear layers of a frozen base's blocks to eight bits per weight, with torchao.

Quantization is weight-only. A layer dequantizes its weight to the base's dtype whenever it
computes. This saves memory, not work. Results and gradients are those of a plain network with the
rounded weights. Everything outside the blocks (embeddings, last projection), norms and convolutions
stay as they are.
"""

from __future__ import annotations

import importlib.util
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from ..config import QuantizeKind

ROW_BYTES = {"int8": 5, "float8": 4}
"""Extra bytes per output channel: a float32 scale, and for int8 a zero point."""


class QuantizedLinear(nn.Linear):
    """A frozen linear layer with a torchao tensor as weight."""

    @classmethod
    def of(cls, layer: nn.Linear) -> QuantizedLinear:
        """Return a replacement for `layer` that shares its parameters."""
        with torch.device("meta"):
            made = cls(layer.in_features, layer.out_features, layer.bias is not None)
        made.weight, made.bias = layer.weight, layer.bias
        return made.train(layer.training)

    def forward(self, x: Tensor) -> Tensor:
        """Return x W^T + b, [..., out], for x [..., in]."""
        return _Linear.apply(x, self.weight, self.bias)


@runtime_checkable
class Quantizable(Protocol):
    """A linear layer with further parameters that provides its own quantizable replacement."""

    def quantized(self) -> QuantizedLinear:
        """Return the replacement."""
        ...


class _Linear(torch.autograd.Function):
    """x W^T + b, which dequantizes W again in the backward pass.

    Autograd on torchao's operations would keep every dequantized weight until then.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.weight = weight
        return linear(x, weight.dequantize(), bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return gradient @ ctx.weight.dequantize().to(gradient.dtype), None, None


def check_torchao() -> None:
    """Check that torchao is installed.

    Raises:
        ValueError: It is not.
    """
    if not importlib.util.find_spec("torchao"):
        raise ValueError(
            "model.quantize needs torchao: run pip install -e '.[quantize]' in the clone, or set"
            " model.quantize to 'none'"
        )


def quantize(network: nn.Module, blocks: list[nn.Module], kind: QuantizeKind) -> None:
    """Quantize the weights of all linear layers of `blocks` in place, one layer at a time.

    Call it before adapters are attached.

    Args:
        network: The network that contains the blocks.
        blocks: The blocks to quantize.
        kind: "int8" or "float8".
    """
    from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig, quantize_

    chosen = {id(layer) for layer in linear_layers(blocks)}
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear) and id(child) in chosen:
                own = child.quantized() if isinstance(child, Quantizable) else None
                setattr(parent, name, own or QuantizedLinear.of(child))
    # torchao's compiler settings would also compute float32 products in TF32 on a GPU.
    settings = {"int8": Int8WeightOnlyConfig, "float8": Float8WeightOnlyConfig}[kind](
        set_inductor_config=False
    )
    quantize_(network, settings, filter_fn=lambda module, name: isinstance(module, QuantizedLinear))
    for layer in linear_layers(blocks):
        _keep_zeros(layer.weight)


def _keep_zeros(weight: Any) -> None:
    """Keep rows of zeros at zero; torchao's float8 turns them into NaN (0 / 0).

    The last block's text layers have such rows; nothing reads their output.
    """
    weight.qdata.view(torch.uint8)[weight.scale.flatten() == 0] = 0


def linear_layers(blocks: list[nn.Module]) -> list[nn.Linear]:
    """Return all linear layers of `blocks`, each once."""
    found = {
        id(module): module
        for block in blocks
        for module in block.modules()
        if isinstance(module, nn.Linear)
    }
    return list(found.values())


def planned_bytes(network: nn.Module, blocks: list[nn.Module], kind: QuantizeKind) -> int:
    """Compute the bytes of a network's parameters after quantization.

    Args:
        network: Not quantized yet; may be on the meta device.
        blocks: The blocks to quantize.
        kind: "none", "int8" or "float8".
    """
    whole = sum(p.numel() * p.element_size() for p in network.parameters())
    if kind == "none":
        return whole
    return whole - sum(
        layer.weight.numel() * (layer.weight.element_size() - 1)
        - layer.out_features * ROW_BYTES[kind]
        for layer in linear_layers(blocks)
    )


def held_bytes(network: nn.Module) -> int:
    """Return the bytes of a network's parameters, quantized or not."""
    return sum(
        part.numel() * part.element_size() for p in network.parameters() for part in parts(p)
    )


def parts(parameter: Tensor) -> list[Tensor]:
    """Return the plain tensors that store a parameter: itself, or those inside a torchao tensor."""
    if not hasattr(parameter, "__tensor_flatten__"):
        return [parameter]
    return [getattr(parameter, name) for name in parameter.__tensor_flatten__()[0]]
