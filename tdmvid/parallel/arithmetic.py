"""Which networks autocast casts for, and how.

A frozen base computes in its own dtype, as in the stock pipeline, and adapters follow their inputs:
nothing needs autocast, and a CPU gives the dtypes that a GPU gives. A network whose weights are all
trained keeps them in float32, and autocast casts them in every call.
"""

from __future__ import annotations

import torch
from torch import nn


def casts_weights(network: nn.Module, dtype: torch.dtype) -> bool:
    """Return whether a network that computes in `dtype` keeps all its weights in float32."""
    return dtype != torch.float32 and all(
        p.dtype == torch.float32 for p in network.parameters() if p.is_floating_point()
    )


def autocast(network: nn.Module, dtype: torch.dtype) -> torch.autocast:
    """Return the context for calls of a network that computes in `dtype`."""
    return torch.autocast(
        next(network.parameters()).device.type,
        dtype if dtype != torch.float32 else torch.bfloat16,
        enabled=casts_weights(network, dtype),
        cache_enabled=False,  # a cache would hold all weights that are cast
    )
