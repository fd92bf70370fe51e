"""What a key layout is: the names of modules by pipeline class, and reading and writing by them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

Stem = Callable[[str], str]
"""A diffusers module name ("transformer_blocks.0.attn1.to_q") -> what its keys begin with."""


@dataclass(frozen=True)
class KeyLayout:
    """The keys of a LoRA file as another program names them."""

    name: str
    down: str
    up: str
    """What the keys of a layer's two factors end with."""
    stems: Mapping[str, Stem]
    """Diffusers pipeline class -> names of its network's modules."""
    bias: str = ""
    """What the key of a bias ends with; empty if the layout has no place for one."""
    states_alpha: bool = False
    """Whether its files always have an alpha for each layer."""

    def write(
        self, state: dict[str, Tensor], alpha: float | Mapping[str, float], pipeline_class: str
    ) -> dict[str, Tensor]:
        """Return the tensors of a file with alpha = r.

        Args:
            state: diffusers' state dict, see `adapted_modules`.
            alpha: of all layers, or of each by its name.
            pipeline_class: the diffusers pipeline class of the base.

        Raises:
            ValueError: the layout cannot hold a bias, or two modules get one name.
        """
        stem, out = self.stems[pipeline_class], dict[str, Tensor]()
        for name in adapted_modules(state):
            a, b = state[f"{name}.lora_A.weight"], state[f"{name}.lora_B.weight"]
            own = alpha[name] if isinstance(alpha, Mapping) else alpha
            key, scale = stem(name), own / len(a)
            if f"{key}.{self.up}" in out:
                raise ValueError(
                    f"{name}: another module is called {key} too in {self.name}'s names"
                )
            out |= {f"{key}.{self.down}": a, f"{key}.{self.up}": (b.float() * scale).to(b.dtype)}
            if self.states_alpha:
                out[f"{key}.alpha"] = torch.tensor(float(len(a)))
            bias = state.get(f"{name}.lora_B.bias")
            if bias is None or not bias.any():
                continue
            if not self.bias:
                raise ValueError(
                    f"{name} has a bias, which {self.name}'s format cannot hold: use comfyui or"
                    " diffusers"
                )
            out[f"{key}.{self.bias}"] = bias * scale  # the program adds it as it is
        return out

    def read(
        self, tensors: dict[str, Tensor], pipeline_class: str, modules: list[str]
    ) -> dict[str, Tensor]:
        """Return diffusers' state dict of alpha = r of a file that `write` made, to check it.

        Files of others are read by adapters/read.py.

        Args:
            tensors: of a file in this layout.
            pipeline_class: the diffusers pipeline class of the base.
            modules: names of the modules that may be adapted.

        Raises:
            ValueError: the program would not load one of the keys.
        """
        stem, left, state = self.stems[pipeline_class], dict(tensors), dict[str, Tensor]()
        for name in modules:
            key = stem(name)
            if f"{key}.{self.up}" not in left:
                continue
            a, b = left.pop(f"{key}.{self.down}"), left.pop(f"{key}.{self.up}")
            alpha = left.pop(f"{key}.alpha", None)
            scale = 1.0 if alpha is None else alpha.item() / len(a)
            state |= {
                f"{name}.lora_A.weight": a,
                f"{name}.lora_B.weight": (b.float() * scale).to(b.dtype),
            }
            bias = left.pop(f"{key}.{self.bias}", None) if self.bias else None
            if bias is not None:
                state[f"{name}.lora_B.bias"] = bias
        if left:
            raise ValueError(
                f"{self.name} would not load {next(iter(left))} ({len(left)} keys): its stem names"
                " no module of this model"
            )
        return state


def adapted_modules(state: dict[str, Tensor]) -> list[str]:
    """Return the names of the modules that a state dict adapts, in its order.

    Raises:
        ValueError: a key is none of `<module>.lora_A.weight`, `.lora_B.weight` and `.lora_B.bias`,
            or a module lacks one of its two factors.
    """
    found: dict[str, set[str]] = {}
    for key in state:
        name, dot, factor = key.rpartition(".lora_")
        if not dot or factor not in ("A.weight", "B.weight", "B.bias"):
            raise ValueError(
                f"{key} is no key of a LoRA: <module>.lora_A.weight, .lora_B.weight and"
                " .lora_B.bias are"
            )
        found.setdefault(name, set()).add(factor)
    for name, factors in found.items():
        if not {"A.weight", "B.weight"} <= factors:
            raise ValueError(
                f"{name} has only lora_{', lora_'.join(sorted(factors))}: a LoRA layer has both"
                " factors"
            )
    return list(found)
