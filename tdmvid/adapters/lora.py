"""Student and fake as LoRA adapters (arXiv 2106.09685) on one frozen base.

Two module trees share the base's Parameter objects, and each has its own adapter. With two adapters
on one tree, gradient checkpointing could recompute with the wrong one.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from ..backbones.quantize import parts
from ..config import LoraSettings
from .low_rank import use_own_layers
from .weights import LoraWeights

ADAPTER = "default"
"""Name of the adapter in peft."""
ADAPTABLE = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
"""Kinds of layers that a LoRA can adapt."""


def shared_copy(model: nn.Module) -> nn.Module:
    """Return a second module tree over the same parameters and buffers, without copying them."""
    memo = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, memo)


def host_copy(model: nn.Module) -> nn.Module:
    """Return a copy with all weights in host memory, without a second copy on the device."""
    memo = {
        id(p): nn.Parameter(p.detach().to("cpu", copy=True), requires_grad=p.requires_grad)
        for p in model.parameters()
    }
    return copy.deepcopy(
        model, memo | {id(x): x.detach().to("cpu", copy=True) for x in model.buffers()}
    )


@contextmanager
def in_host_memory(networks: list[nn.Module]) -> Iterator[None]:
    """Move the frozen weights of `networks` to host memory inside the context, and back afterwards.

    This frees device memory for something else. The networks must not be called meanwhile.
    """
    frozen = {id(p): p for network in networks for p in network.parameters() if not p.requires_grad}
    held = [(part, part.device, part.data.to("cpu")) for p in frozen.values() for part in parts(p)]
    for part, _, _ in held:
        part.data = part.data.new_empty(0)
    try:
        yield
    finally:
        for part, device, data in held:
            part.data = data.to(device)


def attach(
    model: nn.Module, settings: LoraSettings, targets: tuple[str, ...], *, seed: int
) -> nn.Module:
    """Attach a LoRA adapter, zero at initialisation, float32, and the only trainable part.

    Args:
        model: Modified in place.
        settings: Rank, alpha and, optionally, target modules.
        targets: Module names to adapt if `settings` has none.
        seed: Seed of the initial weights, so that they are equal on all ranks.

    Returns:
        `model`.

    Raises:
        ValueError: A target names no module, or one that is neither linear nor a convolution.
    """
    targets = settings.targets or targets
    for target in targets:
        named = [
            module
            for name, module in model.named_modules()
            if target and f".{name}".endswith(f".{target}")
        ]
        if not named:
            raise ValueError(
                f"lora.targets: {target!r} matches no module of {type(model).__name__}; use module"
                " names such as 'to_q'"
            )
        if other := [
            type(module).__name__ for module in named if not isinstance(module, ADAPTABLE)
        ]:
            raise ValueError(
                f"lora.targets: {target!r} is a {other[0]}, but a LoRA adapts linear layers and"
                " convolutions: name those inside it"
            )
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,  # type: ignore[arg-type]  # peft takes fractions too
        target_modules=list(targets),
    )
    return _inject(model, config, seed=seed)


@torch.no_grad()
def attach_weights(model: nn.Module, lora: LoraWeights) -> nn.Module:
    """Attach a LoRA as an adapter, with its own layers, weights, ranks and scales.

    Args:
        model: Modified in place.
        lora: The LoRA.

    Returns:
        `model`, with float32 adapters that are the only trainable part, as after `attach`.
    """
    state = lora.state()
    _inject(model, lora.config(), seed=0, state=state)
    for name, parameter in _adapter_parameters(model).items():
        parameter.copy_(state[name].float())
    return model


def _inject(
    model: nn.Module, config: LoraConfig, *, seed: int, state: dict[str, Tensor] | None = None
) -> nn.Module:
    """Attach an adapter with peft's settings; with `state`, only to the layers that it names."""
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        torch.manual_seed(seed)
        warnings.filterwarnings(
            "ignore", ".*get_apply_tensor_subclass"
        )  # concerns merging into a quantized base, which is never done
        # peft's function, because not every diffusers model has add_adapter.
        inject_adapter_in_model(use_own_layers(config), model, ADAPTER, state_dict=state)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name)
        if "lora_" in name:
            parameter.data = parameter.data.float()
    layer: Any
    for layer in tuner_layers(model):
        layer.cast_input_dtype_enabled = False  # else a float32 copy is kept for the backward pass
    return model


def tuner_layers(model: nn.Module) -> list[BaseTunerLayer]:
    """Return the adapted layers."""
    return [module for module in model.modules() if isinstance(module, BaseTunerLayer)]


def _adapter_parameters(model: nn.Module) -> dict[str, Tensor]:
    """Return the adapter's parameters by peft's names in files."""
    return {
        name.replace(f".{ADAPTER}.", "."): p
        for name, p in model.named_parameters()
        if "lora_" in name
    }


@torch.no_grad()
def start_from(model: nn.Module, settings: LoraSettings, lora: LoraWeights, *, where: str) -> None:
    """Initialise a new adapter from a LoRA.

    The scale is multiplied into B. Layers that the LoRA does not have, and missing ranks of a
    layer, stay zero.

    Args:
        model: A network with a new adapter of `settings`, modified in place.
        settings: The adapter's rank and alpha.
        lora: A LoRA of the same rank.
        where: Name of the LoRA in error messages.

    Raises:
        ValueError: The LoRA has another rank, has biases, or adapts a layer that the adapter does
            not.
    """
    own = _adapter_parameters(model)
    if lora.biased:
        name = next(name for name, layer in lora.layers.items() if layer.bias is not None)
        raise ValueError(
            f"{where} contains biases, e.g. {name}.lora_B.bias, as exports of runs with several"
            " step counts do: start from the LoRA of a run with one step count"
        )
    ranks = [layer.rank for layer in lora.layers.values()]
    if max(ranks) != settings.rank:
        raise ValueError(
            f"{where} has rank {max(ranks)}, but this run has lora.rank={settings.rank}: use the"
            " same rank"
        )
    for name, layer in lora.layers.items():
        if f"{name}.lora_A.weight" not in own:
            raise ValueError(
                f"{where} adapts {name}, which this run does not: add its modules to lora.targets"
            )
        a, b = own[f"{name}.lora_A.weight"], own[f"{name}.lora_B.weight"]
        a[: layer.rank] = layer.a.float()
        b[:, : layer.rank] = layer.b.float() * (layer.scale * settings.rank / settings.alpha)


@torch.no_grad()
def merge(model: nn.Module) -> nn.Module:
    """Merge an attached adapter into its base, in place, and return the plain network."""
    layers = {
        name: layer for name, layer in model.named_modules() if isinstance(layer, BaseTunerLayer)
    }
    for name, layer in layers.items():
        layer.merge()
        parent, _, own = name.rpartition(".")
        setattr(model.get_submodule(parent), own, layer.get_base_layer())
    del model.peft_config
    return model


@contextmanager
def adapters_off(model: nn.Module) -> Iterator[None]:
    """Disable the adapter inside the context: the model then is its frozen base, the teacher."""
    layers = tuner_layers(model)
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


class Base:
    """Calls a role's network or engine with its adapter disabled: a teacher without own weights.

    Args:
        network: The network, or an engine around it.
        module: The module whose adapters are disabled during a call.
    """

    def __init__(self, network: Callable[..., Any], module: nn.Module):
        self.network, self.module = network, module

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the network with its adapter disabled."""
        with adapters_off(self.module):
            return self.network(*args, **kwargs)
