"""Simulated ranks: collectives return at once and count what a rank would send."""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import FakeWork, ProcessGroup
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._pytree import tree_leaves

ROUNDS = {
    "alltoall_base_": 1,
    "allreduce_": 2,
    "_allgather_base_": 1,
    "_reduce_scatter_base_": 1,
    "reduce_": 1,
    "broadcast_": 1,
    "barrier": 0,
}
"""Number of times that all data but a rank's own is sent, in a ring."""


def collect(func: Any, args: tuple[Any, ...], sent: Tally[str]) -> Any:
    """Return the result of a collective, and add the bytes that a rank sends."""
    name = func._schema.name.split("::")[-1]
    tensors = [x for x in tree_leaves(args) if isinstance(x, Tensor)]
    group = next(x for x in args if isinstance(x, torch.ScriptObject) and _is_group(x))
    ranks, work = ProcessGroup.unbox(group).size(), FakeWork().boxed()
    size = max((x.numel() * x.element_size() for x in tensors), default=0)  # of all parts together
    sent[name] += ROUNDS[name] * size * (ranks - 1) // ranks
    outputs = [work if str(r.type).endswith("Work") else args[0] for r in func._schema.returns]
    return outputs[0] if len(outputs) == 1 else tuple(outputs)


def _is_group(value: torch.ScriptObject) -> bool:
    return "ProcessGroup" in str(value._type())


@contextmanager
def ranks(count: int) -> Iterator[None]:
    """Make this process rank 0 of several within this context."""
    dist.init_process_group("fake", rank=0, world_size=count, store=FakeStore())
    try:
        yield
    finally:
        dist.destroy_process_group()
