"""Ranks that share the tokens of HunyuanVideo compute and learn the same as one rank."""

from __future__ import annotations

import os

import pytest
import shared_sequence
import torch
from families.hunyuan_video import tiny_transformer
from ranks import run_ranks

from tdmvid.backbones.hunyuan_network import HunyuanVideo15Transformer3DModel
from tdmvid.backbones.hunyuan_video import HunyuanVideo
from tdmvid.parallel import launch

FRAMES, HEIGHT, WIDTH = 3, 2, 5
TEXT, QUOTED = 7, 4
"""41 tokens and 3 heads: neither is a multiple of 2 or 4. On 4 ranks the first has only text."""


def compare(checkpointing: bool) -> tuple[float, float, float]:
    """See `shared_sequence.compare`; the two samples have different numbers of valid tokens."""
    world = launch.start("deepspeed", timeout_minutes=0.5, sequence=int(os.environ["WORLD_SIZE"]))
    torch.manual_seed(0)
    network = tiny_transformer(HunyuanVideo15Transformer3DModel, num_attention_heads=3)
    HunyuanVideo.fuse(network)
    latents, target = torch.randn(2, 2, 9, FRAMES, HEIGHT, WIDTH)
    valid, quoted = (torch.arange(count) for count in (TEXT, QUOTED))
    inputs = {
        "hidden_states": latents,
        "timestep": torch.tensor([999.0, 120.5]),
        "encoder_hidden_states": torch.randn(2, TEXT, 16),
        "encoder_attention_mask": valid < torch.tensor([[TEXT], [3]]),
        "encoder_hidden_states_2": torch.randn(2, QUOTED, 12),
        "encoder_attention_mask_2": quoted < torch.tensor([[2], [0]]),
    }
    found = shared_sequence.compare(
        HunyuanVideo, network, inputs, target[:, :4], world, checkpointing=checkpointing
    )
    launch.finish()
    return found


@pytest.mark.parametrize("ranks, checkpointing", [(2, False), (2, True), (4, False)])
@pytest.mark.slow
def test_ranks_that_share_a_video_give_the_output_and_gradients_of_one(ranks, checkpointing):
    for output, gradient, smallest in run_ranks(ranks, compare, checkpointing):
        assert output < 1e-5 and gradient < 1e-4 and smallest > 1e-6
