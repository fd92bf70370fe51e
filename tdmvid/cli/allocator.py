"""Configure PyTorch's CUDA memory allocator."""

from __future__ import annotations

import os

VARIABLES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
"""Environment variables that PyTorch reads: the current name, and the former one."""


def expand_segments() -> None:
    """Turn on expandable segments, unless the user has configured the allocator.

    Without them, calls of different sizes (with and without a graph, guided, decoding) fragment the
    memory. Call this before torch is imported.
    """
    if not any(os.environ.get(name) for name in VARIABLES):
        os.environ["PYTORCH_CUDA_ALLOC_CONF"] = "expandable_segments:True"
