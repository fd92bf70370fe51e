"""Ulysses sequence parallelism (arXiv 2309.14509): several ranks share one long sequence.

Outside attention, each of P ranks holds 1/P of the tokens. Inside attention, it holds all tokens of
1/P of the heads. Any length and any number of heads is supported: both are padded with zeros to a
multiple of P, and the padding is removed before attention.

Gradients: every rank of the group computes the same loss on the gathered output, and the backward
pass of the gather sums over the group. Therefore the plain mean of gradients over all ranks of the
run is the sum over the sequence and the mean over data. No other scaling is needed.

Shapes: B is the batch size, L the number of tokens of the whole sequence, n = ceil(L / P) the
number of tokens of a rank, H the number of heads, D the channels of a head.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as nnf
from torch import Tensor
from torch.distributed._functional_collectives import all_to_all_single_autograd
from torch.distributed.nn.functional import all_to_all_single


class SequenceGroup:
    """Group of ranks that share one sequence.

    `gather` and `attend` are collective over the group. All methods are differentiable.

    Args:
        group: Process group of the P ranks.
    """

    def __init__(self, group: dist.ProcessGroup):
        self.group, self.size, self.rank = group, dist.get_world_size(group), dist.get_rank(group)

    def __deepcopy__(self, memo: dict) -> SequenceGroup:
        """Return the same group, so that a copied network uses the same ranks."""
        return self

    def share(self, length: int) -> int:
        """Return the number of tokens per rank, ceil(length / P).

        Args:
            length: Number of tokens of the whole sequence.

        Returns:
            The number of tokens, the same on all ranks.
        """
        return -(-length // self.size)

    def shard(self, x: Tensor) -> Tensor:
        """Select the tokens of this rank, without communication.

        Args:
            x: Whole sequence, [B, L, ...].

        Returns:
            Tokens of this rank, [B, n, ...]; padded with zeros at the end of the sequence.
        """
        share = self.share(x.shape[1])
        mine = x[:, self.rank * share : (self.rank + 1) * share]
        return _pad(mine, 1, share)

    def gather(self, x: Tensor, length: int) -> Tensor:
        """Gather all tokens on every rank. The backward pass sums over the group.

        Args:
            x: Tokens of this rank, [B, n, ...].
            length: Number of tokens of the whole sequence, L.

        Returns:
            The whole sequence, [B, L, ...].
        """
        everyone = self._exchange(x.expand(self.size, *x.shape))
        return everyone.transpose(0, 1).flatten(1, 2)[:, :length]

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        length: int,
        inner: Callable[[Tensor, Tensor, Tensor], Tensor],
    ) -> Tensor:
        """Compute attention over the whole sequence.

        Args:
            query: Queries of this rank's tokens, [B, n, H, D].
            key: Keys of this rank's tokens, [B, n, H, D].
            value: Values of this rank's tokens, [B, n, H, D].
            length: Number of tokens of the whole sequence, L.
            inner: Local attention, inner(q, k, v): three tensors [B, L, ceil(H / P), D] -> one of
                the same shape.

        Returns:
            Attention output of this rank's tokens, [B, n, H, D].
        """
        heads = query.shape[2]
        out = inner(*(self._to_heads(x)[:, :length] for x in (query, key, value)))
        return self._to_tokens(_pad(out, 1, self.share(length) * self.size))[:, :, :heads]

    def _to_heads(self, x: Tensor) -> Tensor:
        """Exchange tokens for heads: [B, n, H, D] -> [B, n P, ceil(H / P), D]."""
        x = _pad(x, 2, -(-x.shape[2] // self.size) * self.size)
        sent = x.unflatten(2, (self.size, -1)).movedim(2, 0)  # [P, B, n, h, D]: part p for rank p
        return self._exchange(sent).transpose(0, 1).flatten(1, 2)

    def _to_tokens(self, x: Tensor) -> Tensor:
        """Exchange heads for tokens: [B, n P, h, D] -> [B, n, h P, D]."""
        sent = x.unflatten(1, (self.size, -1)).movedim(1, 0)  # [P, B, n, h, D]
        return self._exchange(sent).movedim(0, 2).flatten(2, 3)

    def _exchange(self, x: Tensor) -> Tensor:
        """Send part p of x, [P, ...], to rank p; part p of the result is from rank p."""
        x = x.contiguous()
        if torch.compiler.is_compiling():
            return all_to_all_single_autograd(
                x, None, None, self.group
            )  # this variant can be part of a compiled graph
        return all_to_all_single(torch.empty_like(x), x, group=self.group)


def _pad(x: Tensor, dim: int, length: int) -> Tensor:
    """Pad x with zeros at the end of `dim`, up to `length`."""
    missing = length - x.shape[dim]
    return nnf.pad(x, [0, 0] * (x.dim() - 1 - dim) + [0, missing]) if missing else x


class PlannedGroup(SequenceGroup):
    """Group for planning: communicates with no rank, and counts the bytes that a rank would send.

    Args:
        size: Number of ranks P.
    """

    def __init__(self, size: int):
        self.size, self.rank, self.sent = size, 0, 0

    def _exchange(self, x: Tensor) -> Tensor:
        self.sent += x.numel() * x.element_size() * (self.size - 1) // self.size
        return _Returned.apply(x)


class _Returned(torch.autograd.Function):
    """Exchange that uses the memory of a real one, in forward and backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """Copy x, [P, ...] -> [P, ...]."""
        return x.contiguous().clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """Copy the gradient, [P, ...] -> [P, ...]."""
        return gradient.contiguous().clone()
