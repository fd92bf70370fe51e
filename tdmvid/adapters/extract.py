"""A LoRA from weights: the low-rank part of a full fine-tune."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from ..backbones.base import Backbone
from ..config import LoraSettings
from .lora import attach_weights
from .weights import LoraWeights

OVERSAMPLING, ITERATIONS = (
    16,
    6,
)  # of the randomised SVD (arXiv 0909.4061): its error is then that of an exact one to a few digits


@torch.no_grad()
def extract(
    base: nn.Module, tuned: dict[str, Tensor], rank: int
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The best rank-r approximation of every linear layer's change: a state dict of alpha = r, and
    its errors.

    tuned: the fine-tune's parameters by name. Errors are norms of what is missing relative to the
    change: per layer, and `error` over all parameters, those that no LoRA holds (`left_out`)
    included.
    """
    if rank < 1:
        raise ValueError(f"rank={rank}: at least 1")
    own = dict(base.named_parameters())
    if own.keys() != tuned.keys():
        raise ValueError(
            f"the fine-tune is of another model: {sorted(own.keys() ^ tuned.keys())[0]} is in one"
            " of them only"
        )
    linear = {
        f"{name}.weight": name
        for name, layer in base.named_modules()
        if isinstance(layer, nn.Linear)
    }
    state: dict[str, Tensor] = {}
    layers: dict[str, float] = {}
    left_out: list[str] = []
    missing = whole = 0.0
    for key, parameter in own.items():
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
        raise ValueError("the fine-tune changes no linear layer: there is nothing to extract")
    return state, {
        "error": math.sqrt(missing / whole),
        "rank": rank,
        "layers": layers,
        "left_out": left_out,
    }


def _factors(change: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """A [r, in] and B [out, r] with B A nearest to `change` [out, in]; zeros beyond its own
    rank.
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
    """Attach a LoRA to the backbone's network.

    Returns:
        The module, its adapter tensors by parameter name, and rank and alpha of most layers.
    """
    module = attach_weights(backbone.network, lora)
    tensors = {name: p.detach().clone() for name, p in module.named_parameters() if p.requires_grad}
    return module, tensors, LoraSettings(lora.rank, lora.alpha, tuple(lora.layers))
