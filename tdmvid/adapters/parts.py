"""The tensors of one module in a LoRA file, by kind."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from .layouts.joined import Joined, split_factors

_OUTPUTS = ("b", "bias", "diff", "diff_b")
"""Kinds of tensors with a row for each output."""


@dataclass
class Parts:
    """The tensors of one module, by kind."""

    layout: str
    tensors: dict[str, Tensor] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)
    joint: Joined | None = None
    """The layer of the file, if it holds several modules as one or in another order."""
    rank: int = 0
    """Rank of the joint layer that these tensors are from; 0 if it was no joint one."""
    module: str = ""
    """Name of the module in the file, without peft's prefix."""

    def split(self) -> dict[str, Parts]:
        """Return the tensors of each module of the joint layer."""
        assert self.joint is not None
        out = {
            name: Parts(self.layout, keys=dict(self.keys), module=self.module)
            for name in self.joint.parts
        }
        for kind, x in self.tensors.items():
            own = self.joint.split(x) if kind in _OUTPUTS else (x,) * len(out)
            for part, tensor in zip(out.values(), own, strict=True):
                part.tensors[kind] = tensor
        a, b = self.tensors.get("a"), self.tensors.get("b")
        if a is None or b is None or b.dim() != 2 or not 0 < len(a) == b.shape[1]:
            return out
        for part, (own_a, own_b) in zip(
            out.values(), split_factors(a, self.joint.split(b)), strict=True
        ):
            part.tensors |= {"a": own_a, "b": own_b}
            if "alpha" in self.tensors:  # the scale is alpha / rank
                part.tensors["alpha"] = self.tensors["alpha"].double() * len(own_a) / len(a)
            part.rank = len(a)
        return out
