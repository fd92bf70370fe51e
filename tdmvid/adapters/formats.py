"""LoRA files as other programs read them, from a peft state dict and back.

A state dict here is diffusers' own: `<module>.lora_A.weight` [r, in], `<module>.lora_B.weight`
[out, r] and, of peft's `lora_bias`, `<module>.lora_B.bias` [out]; every layer adds
alpha / r * (B A x + bias).

| format | keys | alpha |
|---|---|---|
| diffusers | `transformer.<module>.lora_A.weight` (UNets: `unet.`) | in the file's metadata |
| comfyui | `<stem>.lora_A.weight`, `.lora_B.weight`, bias as `.diff_b` | `<stem>.alpha`
(comfy/weight_adapter/lora.py: alpha / r, 1 without) |
| kohya | `<stem>.lora_down.weight`, `.lora_up.weight` | `<stem>.alpha` (sd-scripts
networks/lora.py: r without) |

What we write for others has alpha = r, with the scale in B, and for ComfyUI no alpha at all: it is
right in loaders that pass over alphas, or stumble over them (diffusers', of Wan's embeddings). The
stems are the family's (backbones/consumers.py).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

SUFFIXES = {
    "comfyui": ("lora_A.weight", "lora_B.weight"),
    "kohya": ("lora_down.weight", "lora_up.weight"),
}
FORMATS = ("diffusers", *SUFFIXES)
Names = Callable[[str], str]


def modules(state: dict[str, Tensor]) -> list[str]:
    """The adapted modules, in order; ValueError for a key that is none of the three."""
    found = {}
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


def convert(
    state: dict[str, Tensor], alpha: float, consumer: str, stem: Names
) -> dict[str, Tensor]:
    """The tensors of a comfyui or kohya file; ValueError for what the consumer cannot hold."""
    down, up = SUFFIXES[consumer]
    out: dict[str, Tensor] = {}
    for name in modules(state):
        a, b, bias = (
            state.get(f"{name}.lora_{factor}") for factor in ("A.weight", "B.weight", "B.bias")
        )
        key = stem(name)
        if f"{key}.{up}" in out:
            raise ValueError(f"{name}: another module is called {key} too in {consumer}'s names")
        out |= {f"{key}.{down}": a, f"{key}.{up}": (b.float() * (alpha / len(a))).to(b.dtype)}
        if consumer == "kohya":  # whose files always have it
            out[f"{key}.alpha"] = torch.tensor(float(len(a)))
        if bias is None or not bias.any():
            continue
        if consumer != "comfyui":
            raise ValueError(
                f"{name} has a bias, which {consumer}'s format cannot hold: use comfyui or"
                " diffusers"
            )
        out[f"{key}.diff_b"] = bias * (alpha / len(a))  # ComfyUI adds it as it is
    return out


def restore(
    tensors: dict[str, Tensor], consumer: str, stem: Names, names: list[str]
) -> dict[str, Tensor]:
    """A diffusers state dict of alpha = r from a comfyui or kohya file, applying its alphas as the
    consumer does.

    names: the modules that may be adapted. ValueError for a key that the consumer would not load.
    """
    down, up = SUFFIXES[consumer]
    left, state = dict(tensors), {}
    for name in names:
        key = stem(name)
        if f"{key}.{up}" not in left:
            continue
        a, b = left.pop(f"{key}.{down}"), left.pop(f"{key}.{up}")
        alpha = left.pop(f"{key}.alpha", None)
        scale = 1.0 if alpha is None else alpha.item() / len(a)
        state |= {
            f"{name}.lora_A.weight": a,
            f"{name}.lora_B.weight": (b.float() * scale).to(b.dtype),
        }
        bias = left.pop(f"{key}.diff_b", None)
        if bias is not None:
            state[f"{name}.lora_B.bias"] = bias
    if left:
        raise ValueError(
            f"{consumer} would not load {next(iter(left))} ({len(left)} keys): its stem names no"
            " module of this model"
        )
    return state
