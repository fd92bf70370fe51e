"""Apply a LoRA to the text encoders of a stock pipeline, with diffusers' own loader."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..data.reading import reason

NAME = "users"
"""Name of the adapter."""


def with_text_lora(pipeline: Any, lora: Mapping[str, Tensor]) -> Any:
    """Load a LoRA into the text encoders of a stock pipeline.

    Args:
        pipeline: Modified in place.
        lora: Tensors at scale 1 by the keys of diffusers' files; empty for none.

    Returns:
        `pipeline`.

    Raises:
        ValueError: The LoRA does not fit.
    """
    for part in dict.fromkeys(key.partition(".")[0] for key in lora):
        encoder = getattr(pipeline, part, None)
        own = {key: x for key, x in lora.items() if key.startswith(f"{part}.")}
        if encoder is None:
            raise ValueError(
                f"model.adapters: a LoRA changes {part}, which this model does not have: use a LoRA"
                " of this model"
            )
        try:
            pipeline.load_lora_into_text_encoder(
                own, network_alphas=None, text_encoder=encoder, prefix=part, adapter_name=NAME
            )
        except (RuntimeError, ValueError) as error:
            raise ValueError(
                f"model.adapters: a LoRA cannot be loaded into {part}"
                f" ({reason(error)}): use a LoRA of this model"
            ) from error
        loaded = sum(NAME in getattr(layer, "lora_A", {}) for layer in encoder.modules())
        if 2 * loaded != len(own):
            raise ValueError(
                f"model.adapters: only {loaded} of {len(own) // 2} layers were loaded into {part}:"
                " use a LoRA of this model"
            )
        encoder.requires_grad_(False)
    return pipeline


def digest_of(lora: Mapping[str, Tensor]) -> str:
    """Return a digest of a LoRA's names and values."""
    digest = hashlib.sha256()
    for key, x in sorted(lora.items()):
        digest.update(key.encode())
        digest.update(x.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:24]
