"""A key layout: module names per pipeline class, and reading and writing files with them.

Shapes: r rank.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .joined import Joining, join_layers, split_factors

Stem = Callable[[str], str]
"""A diffusers module name ("transformer_blocks.0.attn1.to_q") -> the prefix of its keys."""


@dataclass(frozen=True)
class KeyLayout:
    """The keys of a LoRA file in another program's naming."""

    name: str
    down: str
    up: str
    """Suffixes of the keys of a layer's two factors, A (`down`) and B (`up`)."""
    stems: Mapping[str, Stem]
    """Diffusers pipeline class -> naming of its network's modules."""
    bias: str = ""
    """Suffix of the key of a bias; empty if the layout does not support biases."""
    states_alpha: bool = False
    """Whether files contain an alpha for each layer."""
    joined: Mapping[str, Joining] = field(default_factory=dict)
    """Diffusers pipeline class -> which of its modules the program holds as one layer."""

    def write(
        self, state: dict[str, Tensor], alpha: float | Mapping[str, float], pipeline_class: str
    ) -> dict[str, Tensor]:
        """Convert a LoRA to the tensors of a file with alpha = r.

        Args:
            state: A [r, in], B [out, r] and bias [out] in diffusers' names, see `adapted_modules`.
            alpha: For all layers, or by module name.
            pipeline_class: The diffusers pipeline class of the base.

        Returns:
            The file's tensors by key: A, B and, if the layout has them, the scaled bias and alpha.

        Raises:
            ValueError: The layout cannot hold a bias, or two modules get the same name.
        """
        stem, out = self.stems[pipeline_class], dict[str, Tensor]()
        scales = {
            name: (alpha[name] if isinstance(alpha, Mapping) else alpha)
            / len(state[f"{name}.lora_A.weight"])
            for name in adapted_modules(state)
        }
        if pipeline_class in self.joined:
            state, scales = join_layers(state, scales, self.joined[pipeline_class])
        for name, scale in scales.items():
            a, b = state[f"{name}.lora_A.weight"], state[f"{name}.lora_B.weight"]
            key = stem(name)
            if f"{key}.{self.up}" in out:
                raise ValueError(
                    f"{name}: another module is also named {key} in {self.name}'s layout; remove"
                    " one of them from lora.targets"
                )
            out |= {f"{key}.{self.down}": a, f"{key}.{self.up}": (b.float() * scale).to(b.dtype)}
            if self.states_alpha:
                out[f"{key}.alpha"] = torch.tensor(float(len(a)))
            bias = state.get(f"{name}.lora_B.bias")
            if bias is None or not bias.any():
                continue
            if not self.bias:
                raise ValueError(
                    f"{name} has a bias, which {self.name}'s format does not support: use comfyui"
                    " or diffusers"
                )
            out[f"{key}.{self.bias}"] = bias * scale  # the program adds it unscaled
        return out

    def read(
        self, tensors: dict[str, Tensor], pipeline_class: str, modules: list[str]
    ) -> dict[str, Tensor]:
        """Convert a file made by `write` back to diffusers' state dict with alpha = r, to check it.

        Files of other origin are read by adapters/read.py.

        Args:
            tensors: The tensors of the file.
            pipeline_class: The diffusers pipeline class of the base.
            modules: Names of the modules that may be adapted.

        Returns:
            A [r, in], B [out, r] and bias [out] in diffusers' names, see `adapted_modules`.

        Raises:
            ValueError: The program would not load one of the keys.
        """
        stem, left, state = self.stems[pipeline_class], dict(tensors), dict[str, Tensor]()
        joining = self.joined.get(pipeline_class, lambda name: None)
        for joint in dict.fromkeys(filter(None, map(joining, modules))):
            key = stem(joint.name)
            if f"{key}.{self.up}" not in left:
                continue
            a, b = left.pop(f"{key}.{self.down}"), left.pop(f"{key}.{self.up}")
            count = len(joint.parts)
            biases = left.pop(f"{key}.{self.bias}", torch.zeros(len(b))).chunk(count)
            for part, (own_a, own_b), own_bias in zip(
                joint.parts, split_factors(a, b.chunk(count)), biases, strict=True
            ):
                if part in modules:
                    state |= {f"{part}.lora_A.weight": own_a, f"{part}.lora_B.weight": own_b}
                    state |= {f"{part}.lora_B.bias": own_bias} if own_bias.any() else {}
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
                f"{self.name} would not load {next(iter(left))} ({len(left)} keys in total): it"
                " names no module of this model"
            )
        return state


def adapted_modules(state: dict[str, Tensor]) -> list[str]:
    """Return the names of the modules that a state dict adapts, in its order.

    Args:
        state: `<module>.lora_A.weight` [r, in], `<module>.lora_B.weight` [out, r] and optionally
            `<module>.lora_B.bias` [out].

    Raises:
        ValueError: A key has another form, or a module lacks one of its two factors.
    """
    found: dict[str, set[str]] = {}
    for key in state:
        name, dot, factor = key.rpartition(".lora_")
        if not dot or factor not in ("A.weight", "B.weight", "B.bias"):
            raise ValueError(
                f"{key} is not a key of a LoRA: use <module>.lora_A.weight, .lora_B.weight or"
                " .lora_B.bias"
            )
        found.setdefault(name, set()).add(factor)
    for name, factors in found.items():
        if not {"A.weight", "B.weight"} <= factors:
            raise ValueError(
                f"{name} has only lora_{', lora_'.join(sorted(factors))}: a LoRA layer needs"
                " lora_A.weight and lora_B.weight"
            )
    return list(found)
