"""Map dtype settings to torch, and let an autoencoder have a dtype of its own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..config import ModelConfig

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
"""Value of `model.dtype` -> torch dtype."""


CODING_PARTS = ("quant_conv", "post_quant_conv", "encoder", "decoder")
"""Submodules that a diffusers autoencoder calls first when it encodes or decodes."""


def accept_other_dtypes(vae: nn.Module) -> None:
    """Make an autoencoder cast its inputs to its own dtype, in place.

    Stock pipelines pass latents in the network's dtype. Without the cast this fails if the
    autoencoder alone is kept in float32.
    """
    for name in CODING_PARTS:
        part = getattr(vae, name, None)
        if isinstance(part, nn.Module):
            part.register_forward_pre_hook(_cast_inputs)


def _cast_inputs(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    dtype = next(module.parameters()).dtype
    return tuple(
        x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x for x in inputs
    )


def torch_dtype(config: ModelConfig) -> torch.dtype:
    """Return the torch dtype of the frozen weights."""
    return DTYPES[config.dtype]
