"""Compare a network on one rank with the same network on ranks that share its tokens."""

from __future__ import annotations

from copy import deepcopy

import torch

from tdmvid.adapters.lora import attach
from tdmvid.config import LoraSettings
from tdmvid.parallel import launch


def learn(network, inputs, target) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Return the output, and the gradient of every adapter that has one."""
    out = network(**inputs, return_dict=False)[0]
    (out - target).square().sum().backward()
    trained = {name: p for name, p in network.named_parameters() if p.requires_grad}
    return out.detach(), {name: p.grad for name, p in trained.items() if p.grad is not None}


def compare(
    family, network, inputs, target, world: launch.World, *, checkpointing: bool
) -> tuple[float, float, float]:
    """Return the errors of the output and of gradients averaged over ranks, relative to the largest
    values, and the smallest gradient.
    """
    one = attach(network, LoraSettings(rank=2, alpha=2), family.lora_targets, seed=0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in one.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    shared = deepcopy(one)
    family.share_tokens(shared, world.sequence)
    if checkpointing:
        shared.enable_gradient_checkpointing()
    expected, expected_gradients = learn(one, inputs, target)
    out, gradients = learn(shared, inputs, target)
    errors, smallest = [], float("inf")
    for name, wanted in expected_gradients.items():
        torch.distributed.all_reduce(gradients[name])
        size = wanted.abs().max()
        if size == 0:  # the text stream of a last block has no effect on the output
            assert not gradients[name].any()
            continue
        errors.append(((gradients[name] / world.size - wanted).abs().max() / size).item())
        smallest = min(smallest, size.item())
    assert len(errors) > 0.8 * sum(p.requires_grad for p in one.parameters())
    return ((out - expected).abs().max() / expected.abs().max()).item(), max(errors), smallest
