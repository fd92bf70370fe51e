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
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        torch.manual_seed(seed)
        warnings.filterwarnings(
            "ignore", ".*get_apply_tensor_subclass"
        )  # of merging into a quantised base, which nobody does
        # peft's own function: not every model of diffusers has an add_adapter.
        inject_adapter_in_model(
            LoraConfig(
                r=settings.rank,
                lora_alpha=settings.alpha,  # type: ignore[arg-type]  # peft takes fractions too
                target_modules=list(targets),
            ),
            model,
            ADAPTER,
        )
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name)
        if "lora_" in name:
            parameter.data = parameter.data.float()
    layer: Any
    for layer in tuner_layers(model):
        layer.cast_input_dtype_enabled = (
            False  # autocast casts: peft's copy in float32 would be cast straight back, and kept
        )
    return model


def tuner_layers(model: nn.Module) -> list[BaseTunerLayer]:
    """The adapted layers."""
    return [module for module in model.modules() if isinstance(module, BaseTunerLayer)]


@torch.no_grad()
def start_from(
    model: nn.Module,
    settings: LoraSettings,
    layers: dict[str, Tensor],
    alpha: float | None,
    *,
    where: str,
) -> None:
    """Fill a new adapter with a LoRA of the same rank: layers by peft's names, and their alpha
    (None: the rank).

    Layers that it does not have stay zero. ValueError, naming `where` it is from, if the adapter
    has no place for it.
    """
    own = {
        name.replace(f".{ADAPTER}.", "."): p
        for name, p in model.named_parameters()
        if "lora_" in name
    }
    for name, tensor in layers.items():
        if name.endswith(".bias"):
            raise ValueError(
                f"{where} holds biases, {name} among them, as the export of a set of step counts"
                " does: start from the LoRA of a run with one"
            )
        if name not in own:
            raise ValueError(
                f"{where} adapts {name.split('.lora_')[0]}, this run does not: name its modules in"
                " lora.targets"
            )
        if own[name].shape != tensor.shape:
            rank = tensor.shape[".lora_B." in name]
            raise ValueError(
                f"{where} is of rank {rank}, this run has lora.rank={settings.rank}: use the same"
            )
        scale = (
            (alpha / settings.rank if alpha else 1.0) * settings.rank / settings.alpha
            if ".lora_B." in name
            else 1.0
        )
        own[name].copy_(tensor.float() * scale)


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
