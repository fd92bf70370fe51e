"""A LoRA in memory: two factors and a scale for each adapted layer, for files of any layout.

Shapes: r rank. A layer adds scale * (B A x + bias).
"""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from peft import LoraConfig
from peft.utils.other import get_pattern_key
from torch import Tensor

from .layouts import adapted_modules


@dataclass(frozen=True)
class LoraLayer:
    """The update that a LoRA adds to one layer."""

    a: Tensor
    """[r, in]; for a convolution [r, in, h, w]."""
    b: Tensor
    """[out, r]; for a convolution [out, r, 1, 1]."""
    scale: float = 1.0
    bias: Tensor | None = None
    """[out], or None."""

    @property
    def rank(self) -> int:
        """r."""
        return len(self.a)

    @property
    def alpha(self) -> float:
        """The alpha for which alpha / r equals the scale."""
        return self.scale * self.rank


@dataclass(frozen=True)
class LoraWeights:
    """The layers of a LoRA by their names in diffusers' network."""

    layers: Mapping[str, LoraLayer]
    where: str = "the LoRA"
    """Name in messages: the path of its file."""
    layout: str = ""
    """Layout of the file's keys, see layouts/names.py."""
    plain: bool = True
    """Whether the file has two factors per layer and nothing else, in the layout's newest keys."""
    left_out: tuple[str, ...] = ()
    """Keys of the file that change something other than the network."""
    dropped: tuple[str, ...] = ()
    """Keys of the file that no LoRA of diffusers or peft can hold, such as changes of a norm."""
    stated_alphas: frozenset[float | None] = frozenset((None,))
    """Values of the layers' own `.alpha`; None stands for layers without one."""
    strength: float = 1.0
    """Scale at which the user applies the LoRA. Included in the layers' scales."""
    component: str = ""
    """Component of the pipeline that a LoRA of `model.adapters` adapts, e.g. "transformer_2"."""
    text: Mapping[str, Mapping[str, LoraLayer]] = field(default_factory=dict)
    """Layers of text encoders by component and module, see text.py; empty if they are ignored."""
    digest: str = ""
    """Digest of the file's content, where it is compared."""

    @property
    def rank(self) -> int:
        """The most frequent rank of the layers."""
        return Counter(layer.rank for layer in self.layers.values()).most_common(1)[0][0]

    @property
    def alpha(self) -> float:
        """The most frequent alpha of the layers with that rank."""
        of_rank = [layer.alpha for layer in self.layers.values() if layer.rank == self.rank]
        return Counter(of_rank).most_common(1)[0][0]

    @property
    def biased(self) -> bool:
        """Whether any layer has a bias."""
        return any(layer.bias is not None for layer in self.layers.values())

    def scaled(self, factor: float) -> LoraWeights:
        """Return the LoRA with every scale multiplied by `factor`."""
        layers, *text = (
            {name: replace(layer, scale=layer.scale * factor) for name, layer in part.items()}
            for part in (self.layers, *self.text.values())
        )
        return replace(
            self,
            layers=layers,
            text=dict(zip(self.text, text, strict=True)),
            strength=self.strength * factor,
        )

    def copied(self) -> LoraWeights:
        """Return the LoRA with copied tensors, which do not change when the file does."""
        layers, *text = (
            {
                name: replace(
                    layer,
                    a=layer.a.clone(),
                    b=layer.b.clone(),
                    bias=None if layer.bias is None else layer.bias.clone(),
                )
                for name, layer in part.items()
            }
            for part in (self.layers, *self.text.values())
        )
        return replace(self, layers=layers, text=dict(zip(self.text, text, strict=True)))

    def state(self) -> dict[str, Tensor]:
        """Return the tensors by peft's names: A [r, in], B [out, r] and optionally bias [out].

        If one layer has a bias, the others get zeros, because peft puts a bias on every layer or on
        none.
        """
        state = {}
        for name, layer in self.layers.items():
            state[f"{name}.lora_A.weight"], state[f"{name}.lora_B.weight"] = layer.a, layer.b
            if self.biased:
                none = layer.b.new_zeros(len(layer.b))
                state[f"{name}.lora_B.bias"] = none if layer.bias is None else layer.bias
        return state

    def config(self) -> LoraConfig:
        """Return peft's settings for `state`, with the exact rank and alpha of every layer."""
        rank, alpha = self.rank, self.alpha
        return LoraConfig(
            r=rank,
            lora_alpha=alpha,  # type: ignore[arg-type]  # peft takes fractions too
            target_modules=list(self.layers),
            rank_pattern={
                f"^{name}": layer.rank for name, layer in self.layers.items() if layer.rank != rank
            },
            alpha_pattern={
                f"^{name}": layer.alpha
                for name, layer in self.layers.items()
                if layer.alpha != alpha
            },
            lora_bias=self.biased,
        )


def of_component(loras: Sequence[LoraWeights], component: str) -> list[LoraWeights]:
    """Return the LoRAs of `model.adapters` that adapt one component of the pipeline.

    Args:
        loras: The LoRAs of all components.
        component: E.g. "transformer_2".
    """
    return [lora for lora in loras if lora.component == component]


def join(loras: Sequence[LoraWeights], where: str = "the LoRA") -> LoraWeights:
    """Combine several LoRAs into one that adds their sum, by concatenating ranks. This is exact.

    If a layer has several LoRAs, their scales are multiplied into B.

    Args:
        loras: LoRAs of the same network.
        where: Name of the result in messages.
    """
    names = dict.fromkeys(name for lora in loras for name in lora.layers)
    found = {name: [lora.layers[name] for lora in loras if name in lora.layers] for name in names}
    return LoraWeights({name: _join_layers(layers) for name, layers in found.items()}, where)


def _join_layers(layers: Sequence[LoraLayer]) -> LoraLayer:
    if len(layers) == 1:
        return layers[0]
    a = torch.cat([layer.a.float() for layer in layers])
    b = torch.cat([layer.scale * layer.b.float() for layer in layers], 1)
    biases = [layer.scale * layer.bias.float() for layer in layers if layer.bias is not None]
    return LoraLayer(a, b, 1.0, torch.stack(biases).sum(0) if biases else None)


def rank_and_scale(config: Any, *names: str) -> tuple[int, float]:
    """Return rank and scale of a module from peft's settings, as peft computes them.

    The scale is alpha / r, or alpha / sqrt(r) with rs-LoRA (arXiv 2312.03732).

    Args:
        config: A LoraConfig.
        names: Names of the module. The first one that a pattern matches is used: a file may have
            its own name, of another program's network, before diffusers' name.
    """
    rank = _of_pattern(config.rank_pattern, names, config.r)
    alpha = _of_pattern(config.alpha_pattern, names, config.lora_alpha)
    return rank, alpha / (math.sqrt(rank) if config.use_rslora else rank)


def _of_pattern(patterns: Mapping[str, Any], names: Iterable[str], default: Any) -> Any:
    keys = (get_pattern_key(list(patterns), name) for name in names)
    return next((patterns[key] for key in keys if key in patterns), default)


def config_of_expert(config: LoraConfig, expert: str, names: Sequence[str]) -> LoraConfig:
    """Return peft's settings of a pair of experts for one of them.

    Args:
        config: Settings of the pair. Its layer names and patterns may begin with an expert's name.
        expert: Name of the expert.
        names: Names of both.

    Returns:
        Settings with the layer names of the expert's own network.
    """
    others = tuple(f"{name}." for name in names if name != expert)
    own = copy.deepcopy(config)
    if not isinstance(config.target_modules, str):
        kept = [name for name in config.target_modules or () if not name.startswith(others)]
        own.target_modules = sorted(name.removeprefix(f"{expert}.") for name in kept)
    for kind in ("rank_pattern", "alpha_pattern"):
        patterns = {key.removeprefix("^"): value for key, value in getattr(config, kind).items()}
        of_expert = {
            f"^{key.removeprefix(f'{expert}.')}": value
            for key, value in patterns.items()
            if not key.startswith(others)
        }
        setattr(own, kind, of_expert)
    return own


def weights_of_state(
    state: Mapping[str, Tensor], alpha: float | None = None, *, where: str = "the LoRA"
) -> LoraWeights:
    """Make a LoRA from tensors by peft's names, with one alpha for all layers.

    Args:
        state: A [r, in], B [out, r] and bias [out], see `layouts.adapted_modules`.
        alpha: None uses each layer's rank, i.e. scale 1.
        where: Name of the result in messages.
    """
    layers = {}
    for name in adapted_modules(dict(state)):
        a, b = state[f"{name}.lora_A.weight"], state[f"{name}.lora_B.weight"]
        scale = 1.0 if alpha is None else alpha / len(a)
        layers[name] = LoraLayer(a, b, scale, state.get(f"{name}.lora_B.bias"))
    return LoraWeights(layers, where)


def weights_of_config(state: Mapping[str, Tensor], config: Any) -> LoraWeights:
    """Make a LoRA from tensors by peft's names and peft's settings.

    Args:
        state: A [r, in], B [out, r] and bias [out], see `layouts.adapted_modules`.
        config: A LoraConfig.
    """
    layers = {
        name: LoraLayer(
            state[f"{name}.lora_A.weight"],
            state[f"{name}.lora_B.weight"],
            rank_and_scale(config, name)[1],
            state.get(f"{name}.lora_B.bias"),
        )
        for name in adapted_modules(dict(state))
    }
    return LoraWeights(layers)


@torch.no_grad()
def effect(a: Tensor, b: Tensor, scale: float, seed: int = 0) -> Tensor:
    """Compute scale * B A x for one random x, in order to compare LoRAs.

    Args:
        a: [r, in].
        b: [out, r].
        scale: The layer's scale.
        seed: Seed of x.

    Returns:
        [out] float32.
    """
    a, b = a.detach().float().flatten(1), b.detach().float().flatten(1)
    x = torch.randn(a.shape[1], generator=torch.Generator().manual_seed(seed)).to(a.device)
    return scale * (b @ (a @ x))
