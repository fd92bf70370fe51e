"""Use the tests' simulated CUDA device to try out a benchmark. Nothing is computed or measured."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

DEVICE = Path(__file__).resolve().parents[1] / "tests" / "gpu"
ANSWERS = {
    "synchronize": None,
    "max_memory_allocated": 2**30,
    "max_memory_reserved": 2**30,
    "memory_allocated": 0,
}
"""Results of `torch.cuda` functions that the tests do not need."""


@contextmanager
def pretended() -> Iterator[None]:
    """Make "cuda" a device without data within this context. torch must not have been imported
    before.
    """
    assert "torch" not in sys.modules, "torch is imported already"
    sys.path.insert(0, str(DEVICE))
    device = importlib.import_module("pretended")
    device.load()
    counting = importlib.import_module("counting")
    for name in ("benchmarks.gpu_rows", "diffusers", "torchao"):
        importlib.import_module(name)
    import torch
    from torch.testing._internal.distributed.fake_pg import FakeStore

    sharded = importlib.import_module("sharded")
    join = torch.distributed.init_process_group

    def join_alone(*_: Any, **__: Any) -> None:
        """Instead of NCCL, which a CPU build does not have."""
        join("fake", rank=0, world_size=1, store=FakeStore())

    with ExitStack() as stack:
        stack.enter_context(device.pretend())
        stack.enter_context(sharded.on_device())
        stack.enter_context(patch.object(torch.distributed, "init_process_group", join_alone))
        for name, value in ANSWERS.items():
            answer = patch.object(torch.cuda, name, lambda *_, value=value, **__: value)
            stack.enter_context(answer)
        stack.enter_context(counting.device())
        yield
