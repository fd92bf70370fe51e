"""Names that the stock pipeline itself converts, such as those of XLabs for FLUX.1.

Stock converters pass over keys that they do not know, without an error. Here, tensors carry the key
that they come from through the conversion, so that what is lost is found.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping
from typing import Any

import diffusers
import torch
from torch import Tensor

_UP = (
    ".lora_up.weight",
    ".lora_B.weight",
    ".lora_B.default.weight",
    ".lora.up.weight",
    "_lora.up.weight",
    ".lora_linear_layer.up.weight",
)
"""Ends of the keys of a layer's second factor."""


class _Traced(Tensor):
    """A tensor with the keys of the file that it was computed from."""

    keys: frozenset[str] = frozenset()

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found: Any = super().__torch_function__(func, types, args, kwargs or {})  # type: ignore[no-untyped-call]
        keys = frozenset().union(*(x.keys for x in _flat(args) if isinstance(x, cls)))
        for x in _flat([found]):
            if isinstance(x, cls):
                x.keys = x.keys | keys
        return found


def _flat(values: Iterable[Any]) -> Iterable[Any]:
    for value in values:
        yield from _flat(value) if isinstance(value, (tuple, list)) else (value,)


def in_stock_names(
    tensors: Mapping[str, Tensor], pipeline_class: str
) -> tuple[dict[str, Tensor], list[str]]:
    """Convert a LoRA's tensors as the stock pipeline does when it loads a file.

    Args:
        tensors: Tensors of the network by their keys in a file.
        pipeline_class: The family's diffusers pipeline class.

    Returns:
        Tensors by diffusers' keys, with the scale of each layer's `.alpha` in its factors; and the
        keys whose tensors are not zero and have no place in the result. Unchanged and none if the
        pipeline does not convert them.
    """
    convert = getattr(getattr(diffusers, pipeline_class), "lora_state_dict", None)
    if convert is None:
        return dict(tensors), []
    logger = logging.getLogger("diffusers.loaders")
    level = logger.level
    logger.setLevel(logging.ERROR)  # its notes are about files that pipelines load
    try:
        found: Any = convert(_traced(tensors), return_alphas=True)
    except Exception:  # converters raise many types of errors
        return dict(tensors), []
    finally:
        logger.setLevel(level)
    state = found[0] if isinstance(found, tuple) else found
    kept = frozenset().union(*(x.keys for x in state.values() if isinstance(x, _Traced)))
    lost = [
        key
        for key, x in tensors.items()
        if key not in kept and not key.endswith(".alpha") and x.any()
    ]
    return {key: x.as_subclass(Tensor) for key, x in state.items()}, lost


def _traced(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors with their keys, and each `.alpha` multiplied into the second factor.

    Then nothing depends on whether a converter applies the alpha of every layer.
    """
    out = {key: x.as_subclass(_Traced) for key, x in tensors.items()}
    for key in [key for key in tensors if key.endswith(".alpha")]:
        up = next((up for end in _UP if (up := re.sub(r"\.alpha$", end, key)) in out), None)
        if up is not None and tensors[key].numel() == 1:
            rank = float(tensors[up].shape[1])
            out[up] = (tensors[up].float() * (tensors[key].item() / rank)).as_subclass(_Traced)
            out[key] = torch.tensor(rank).as_subclass(_Traced)
    for key, traced in out.items():
        traced.keys = frozenset((key,))
    return dict(out)
