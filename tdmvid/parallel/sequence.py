"""Ulysses sequence parallelism (arXiv 2309.14509): ranks that share one long sequence.

Outside attention each of P ranks holds 1/P of the tokens; inside it holds all tokens of 1/P
of the heads. Any length and any number of heads: both are padded with zeros to a multiple
of P, and the padding is stripped before it can be attended to.

Gradients: every rank of the group computes the same loss on the gathered output, and the
gather's backward SUMS over the group. So the plain mean of gradients over all ranks of
the run is the sum over the sequence and the mean over data: nothing else has to scale.

Shapes: B batch, L tokens of the whole sequence, n = ceil(L / P) tokens of a rank, H heads, D
channels of a head.
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
    """The ranks of one sequence; every method is collective over the group and differentiable."""

    def __init__(self, group: dist.ProcessGroup):
        self.group, self.size, self.rank = group, dist.get_world_size(group), dist.get_rank(group)

    def __deepcopy__(self, memo: dict) -> SequenceGroup:
        """A copied network talks to the same ranks."""
        return self

    def share(self, length: int) -> int:
        """Tokens of one rank, the same for all: ceil(length / P)."""
        return -(-length // self.size)

    def shard(self, x: Tensor) -> Tensor:
        """This rank's tokens: [B, L, ...] -> [B, n, ...]; the last rank's may end in zeros. No
        communication.
        """
        share = self.share(x.shape[1])
        mine = x[:, self.rank * share : (self.rank + 1) * share]
        return _pad(mine, 1, share)

    def gather(self, x: Tensor, length: int) -> Tensor:
        """All tokens on every rank: [B, n, ...] -> [B, length, ...]; the backward sums over the
        group.
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
        """Attention over the whole sequence, from and to tokens of this rank: [B, n, H, D].

        inner(q, k, v), each [B, length, ceil(H / P), D], is any local attention; it returns that
        shape.
        """
        heads = query.shape[2]
        out = inner(*(self._to_heads(x)[:, :length] for x in (query, key, value)))
        return self._to_tokens(_pad(out, 1, self.share(length) * self.size))[:, :, :heads]

    def _to_heads(self, x: Tensor) -> Tensor:
        """[B, n, H, D] -> [B, n P, ceil(H / P), D]."""
        x = _pad(x, 2, -(-x.shape[2] // self.size) * self.size)
        sent = x.unflatten(2, (self.size, -1)).movedim(2, 0)  # [P, B, n, h, D]: part p for rank p
        return self._exchange(sent).transpose(0, 1).flatten(1, 2)

    def _to_tokens(self, x: Tensor) -> Tensor:
        """[B, n P, h, D] -> [B, n, h P, D]."""
        sent = x.unflatten(1, (self.size, -1)).movedim(1, 0)  # [P, B, n, h, D]
        return self._exchange(sent).movedim(0, 2).flatten(2, 3)

    def _exchange(self, x: Tensor) -> Tensor:
        """Part p of x [P, ...] goes to rank p; part p of the result came from rank p."""
        x = x.contiguous()
        if torch.compiler.is_compiling():
            return all_to_all_single_autograd(
                x, None, None, self.group
            )  # the form that is part of a graph
        return all_to_all_single(torch.empty_like(x), x, group=self.group)


def _pad(x: Tensor, dim: int, length: int) -> Tensor:
    """Zeros behind x along `dim` up to `length`."""
    missing = length - x.shape[dim]
    return nnf.pad(x, [0, 0] * (x.dim() - 1 - dim) + [0, missing]) if missing else x


class PlannedGroup(SequenceGroup):
    """A group of `size` ranks that is only planned: talks to nobody, and counts the bytes that a
    rank would send.
    """

    def __init__(self, size: int):
        self.size, self.rank, self.sent = size, 0, 0

    def _exchange(self, x: Tensor) -> Tensor:
        self.sent += x.numel() * x.element_size() * (self.size - 1) // self.size
        return _Returned.apply(x)


class _Returned(torch.autograd.Function):
    """An exchange that takes the memory of a real one, in both passes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.contiguous().clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient.contiguous().clone()
