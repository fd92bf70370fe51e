"""How PyTorch's allocator takes memory of a GPU."""

from __future__ import annotations

import os

VARIABLES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
"""What PyTorch reads: its present name, and the one it had first."""


def expand_segments() -> None:
    """Let the allocator grow its segments instead of splitting them, unless the user set it up.

    Calls of unequal sizes (with and without a graph, guided, decoding) otherwise leave gaps that
    fit nothing. It must be called before torch is imported.
    """
    if not any(os.environ.get(name) for name in VARIABLES):
        os.environ["PYTORCH_CUDA_ALLOC_CONF"] = "expandable_segments:True"
