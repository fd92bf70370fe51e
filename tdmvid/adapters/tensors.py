"""Read tensors from untrusted files without running code in them."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..data.reading import reason

SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")
"""Suffixes of files that can be read."""


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read the tensors of a file, without running code in it.

    Args:
        path: A file with one of `SUFFIXES`.

    Returns:
        The tensors by key, and the header of a .safetensors file (else empty).

    Raises:
        ValueError: The file is damaged, or contains something else.
    """
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="pt") as file:
                return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}
        except SafetensorError as error:
            raise ValueError(
                f"{path}: not a complete safetensors file ({error}): download it again"
            ) from error
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{path}: use a .safetensors, .pt, .pth or .bin file")
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zipfile and torch raise different types
        raise ValueError(
            f"{path}: the file is damaged or contains more than tensors"
            f" ({reason(error)}): use a .safetensors file"
        ) from error
    loaded = loaded.get("state_dict", loaded) if isinstance(loaded, dict) else loaded
    if not isinstance(loaded, dict) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in loaded.items()
    ):
        raise ValueError(
            f"{path}: does not contain a flat dictionary of tensors: use a .safetensors file"
        )
    return loaded, {}
