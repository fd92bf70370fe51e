"""Attention over tokens on several ranks equals local attention, for any length and number of
heads.
"""

from __future__ import annotations

import copy
import os

import pytest
import torch
import torch.nn.functional as nnf
from ranks import run_ranks

from tdmvid.parallel import launch


def attention(q, k, v):
    """Compute attention with PyTorch on [B, L, H, D]."""
    return nnf.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)


def compare(cases: list[tuple[int, int]]) -> dict:
    """Return the largest errors of outputs, and of gradients summed over ranks, for each (length,
    heads).
    """
    world = launch.start("deepspeed", timeout_minutes=0.5, sequence=int(os.environ["WORLD_SIZE"]))
    sharing, found = world.sequence, {}
    for length, heads in cases:
        torch.manual_seed(length * heads)
        whole = torch.randn(3, 2, length, heads, 4, requires_grad=True)
        target = torch.randn(2, length, heads, 4)
        expected = attention(*whole)
        (expected_gradient,) = torch.autograd.grad(((expected - target) ** 2).sum(), whole)
        out = sharing.attend(*(sharing.shard(x) for x in whole), length, attention)
        joined = sharing.gather(out, length)
        (gradient,) = torch.autograd.grad(((joined - target) ** 2).sum(), whole)
        torch.distributed.all_reduce(gradient)
        scale = (
            sharing.size
        )  # all ranks compute the same loss, and the gather's backward adds them up
        found[length, heads] = (
            (joined - expected).abs().max().item(),
            (gradient / scale - expected_gradient).abs().max().item(),
        )
    launch.finish()
    return found


@pytest.mark.parametrize("ranks", [2, 4])
def test_any_length_and_any_number_of_heads(ranks):
    cases = [(12, 4), (13, 3), (17, 5), (3, 6), (2, 1)]
    for found in run_ranks(ranks, compare, cases):
        for case, (output, gradient) in found.items():
            assert output < 1e-6 and gradient < 1e-5, case


def refuse() -> str:
    try:
        launch.start("deepspeed", timeout_minutes=0.5, sequence=3)
    except ValueError as error:
        return str(error)
    finally:
        launch.finish()


def test_a_sequence_group_must_divide_the_ranks():
    assert (
        run_ranks(2, refuse)
        == [
            "parallel.sequence=3 does not divide 2 ranks: use 1, 2, or start another number of"
            " ranks (with --plan: --ranks 3)"
        ]
        * 2
    )


def copied() -> bool:
    group = launch.start("deepspeed", timeout_minutes=0.5, sequence=2).sequence
    same = copy.deepcopy({"processor": group})["processor"] is group
    launch.finish()
    return same


def test_a_copied_network_talks_to_the_same_ranks():
    """Exporting a fully trained student copies its network; a process group cannot be copied."""
    assert run_ranks(2, copied) == [True, True]


def waits() -> float:
    group = launch.start("deepspeed", timeout_minutes=90, sequence=2).sequence.group
    seconds = group._get_backend(torch.device("cpu")).options._timeout.total_seconds()
    launch.finish()
    return seconds


def test_a_sequence_group_waits_as_long_as_the_run():
    """One rank of a group decodes samples while the others wait. The default limit of NCCL is ten
    minutes.
    """
    assert run_ranks(2, waits) == [90 * 60.0] * 2
