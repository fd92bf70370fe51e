"""Student and fake as LoRA adapters on ONE frozen base.

Two module trees share the base's Parameter objects, and each carries its own adapter: two
adapters on one tree would let gradient checkpointing recompute with the wrong one.
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
ADAPTABLE = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def shared_copy(model: nn.Module) -> nn.Module:
    """A second module tree over the same parameters and buffers; costs no weight memory."""
    memo = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, memo)


def host_copy(model: nn.Module) -> nn.Module:
    """A copy with all its weights in host memory; none of them is on the device twice meanwhile."""
    memo = {
        id(p): nn.Parameter(p.detach().to("cpu", copy=True), requires_grad=p.requires_grad)
        for p in model.parameters()
    }
    return copy.deepcopy(
        model, memo | {id(x): x.detach().to("cpu", copy=True) for x in model.buffers()}
    )


@contextmanager
def in_host_memory(networks: list[nn.Module]) -> Iterator[None]:
    """The frozen weights of `networks` are in host memory, and their device has room for something
    else; nobody may call them meanwhile.
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
    """Add a zero-initialised adapter, float32 and alone trainable; the same on every rank."""
    targets = settings.targets or targets
    for target in targets:
        named = [
            module
            for name, module in model.named_modules()
            if target and f".{name}".endswith(f".{target}")
        ]
        if not named:
            raise ValueError(f"lora.targets: {target!r} names no module of {type(model).__name__}")
        if other := [
            type(module).__name__ for module in named if not isinstance(module, ADAPTABLE)
        ]:
            raise ValueError(
                f"lora.targets: {target!r} is of class {other[0]}: a LoRA adapts linear layers and"
                " convolutions, name those inside"
            )
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,  # type: ignore[arg-type]  # peft takes fractions too
        target_modules=list(targets),
    )
    return _inject(model, config, seed=seed)


@torch.no_grad()
def attach_weights(model: nn.Module, lora: LoraWeights) -> nn.Module:
    """Add a LoRA as an adapter of exactly its layers, with its weights, ranks and scales.

    They are float32 and alone trainable, as those of `attach`.
    """
    state = lora.state()
    _inject(model, lora.config(), seed=0, state=state)
    for name, parameter in _adapter_parameters(model).items():
        parameter.copy_(state[name].float())
    return model


def _inject(
    model: nn.Module, config: LoraConfig, *, seed: int, state: dict[str, Tensor] | None = None
) -> nn.Module:
    """Add an adapter by peft's settings; with `state`, to the layers that it names alone."""
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        torch.manual_seed(seed)
        warnings.filterwarnings(
            "ignore", ".*get_apply_tensor_subclass"
        )  # of merging into a quantised base, which nobody does
        # peft's own function: not every model of diffusers has an add_adapter.
        inject_adapter_in_model(use_own_layers(config), model, ADAPTER, state_dict=state)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name)
        if "lora_" in name:
            parameter.data = parameter.data.float()
    layer: Any
    for layer in tuner_layers(model):
        layer.cast_input_dtype_enabled = False  # a copy in float32 would be kept for the backward
    return model


def tuner_layers(model: nn.Module) -> list[BaseTunerLayer]:
    """The adapted layers."""
    return [module for module in model.modules() if isinstance(module, BaseTunerLayer)]


def _adapter_parameters(model: nn.Module) -> dict[str, Tensor]:
    """The adapter's parameters by peft's names in files."""
    return {
        name.replace(f".{ADAPTER}.", "."): p
        for name, p in model.named_parameters()
        if "lora_" in name
    }


@torch.no_grad()
def start_from(model: nn.Module, settings: LoraSettings, lora: LoraWeights, *, where: str) -> None:
    """Fill a new adapter with a LoRA: scales go into B, and missing ranks of a layer stay zero.

    Layers that the LoRA does not have stay zero, too.

    Args:
        model: a network with a new adapter of `settings`.
        settings: the adapter's rank and alpha.
        lora: of at most this rank.
        where: what messages call it.

    Raises:
        ValueError: the adapter has no place for the LoRA.
    """
    own = _adapter_parameters(model)
    if lora.biased:
        name = next(name for name, layer in lora.layers.items() if layer.bias is not None)
        raise ValueError(
            f"{where} holds biases, {name}.lora_B.bias among them, as the export of a set of step"
            " counts does: start from the LoRA of a run with one"
        )
    ranks = [layer.rank for layer in lora.layers.values()]
    if max(ranks) != settings.rank:
        raise ValueError(
            f"{where} is of rank {max(ranks)}, this run has lora.rank={settings.rank}: use the same"
        )
    for name, layer in lora.layers.items():
        if f"{name}.lora_A.weight" not in own:
            raise ValueError(
                f"{where} adapts {name}, this run does not: name its modules in lora.targets"
            )
        a, b = own[f"{name}.lora_A.weight"], own[f"{name}.lora_B.weight"]
        a[: layer.rank] = layer.a.float()
        b[:, : layer.rank] = layer.b.float() * (layer.scale * settings.rank / settings.alpha)


@torch.no_grad()
def merge(model: nn.Module) -> nn.Module:
    """Add an attached adapter to its base for good: the plain network again, changed in place."""
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
    """Inside, the model is its frozen base: the teacher."""
    layers = tuner_layers(model)
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


class Base:
    """Calls a role's network or engine with its adapter switched off: the teacher, without weights
    of its own.
    """

    def __init__(self, network: Callable[..., Any], module: nn.Module):
        self.network, self.module = network, module

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with adapters_off(self.module):
            return self.network(*args, **kwargs)
