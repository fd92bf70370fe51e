"""Layers that carry a user's LoRAs, frozen and unmerged, below the adapter that is trained.

Such a layer is a layer of the base with additional frozen parameters. The trained adapter on top of
it is switched on and off without affecting them, and module trees that share the base also share
them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from ..backbones.experts import Experts
from ..backbones.fused import as_class
from ..backbones.quantize import QuantizedLinear
from .weights import LoraLayer, LoraWeights, of_component

PARTS = ("a", "b", "bias")


class _Carrier(nn.Module):
    """A layer that adds scale * (B A x + bias) of each carried LoRA to its output, in x's dtype."""

    carried_scales: tuple[float, ...]

    def carry(self, layers: Sequence[LoraLayer], weight: Tensor) -> None:
        """Add LoRA layers, in the dtype and on the device of the layer's weight.

        Args:
            layers: The LoRA layers to add.
            weight: The layer's weight.
        """
        self.carried_scales = tuple(layer.scale for layer in layers)
        for i, layer in enumerate(layers):
            for part in PARTS:
                tensor = getattr(layer, part)
                kept = None if tensor is None else nn.Parameter(tensor.to(weight), False)
                self.register_parameter(f"carried_{part}_{i}", kept)

    def carried(self) -> list[LoraLayer]:
        """Return the LoRA layers that this layer carries."""
        found = []
        for i, scale in enumerate(self.carried_scales):
            a, b, bias = (getattr(self, f"carried_{part}_{i}") for part in PARTS)
            found.append(LoraLayer(a, b, scale, bias))
        return found

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output plus the LoRAs' updates, in the layer's own shape."""
        out: Tensor = super().forward(x)
        for layer in self.carried():
            bias = None if layer.bias is None else layer.bias.to(x.dtype)
            out = out + layer.scale * self._update(
                x, layer.a.to(x.dtype), layer.b.to(x.dtype), bias
            )
        return out

    def _update(self, x: Tensor, a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
        raise NotImplementedError


class _CarrierLinear(_Carrier, nn.Linear):
    def _update(self, x: Tensor, a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
        return linear(linear(x, a), b, bias)

    def quantized(self) -> _CarrierQuantized:
        """Return a replacement whose own weight can be quantized; the LoRAs stay unquantized."""
        return as_class(_CarrierQuantized, self)


class _CarrierQuantized(_CarrierLinear, QuantizedLinear):
    pass


class _CarrierConv(_Carrier):
    def _update(self, x: Tensor, a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
        layer: Any = self
        inner = layer._conv_forward(x, a, None)  # uses the layer's stride and padding
        return linear(inner.movedim(1, -1), b.flatten(1), bias).movedim(-1, 1)


class _CarrierConv1d(_CarrierConv, nn.Conv1d):
    pass


class _CarrierConv2d(_CarrierConv, nn.Conv2d):
    pass


class _CarrierConv3d(_CarrierConv, nn.Conv3d):
    pass


CARRIERS: dict[type[nn.Module], type[_Carrier]] = {
    nn.Linear: _CarrierLinear,
    nn.Conv1d: _CarrierConv1d,
    nn.Conv2d: _CarrierConv2d,
    nn.Conv3d: _CarrierConv3d,
}


def carry(network: nn.Module, loras: Sequence[LoraWeights]) -> None:
    """Add frozen LoRAs to a plain network, in place.

    Args:
        network: The base, without adapters. Of two experts, each gets the LoRAs of its component.
        loras: The LoRAs to add.

    Raises:
        ValueError: A LoRA adapts a layer that is neither linear nor a convolution.
    """
    if isinstance(network, Experts):
        for component, expert in network.networks.items():
            carry(expert, of_component(loras, component))
        network.place(name for name, _ in network.named_parameters() if ".carried_" in name)
        return
    for name in dict.fromkeys(name for lora in loras for name in lora.layers):
        layer: Any = network.get_submodule(name)
        kind = next((own for base, own in CARRIERS.items() if isinstance(layer, base)), None)
        if kind is None:
            where = next(lora.where for lora in loras if name in lora.layers)
            raise ValueError(
                f"{where} adapts {name}, a {type(layer).__name__}: only linear layers and"
                " convolutions can have a LoRA of model.adapters; merge this LoRA into the base"
                " first"
            )
        carrier = as_class(kind, layer)
        carrier.carry([lora.layers[name] for lora in loras if name in lora.layers], layer.weight)
        parent, _, own = name.rpartition(".")
        setattr(network.get_submodule(parent), own, carrier)


@torch.no_grad()
def merge_carried(network: nn.Module) -> None:
    """Merge the carried LoRAs of a network into its weights, in place, and restore plain layers.

    Raises:
        ValueError: A LoRA has a bias and the base's layer has none.
    """
    for name, carrier in list(network.named_modules()):
        if not isinstance(carrier, _Carrier):
            continue
        kind = next(base for base, own in CARRIERS.items() if isinstance(carrier, own))
        layer: Any = as_class(kind, carrier)
        for lora in carrier.carried():
            change = lora.scale * lora.b.float().flatten(1) @ lora.a.float().flatten(1)
            layer.weight += change.view(layer.weight.shape).to(layer.weight)
            if lora.bias is not None and lora.bias.any():
                if layer.bias is None:
                    raise ValueError(
                        f"model.adapters add a bias to {name}, which has none in the base: export a"
                        " LoRA instead of a whole network"
                    )
                layer.bias += (lora.scale * lora.bias.float()).to(layer.bias)
        for key in [key for key in layer._parameters if key.startswith("carried_")]:
            del layer._parameters[key]
        parent, _, own = name.rpartition(".")
        setattr(network.get_submodule(parent), own, layer)
