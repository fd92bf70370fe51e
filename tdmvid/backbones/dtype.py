"""The dtype that settings name."""

from __future__ import annotations

import torch

from ..config import ModelConfig

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def torch_dtype(config: ModelConfig) -> torch.dtype:
    """Return the dtype of the frozen weights."""
    return DTYPES[config.dtype]
