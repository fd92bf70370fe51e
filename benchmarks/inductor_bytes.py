"""Bytes that a block's kernels read and write, eager and by the compiler's own estimate.

    python -m benchmarks.inductor_bytes --config cogvideox2b_4nfe

One block of its own width with its adapters, forward and backward, in bfloat16 on a CPU. The
difference between two lengths is counted, so that weights do not matter: bytes a token, matrix
products and attention included.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch._inductor import metrics
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.stopwatch import table
from benchmarks.untrained import filled
from tdmvid.adapters.lora import attach
from tdmvid.backbones.cogvideox import CogVideoX
from tdmvid.backbones.registry import find_family
from tdmvid.cli.leave import run_program
from tdmvid.config import RunConfig, load_config

TEXT, SHORT, LONG = 32, 256, 512
"""Tokens of text, and of short and long videos."""


class _Bytes(TorchDispatchMode):
    """Bytes of the inputs and outputs of every operation that is no view."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        returns = func._schema.returns
        view = all(r.alias_info and not r.alias_info.is_write for r in returns)
        if not view and "empty" not in str(func):
            self.total += sum(map(_size, tree_leaves((args, kwargs, out))))
        return out


def _size(x: Any) -> int:
    if not isinstance(x, Tensor):
        return 0
    return math.prod(n for n, step in zip(x.shape, x.stride()) if step) * x.element_size()


def block_of(config: RunConfig, *, fused: bool) -> nn.Module:
    """The first block of a CogVideoX of its own width, adapted."""
    folder, family = find_family(config.model, weights=False)
    assert family is CogVideoX, "written for CogVideoX"
    settings = family.spec.network_class.load_config(folder, subfolder="transformer")
    with torch.device("meta"):
        network = family.spec.network_class.from_config(settings | {"num_layers": 1})
        network = nn.Module.to(network, torch.bfloat16).requires_grad_(False)
    network = filled(network, torch.device("cpu"))
    if fused:
        family.fuse(network)
    attach(network, config.lora, family.lora_targets, seed=0)
    return network.transformer_blocks[0]


def call(block: Any, tokens: int, rotary: bool) -> None:
    """One graded call and its backward pass."""
    width = block.attn1.to_q.in_features
    video = torch.randn(1, tokens, width, dtype=torch.bfloat16, requires_grad=True)
    text = torch.randn(1, TEXT, width, dtype=torch.bfloat16, requires_grad=True)
    time = torch.randn(1, block.norm1.linear.in_features, dtype=torch.bfloat16)
    angles = torch.randn(2, tokens, width // block.attn1.heads)
    a, b = block(video, text, time, tuple(angles) if rotary else None)
    (a.sum() + b.sum()).backward()


def eager(block: nn.Module, tokens: int, rotary: bool) -> int:
    with _Bytes() as counted:
        call(block, tokens, rotary)
    return counted.total


def compiled(block: nn.Module, tokens: int, rotary: bool) -> int:
    torch._dynamo.reset()
    metrics.reset()
    block.compile(dynamic=False)
    call(block, tokens, rotary)
    return metrics.num_bytes_accessed


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="cogvideox2b_4nfe")
    config = load_config(parser.parse_args().config)
    folder, family = find_family(config.model, weights=False)
    network = family.spec.network_class.load_config(folder, subfolder="transformer")
    rotary = bool(network["use_rotary_positional_embeddings"])
    rows: list[list[object]] = []
    for fused in (False, True):
        counts: dict[str, Callable[[nn.Module, int, bool], int]] = {
            "eager": eager,
            "Inductor's estimate": compiled,
        }
        for name, count in counts.items():
            short, long = (
                count(block_of(config, fused=fused), tokens, rotary) for tokens in (SHORT, LONG)
            )
            blocks = "fused" if fused else "the library's"
            rows.append([f"{blocks} blocks", name, (long - short) / (LONG - SHORT) / 1e3])
    print(table(["", "counted", "kB a token"], rows))


if __name__ == "__main__":
    run_program(main)
