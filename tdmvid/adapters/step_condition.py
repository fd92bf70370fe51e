"""Condition a network on the number of steps K (TDM-unify, arXiv 2503.06674).

A trained function of K is added to the time embedding. K is mapped to a time scale, then through a
sinusoidal embedding as wide as the model's own and two layers. The last layer starts at zero, so
that iteration 0 is exactly the base. For a fixed K the result is a constant vector, which a plain
LoRA file can hold (`baked`).

Shapes: B batch, D channels of the time embedding, r rank.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.embeddings import TimestepEmbedding
from diffusers.models.transformers.transformer_z_image import TimestepEmbedder
from peft import LoraConfig
from torch import Tensor, nn

from ..backbones.experts import experts_of
from ..diffusion.denoiser import STEPS, Cond, Denoiser, step_level

NAME = "step_condition"
"""Name of the condition's module in a network, and prefix of its parameters."""
TIMESTEPS = 1000
"""The timestep of t = 1 in diffusers' networks."""


class StepCondition(nn.Module):
    """Maps step counts K to the shift of the time embedding; zero at initialisation.

    Args:
        features: Width of the sinusoidal embedding.
        width: D.
    """

    def __init__(self, features: int, width: int):
        super().__init__()
        self.features = features
        self.inner, self.outer = nn.Linear(features, width), nn.Linear(width, width)
        nn.init.zeros_(self.outer.weight)
        nn.init.zeros_(self.outer.bias)
        self.steps: Tensor | None = None  # of the current call

    def forward(self, steps: Tensor) -> Tensor:
        """Return the shift [B, D], float32, for step counts [B]."""
        half = self.features // 2
        exponent = torch.arange(half, device=steps.device, dtype=torch.float32) * (
            -math.log(10_000) / half
        )
        phase = TIMESTEPS * step_level(steps.float())[:, None] * exponent.exp()
        waves = nn.functional.pad(torch.cat([phase.cos(), phase.sin()], 1), (0, self.features % 2))
        with torch.autocast(steps.device.type, enabled=False):
            levels: Tensor = self.outer(nn.functional.silu(self.inner(waves)))
        return levels


@dataclass(frozen=True)
class TimeEmbedding:
    """The layers of a network that embed the timestep."""

    module: nn.Module
    last: str
    """Name of the last layer in the network."""
    features: int
    """Width of the sinusoidal embedding."""
    width: int
    """D, width of the result."""


def time_embedding(network: nn.Module) -> TimeEmbedding:
    """Return the layers of a network that embed the timestep for its blocks.

    They are the least nested of their kind: an embedding of the time inside another part, such as
    HunyuanVideo's text refiner, serves that part alone. Of several, the first is taken.

    Raises:
        ValueError: The network has none.
    """
    found = [
        (name, module)
        for name, module in network.named_modules()
        if (isinstance(module, TimestepEmbedding) and module.post_act is None)
        or isinstance(module, TimestepEmbedder)
    ]
    if not found:
        raise ValueError(
            f"objective.step_set: {type(network).__name__} has no time embedding of a known class;"
            " use k_condition=false"
        )
    name, module = min(found, key=lambda pair: pair[0].count("."))
    if isinstance(module, TimestepEmbedder):
        return _embedding(module, f"{name}.mlp.2", module.mlp[0], module.mlp[2])
    return _embedding(module, f"{name}.linear_2", module.linear_1, module.linear_2)


def _embedding(module: nn.Module, last: str, first: Any, second: Any) -> TimeEmbedding:
    return TimeEmbedding(module, last, first.in_features, second.out_features)


def condition_on_steps(network: nn.Module, *, seed: int) -> list[StepCondition]:
    """Add a trainable step condition to an adapted network, or to each of two experts.

    Args:
        network: Modified in place.
        seed: Seed of the initial weights, so that they are equal on all ranks.

    Returns:
        The conditions, one per network.
    """
    return [_condition(each, seed) for each in experts_of(network)]


def _condition(network: nn.Module, seed: int) -> StepCondition:
    embedding = time_embedding(network)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        condition = StepCondition(embedding.features, embedding.width)
    network.add_module(NAME, condition.to(next(embedding.module.parameters()).device))

    def add(module: nn.Module, args: tuple[Any, ...], out: Tensor) -> Tensor:
        if condition.steps is None:
            return out
        shift: Tensor = condition(condition.steps).to(out.dtype)
        rows = shift.repeat(len(out) // len(shift), 1)
        # the embedding has a dimension more if every token has its time
        return out + rows.reshape(len(out), *[1] * (out.dim() - 2), -1)

    embedding.module.register_forward_hook(add)
    return condition


class _StepConditioned:
    """A denoiser that passes K from its conditions to the network's step condition."""

    def __init__(self, denoiser: Denoiser, conditions: list[StepCondition]):
        self.denoiser, self.conditions, self.process = denoiser, conditions, denoiser.process

    def __call__(self, x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        self._tell(cond[STEPS])
        try:
            return self.denoiser(x_t, t, cond)
        finally:
            self._tell(None)  # the teacher uses the same modules

    def _tell(self, steps: Tensor | None) -> None:
        for condition in self.conditions:
            condition.steps = steps


def conditions_of(network: nn.Module) -> list[StepCondition]:
    """Return the step conditions of a network, or of both experts; empty if there are none."""
    found = [dict(each.named_children()).get(NAME) for each in experts_of(network)]
    return [condition for condition in found if isinstance(condition, StepCondition)]


def with_step_count(denoiser: Denoiser, module: nn.Module) -> Denoiser:
    """Return a denoiser that passes K to the step condition of `module`, if it has one.

    Args:
        denoiser: Calls `module`.
        module: A role's network.
    """
    conditions = conditions_of(module)
    return _StepConditioned(denoiser, conditions) if conditions else denoiser


@torch.no_grad()
def constant(network: nn.Module, weights: dict[str, Tensor], steps: int) -> tuple[str, Tensor]:
    """Compute the constant shift of the time embedding for a fixed K.

    Args:
        network: The network, which gives the layer and the shapes.
        weights: Trained tensors by parameter name.
        steps: K.

    Returns:
        Name of the shifted layer, and the shift [D].
    """
    embedding = time_embedding(network)
    condition = StepCondition(embedding.features, embedding.width)
    own = {
        key.removeprefix(f"{NAME}."): value.float().cpu()
        for key, value in weights.items()
        if key.startswith(f"{NAME}.")
    }
    condition.load_state_dict(own)
    return embedding.last, condition(torch.tensor([float(steps)]))[0]


def baked(
    layers: dict[str, Tensor],
    config: LoraConfig,
    network: nn.Module,
    weights: dict[str, Tensor],
    steps: int,
) -> tuple[dict[str, Tensor], LoraConfig]:
    """Fold the step condition for one K into a plain LoRA, as a `lora_B.bias`.

    peft puts a bias on every adapted layer or on none, so the biases of other layers are zero. A
    LoRA without step condition is returned unchanged.

    Args:
        layers: The LoRA's tensors by peft's names.
        config: peft's settings.
        network: The network that the LoRA adapts.
        weights: Trained tensors by parameter name, including the condition's.
        steps: K.

    Returns:
        The new tensors and settings. The bias [D] is divided by alpha / r, because peft scales it.
    """
    if not any(key.startswith(f"{NAME}.") for key in weights):
        return layers, config
    name, shift = constant(network, weights, steps)
    layer, config = network.get_submodule(name), copy.deepcopy(config)
    config.lora_bias = True
    config.target_modules = sorted({*(config.target_modules or ()), name})
    dtype = next(iter(layers.values())).dtype
    inner: Any = getattr(layer, "base_layer", layer)
    layers = dict(layers)
    layers.setdefault(
        f"{name}.lora_A.weight", torch.zeros(config.r, inner.in_features, dtype=dtype)
    )
    layers.setdefault(
        f"{name}.lora_B.weight", torch.zeros(inner.out_features, config.r, dtype=dtype)
    )
    for key in [key for key in layers if key.endswith(".lora_B.weight")]:
        layers[key.replace("weight", "bias")] = torch.zeros(len(layers[key]), dtype=dtype)
    layers[f"{name}.lora_B.bias"] = (shift * config.r / config.lora_alpha).to(dtype)
    return layers, config
