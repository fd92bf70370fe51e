"""Ranks that share the tokens of Wan compute and learn the same as one rank."""

from __future__ import annotations

import os

import pytest
import shared_sequence
import torch
from families.wan import tiny_transformer
from ranks import run_ranks

from tdmvid.backbones.wan import Wan
from tdmvid.parallel import launch

FRAMES, HEIGHT, WIDTH = 3, 4, 10  # 30 tokens and 3 heads: neither is a multiple of 4


def compare(checkpointing: bool, per_token: bool) -> tuple[float, float, float]:
    """Return the errors of the output and of gradients averaged over ranks, relative to the largest
    values, and the smallest gradient.
    """
    world = launch.start("deepspeed", timeout_minutes=0.5, sequence=int(os.environ["WORLD_SIZE"]))
    torch.manual_seed(0)
    network = tiny_transformer()
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
    found = shared_sequence.compare(
        Wan, network, inputs, target, world, checkpointing=checkpointing
    )
    launch.finish()
    return found


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
