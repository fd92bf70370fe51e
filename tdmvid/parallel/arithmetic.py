"""Choice of autocast for a network.

A frozen base computes in its own dtype, as in the diffusers pipeline, and adapters follow the dtype
of their inputs. This needs no autocast, and gives the same dtypes on CPU and GPU. A network with
only trained weights keeps them in float32, and autocast casts them in every call.
"""

from __future__ import annotations

import torch
from torch import nn


def casts_weights(network: nn.Module, dtype: torch.dtype) -> bool:
    """Check whether a network needs autocast: it computes in `dtype` but has float32 weights.

    Args:
        network: The network.
        dtype: Data type of its computation.

    Returns:
        True if `dtype` is not float32 and all floating-point weights are float32.
    """
    return dtype != torch.float32 and all(
        p.dtype == torch.float32 for p in network.parameters() if p.is_floating_point()
    )


def autocast(network: nn.Module, dtype: torch.dtype) -> torch.autocast:
    """Build the autocast context for calls of a network.

    Args:
        network: The network.
        dtype: Data type of its computation.

    Returns:
        The context; disabled if the network does not need autocast.
    """
    return torch.autocast(
        next(network.parameters()).device.type,
        dtype if dtype != torch.float32 else torch.bfloat16,
        enabled=casts_weights(network, dtype),
        cache_enabled=False,  # the cache would keep a copy of all weights
    )
