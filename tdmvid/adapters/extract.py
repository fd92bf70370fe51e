"""Extract a LoRA from a full fine-tune: the low-rank part of its weight changes.

Shapes: r rank.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from ..backbones.base import Backbone
from ..config import LoraSettings
from ..data.progress import progress
from .lora import attach_weights
from .weights import LoraWeights

OVERSAMPLING, ITERATIONS = (
    16,
    6,
)  # randomised SVD (arXiv 0909.4061); with these its error matches an exact SVD's to a few digits


@torch.no_grad()
def extract(
    base: nn.Module, tuned: dict[str, Tensor], rank: int
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Compute the best rank-r approximation of the change of every linear layer.

    Args:
        base: The base network.
        tuned: The fine-tune's parameters by name.
        rank: r.

    Returns:
        The LoRA and its errors. The LoRA is a state dict with alpha = r and, per layer,
        `lora_A.weight` [r, in] and `lora_B.weight` [out, r]. Errors are norms of the missing part
        relative to the change: `layers` per layer, and `error` over all parameters, including those
        that a LoRA cannot hold, whose names are in `left_out`.

    Raises:
        ValueError: The rank is below 1, the fine-tune is of another model, or it changes no linear
            layer.
    """
    own = dict(base.named_parameters())
    _check_input(own, tuned, rank)
    linear = {
        f"{name}.weight": name
        for name, layer in base.named_modules()
        if isinstance(layer, nn.Linear)
    }
    state: dict[str, Tensor] = {}
    layers: dict[str, float] = {}
    left_out: list[str] = []
    missing = whole = 0.0
    with progress("extracting the LoRA", total=len(own), unit="layer") as bar:
        for key, parameter in own.items():
            bar.update()
            change = tuned[key].to(parameter.device).float() - parameter.float()
            size = change.square().sum().item()
            if size == 0:
                continue
            whole += size
            if key not in linear:
                left_out.append(key)
                missing += size
                continue
            a, b = _factors(change, rank)
            rest = (change - b @ a).square().sum().item()
            missing += rest
            name = linear[key]
            layers[name] = math.sqrt(rest / size)
            state |= {
                f"{name}.lora_A.weight": a.cpu().contiguous(),
                f"{name}.lora_B.weight": b.cpu().contiguous(),
            }
    if not state:
        raise ValueError(
            "the fine-tune changes no linear layer, so there is nothing to extract: check that it"
            " differs from the base"
        )
    return state, {
        "error": math.sqrt(missing / whole),
        "rank": rank,
        "layers": layers,
        "left_out": left_out,
    }


def _check_input(own: dict[str, nn.Parameter], tuned: dict[str, Tensor], rank: int) -> None:
    if rank < 1:
        raise ValueError(f"rank={rank}: use at least 1")
    if own.keys() != tuned.keys():
        raise ValueError(
            f"the fine-tune is of another model: {sorted(own.keys() ^ tuned.keys())[0]} is in only"
            " one of them; use the base that was fine-tuned"
        )


def _factors(change: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return A [r, in] and B [out, r] with B A closest to `change` [out, in].

    Ranks beyond that of `change` are zero.
    """
    with torch.random.fork_rng(devices=[change.device] if change.is_cuda else []):
        torch.manual_seed(0)
        u, s, v = torch.svd_lowrank(
            change, q=min(rank + OVERSAMPLING, *change.shape), niter=ITERATIONS
        )
    kept, root = min(rank, len(s)), s[:rank].sqrt()
    a, b = change.new_zeros(rank, change.shape[1]), change.new_zeros(change.shape[0], rank)
    a[:kept], b[:, :kept] = (v[:, :kept] * root).T, u[:, :kept] * root
    return a, b


def adapt(
    backbone: Backbone, lora: LoraWeights
) -> tuple[nn.Module, dict[str, Tensor], LoraSettings]:
    """Attach a LoRA to the backbone's network, in place.

    Args:
        backbone: The base.
        lora: The LoRA to attach.

    Returns:
        The adapted module, its adapter tensors by parameter name, and the rank and alpha of most
        layers.
    """
    module = attach_weights(backbone.network, lora)
    tensors = {name: p.detach().clone() for name, p in module.named_parameters() if p.requires_grad}
    return module, tensors, LoraSettings(lora.rank, lora.alpha, tuple(lora.layers))
