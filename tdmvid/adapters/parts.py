"""The tensors of one module in a LoRA file, by kind."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from .layouts.joined import split_factors

_OUTPUTS = ("b", "bias", "diff", "diff_b")
"""Kinds of tensors with a row for each output."""


@dataclass
class Parts:
    """The tensors of one module, by kind."""

    layout: str
    tensors: dict[str, Tensor] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)
    joins: tuple[str, ...] = ()
    """Modules that the file holds as one layer."""

    def split(self) -> dict[str, Parts]:
        """Return the tensors of each joined module."""
        count, out = len(self.joins), {name: Parts(self.layout) for name in self.joins}
        a, b, both = self.tensors.get("a"), self.tensors.get("b"), []
        if a is not None and b is not None and b.dim() == 2 and 0 < len(a) == b.shape[1]:
            both = split_factors(a, b, count)
        for i, part in enumerate(out.values()):
            part.keys = dict(self.keys)
            part.tensors = {
                kind: x.tensor_split(count)[i] if kind in _OUTPUTS else x
                for kind, x in self.tensors.items()
            }
            if both:
                part.tensors |= {"a": both[i][0], "b": both[i][1]}
            if a is not None and both and "alpha" in self.tensors:  # the scale is alpha / rank
                part.tensors["alpha"] = self.tensors["alpha"] * len(both[i][0]) / len(a)
        return out
