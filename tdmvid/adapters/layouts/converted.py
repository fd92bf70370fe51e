"""Names that the stock pipeline itself converts, such as those of FLUX for kohya and ComfyUI."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import diffusers
import torch
from torch import Tensor


def in_stock_names(tensors: Mapping[str, Tensor], pipeline_class: str) -> dict[str, Tensor]:
    """Convert a LoRA's tensors as the stock pipeline does when it loads a file.

    Args:
        tensors: Tensors by their keys in a file.
        pipeline_class: The family's diffusers pipeline class.

    Returns:
        Tensors by diffusers' keys, with each layer's `.alpha` that is not yet in its factors.
        Unchanged if the pipeline does not convert them.
    """
    convert = getattr(getattr(diffusers, pipeline_class), "lora_state_dict", None)
    if convert is None:
        return dict(tensors)
    logger = logging.getLogger("diffusers.loaders")
    level = logger.level
    logger.setLevel(logging.ERROR)  # its notes are about files that pipelines load
    try:
        found: Any = convert(dict(tensors), return_alphas=True)
    except Exception:  # converters raise many types of errors
        return dict(tensors)
    finally:
        logger.setLevel(level)
    state, *alphas = found if isinstance(found, tuple) else (found,)
    stated = next((each for each in alphas if isinstance(each, Mapping)), {})
    return dict(state) | {key: torch.as_tensor(float(x)) for key, x in stated.items()}
