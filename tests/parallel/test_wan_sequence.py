"""Ranks that share the tokens of Wan compute and learn the same as one rank."""

from __future__ import annotations

import os
from copy import deepcopy

import pytest
import torch
from families.wan import tiny_transformer
from ranks import run_ranks

from tdmvid.adapters.lora import attach
from tdmvid.backbones.wan import Wan
from tdmvid.config import LoraSettings
from tdmvid.parallel import launch

FRAMES, HEIGHT, WIDTH = 3, 4, 10  # 30 tokens and 3 heads: neither is a multiple of 4


def learn(network, inputs, target) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Return the output, and the gradient of every adapter."""
    out = network(**inputs, return_dict=False)[0]
    (out - target).square().sum().backward()
    return out.detach(), {name: p.grad for name, p in network.named_parameters() if p.requires_grad}


def compare(checkpointing: bool, per_token: bool) -> tuple[float, float, float]:
    """Return the errors of the output and of gradients averaged over ranks, relative to the largest
    values, and the smallest gradient.
    """
    world = launch.start("deepspeed", timeout_minutes=0.5, sequence=int(os.environ["WORLD_SIZE"]))
    torch.manual_seed(0)
    one = attach(tiny_transformer(), LoraSettings(rank=2, alpha=2), Wan.lora_targets, seed=0)
    with torch.no_grad():
        for name, parameter in one.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.3 * torch.randn(parameter.shape))
    shared = deepcopy(one)
    Wan.share_tokens(shared, world.sequence)
    if checkpointing:
        shared.enable_gradient_checkpointing()
    x, target = torch.randn(2, 2, 4, FRAMES, HEIGHT, WIDTH)
    times = torch.tensor([999.0, 120.5])
    if per_token:  # as in Wan 2.2 TI2V with a given first frame
        times = times[:, None].repeat(1, FRAMES * HEIGHT * WIDTH // 4)
        times[:, : HEIGHT * WIDTH // 4] = 0
    inputs = {
        "hidden_states": x,
        "timestep": times,
        "encoder_hidden_states": torch.randn(2, 7, 16),
    }
    expected, expected_gradients = learn(one, inputs, target)
    out, gradients = learn(shared, inputs, target)
    errors, smallest = [], float("inf")
    for name, wanted in expected_gradients.items():
        torch.distributed.all_reduce(gradients[name])
        size = wanted.abs().max()
        errors.append(((gradients[name] / world.size - wanted).abs().max() / size).item())
        smallest = min(smallest, size.item())
    launch.finish()
    return ((out - expected).abs().max() / expected.abs().max()).item(), max(errors), smallest


@pytest.mark.parametrize(
    "ranks, checkpointing, per_token",
    [(2, False, False), (2, True, False), (4, False, False), (2, True, True), (4, False, True)],
)
@pytest.mark.slow
def test_ranks_that_share_a_video_give_the_output_and_gradients_of_one(
    ranks, checkpointing, per_token
):
    for output, gradient, smallest in run_ranks(ranks, compare, checkpointing, per_token):
        assert output < 1e-5 and gradient < 1e-4 and smallest > 1e-6
