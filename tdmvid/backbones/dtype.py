"""The dtype that settings name, and an autoencoder that keeps another."""

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


CODING_PARTS = ("quant_conv", "post_quant_conv", "encoder", "decoder")
"""What an autoencoder of diffusers calls first when it encodes or decodes."""


def accept_other_dtypes(vae: nn.Module) -> None:
    """Let an autoencoder cast what it is given to its own dtype, in place: stock pipelines give
    latents of the network's, which fails if it alone is kept in float32.
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
    """Return the dtype of the frozen weights."""
    return DTYPES[config.dtype]
