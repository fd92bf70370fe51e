"""Replacements for what DeepSpeed's engines need of CUDA besides tensors: streams, events, memory
statistics and profiler ranges.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import collectives
import torch
from torch import Tensor

LAUNCHED = {
    "RANK": "0",
    "LOCAL_RANK": "0",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "1",
}
"""Environment variables that a launcher sets. Nothing listens at the address."""


class Stream:
    """A stream or an event whose work is always done."""

    cuda_stream = 0

    def __init__(self, *_: Any, **__: Any):
        self.device = torch.device("cuda", 0)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return self._done

    def _done(self, *_: Any, **__: Any) -> None:
        return None

    def query(self) -> bool:
        return True

    def elapsed_time(self, other: Stream) -> float:
        return 0.0


def _replacements() -> dict[str, Any]:
    """Attributes of `torch.cuda` by name."""

    def nothing(*_: Any, **__: Any) -> int:
        return 0

    zero = ("memory_allocated", "max_memory_allocated", "memory_reserved", "max_memory_reserved")
    return {
        "Stream": Stream,
        "Event": Stream,
        "current_stream": Stream,
        "default_stream": Stream,
        "stream": lambda stream: contextlib.nullcontext(),
        "synchronize": nothing,
        "is_current_stream_capturing": lambda: False,
        "memory_stats": lambda device=None: {},
        **dict.fromkeys(zero, nothing),
    }


@contextmanager
def on_device() -> Iterator[None]:
    """Let DeepSpeed run on the simulated device within this context."""
    with ExitStack() as stack:
        # read once, when deepspeed is first imported
        stack.enter_context(patch.dict(os.environ, {"DS_ACCELERATOR": "cuda"}))
        for name, value in _replacements().items():
            stack.enter_context(patch.object(torch.cuda, name, value))
        for name in ("range_push", "range_pop"):
            stack.enter_context(patch.object(torch.cuda.nvtx, name, lambda *_: None))
        stack.enter_context(patch.object(Tensor, "record_stream", lambda *_: None))
        from deepspeed.runtime.zero import partitioned_param_coordinator as coordinator

        # ZeRO-3 compares numbers of all ranks, but here there are no values to compare
        agree = patch.object(coordinator, "assert_ints_same_as_other_ranks", lambda ints: None)
        stack.enter_context(agree)
        yield


@contextmanager
def launched(ranks: int) -> Iterator[None]:
    """Make this process rank 0 of a run that a launcher started, within this context.

    Args:
        ranks: Number of ranks.
    """
    environment = LAUNCHED | {"WORLD_SIZE": str(ranks)}
    with patch.dict(os.environ, environment), on_device(), collectives.ranks(ranks):
        import deepspeed

        deepspeed.init_distributed(auto_mpi_discovery=False, verbose=False)
        yield
