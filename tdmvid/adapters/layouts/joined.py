"""Projections that another program holds as one layer, with their outputs one after another.

Shapes: r rank, n number of projections, D outputs of one projection.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
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


Joining = Callable[[str], Joined | None]
"""A diffusers module name -> the layer that holds it, or None if it is a layer of its own."""
_QKV = {
    f"{before}{part}{after}": f"{before}qkv{after}"
    for before, after in (("to_", ""), ("add_", "_proj"))
    for part in "qkv"
}


def join_qkv(name: str) -> Joined | None:
    """Join queries, keys and values of an attention, and those of its text stream."""
    attention, _, part = name.rpartition(".")
    if part not in _QKV or not re.fullmatch(r".+\.attn", attention):
        return None
    joint = f"{attention}.{_QKV[part]}"
    return Joined(joint, tuple(f"{attention}.{one}" for one in _QKV if _QKV[one] == _QKV[part]))


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


def split_factors(a: Tensor, b: Tensor, count: int) -> list[tuple[Tensor, Tensor]]:
    """Split the factors of a joint layer. Ranks that do not reach a projection are dropped.

    Args:
        a: [r, in].
        b: [n D, r].
        count: Number of projections n.

    Returns:
        A and B of each projection, of rank 1 at least.
    """
    parts = []
    for block in b.tensor_split(count):
        used = block.any(0)
        used[0] |= not used.any()
        parts.append((a[used], block[:, used]))
    return parts
