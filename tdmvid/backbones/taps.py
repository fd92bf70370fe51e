"""Features of a network's blocks, for a discriminator."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class Tap:
    """A block whose output is used as features: [B, tokens, width] or [B, width, H, W]."""

    block: nn.Module
    width: int
    index: int = 0
    """Index of the output to use if the block returns several."""


def trunk_of(
    blocks: nn.ModuleList, width: int, *, index: int = 0
) -> tuple[nn.ModuleList, list[Tap]]:
    """Return the first half of a transformer's blocks, with taps at its middle and its end.

    Args:
        blocks: All blocks of the transformer.
        width: Number of channels of a block's output.
        index: Index of the output to use if a block returns several.

    Returns:
        The kept blocks, and one or two taps on them.
    """
    kept = blocks[: -(-len(blocks) // 2)]
    ends = sorted({-(-len(kept) // 2), len(kept)})
    return kept, [Tap(kept[end - 1], width, index) for end in ends]
