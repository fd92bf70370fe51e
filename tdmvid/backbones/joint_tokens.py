"""Split a joint sequence of text and video tokens over ranks, for blocks that take both apart.

Shapes: B batch, T text tokens, V video tokens, L = T + V, P ranks, n = ceil(L / P) tokens per rank,
D channels. A rank's n tokens are its text tokens first, then its video tokens, then zeros. The
zeros count as video tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .base import TokenSharing


class JointTokens:
    """The tokens of the current call, which `split` sets.

    Args:
        sharing: The ranks that share a sequence.
    """

    def __init__(self, sharing: TokenSharing):
        self.sharing, self.text, self.length = sharing, 0, 0

    def split(self, text: Tensor, video: Tensor) -> tuple[Tensor, Tensor]:
        """Return this rank's text and video tokens.

        Args:
            text: All text tokens, [B, T, D].
            video: All video tokens, [B, V, D].

        Returns:
            [B, t, D] and [B, n - t, D].
        """
        self.text, self.length = text.shape[1], text.shape[1] + video.shape[1]
        mine = self.sharing.shard(torch.cat([text, video], 1))
        own = min(max(self.text - self.sharing.rank * mine.shape[1], 0), mine.shape[1])
        return mine[:, :own], mine[:, own:]

    def gather_video(self, video: Tensor) -> Tensor:
        """Return the video tokens of all ranks, [B, V, D], from this rank's [B, n - t, D]."""
        missing = self.sharing.share(self.length) - video.shape[1]
        text = video.new_zeros(video.shape[0], missing, video.shape[2])
        mine = torch.cat([text, video], 1)
        return self.sharing.gather(mine, self.length)[:, self.text :]
