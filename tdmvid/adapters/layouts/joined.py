"""Projections that another program holds as one layer, with their outputs one after another.

Shapes: r rank, n number of projections, D outputs of one projection.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Joined:
    """A layer that holds several projections of diffusers' network."""

    name: str
    """Named as if diffusers' network had it."""
    parts: tuple[str, ...]
    """The projections' modules, in the order of their outputs."""
    sizes: tuple[int, ...] = ()
    """Numbers of their outputs; empty if they are equal."""
    swapped: bool = False
    """Whether the program has the two halves of the outputs in the other order."""

    def split(self, outputs: Tensor) -> tuple[Tensor, ...]:
        """Split a tensor with a row for each output into those of the projections.

        Args:
            outputs: [n D, ...], or [sum of `sizes`, ...].
        """
        if self.swapped:
            outputs = outputs.roll(len(outputs) // 2, 0)
        if sum(self.sizes) == len(outputs):
            return torch.split(outputs, list(self.sizes))
        return outputs.tensor_split(len(self.parts))  # of another model, refused by its shape


Joining = Callable[[str], Joined | None]
"""A diffusers module name -> the layer that holds it, or None if it is a layer of its own."""
SWAPPED = ".swapped"
"""End of the name of a layer whose halves are in the other order."""
_QKV = {
    f"{before}{part}{after}": f"{before}qkv{after}"
    for before, after in (("to_", ""), ("add_", "_proj"))
    for part in "qkv"
}


def join_qkv(name: str) -> Joined | None:
    """Join queries, keys and values of an attention, and those of its text stream."""
    attention, _, part = name.rpartition(".")
    if part not in _QKV or not re.fullmatch(r".+\.(attn2?|attention)", attention):
        return None
    joint = f"{attention}.{_QKV[part]}"
    return Joined(joint, tuple(f"{attention}.{one}" for one in _QKV if _QKV[one] == _QKV[part]))


def join_flux(name: str) -> Joined | None:
    """Join the modules of FLUX.1: queries, keys and values, in single blocks with the MLP."""
    if match := re.fullmatch(
        r"(single_transformer_blocks\.\d+)\.(?:attn\.to_[qkv]|proj_mlp)", name
    ):
        parts = (*(f"attn.to_{one}" for one in "qkv"), "proj_mlp")
        return Joined(f"{match[1]}.linear1", tuple(f"{match[1]}.{part}" for part in parts))
    return _swap(name) if name == "norm_out.linear" else join_qkv(name)


def join_flux2(name: str) -> Joined | None:
    """Join the modules of FLUX.2. Its single blocks have joint layers in diffusers too."""
    return _swap(name) if name == "norm_out.linear" else join_qkv(name)


def join_sd3(modules: Iterable[str]) -> Joining:
    """Return the joining of SD3: queries, keys and values, and modulations with swapped halves.

    Args:
        modules: Names of the network's modules, in order.
    """
    contexts = [name for name in modules if name.endswith(".norm1_context.linear")]
    swapped = ("norm_out.linear", *contexts[-1:])
    return lambda name: _swap(name) if name in swapped else join_qkv(name)


def _swap(name: str) -> Joined:
    return Joined(name + SWAPPED, (name,), swapped=True)


def join_layers(
    state: dict[str, Tensor], scales: Mapping[str, float], joining: Joining
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Join the layers of a LoRA. The result adds exactly the same.

    Args:
        state: A [r, in], B [D, r] and bias [D] in diffusers' names.
        scales: Factor of each module's change.
        joining: Which modules form one layer.

    Returns:
        A [n r, in], B [n D, n r] and bias [n D] of the joint layers, and the other tensors; and the
        factors, which are in B for joint layers.
    """
    out, factors = dict(state), dict(scales)
    for joint in dict.fromkeys(filter(None, map(joining, scales))):
        own = [part for part in joint.parts if part in scales]
        a, b = ([out.pop(f"{part}.lora_{end}") for part in own] for end in ("A.weight", "B.weight"))
        bias = [out.pop(f"{part}.lora_B.bias", None) for part in own]
        blocks = [factors.pop(part) * x.float() for part, x in zip(own, b, strict=True)]
        rows, dtype, at = len(blocks[0]), b[0].dtype, 0
        whole = torch.zeros(len(joint.parts) * rows, sum(x.shape[1] for x in blocks))
        biases = torch.zeros(len(whole))
        for part, block, shift in zip(own, blocks, bias, strict=True):
            place = slice(joint.parts.index(part) * rows, (joint.parts.index(part) + 1) * rows)
            whole[place, at : at + block.shape[1]] = block
            at += block.shape[1]
            if shift is not None:
                biases[place] = scales[part] * shift.float()
        out[f"{joint.name}.lora_A.weight"] = torch.cat(a)
        out[f"{joint.name}.lora_B.weight"] = whole.to(dtype)
        if biases.any():
            out[f"{joint.name}.lora_B.bias"] = biases
        factors[joint.name] = 1.0
    return out, factors


def split_factors(a: Tensor, outputs: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Split the factors of a joint layer. Ranks that do not reach a projection are dropped.

    Args:
        a: [r, in].
        outputs: The rows of B of each projection, [D, r].

    Returns:
        A and B of each projection, of rank 1 at least.
    """
    parts = []
    for block in outputs:
        used = block.any(0)
        used[0] |= not used.any()
        parts.append((a[used], block[:, used]))
    return parts
