"""Tensors of a file of anybody's; no code in it is run."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return a file's tensors and, of .safetensors, its header; no code in it is run.

    Raises:
        ValueError: it is damaged, or holds something else.
    """
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="pt") as file:
                return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}
        except SafetensorError as error:
            raise ValueError(
                f"{path}: no whole safetensors file ({error}): download it again"
            ) from error
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{path}: a LoRA is a .safetensors, .pt, .pth or .bin file")
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of pickle, zipfile and torch, each of its own kind
        raise ValueError(
            f"{path}: not loaded, it holds more than tensors or is damaged"
            f" ({str(error).splitlines()[0]})"
        ) from error
    loaded = loaded.get("state_dict", loaded) if isinstance(loaded, dict) else loaded
    if not isinstance(loaded, dict) or not all(
        isinstance(value, Tensor) for value in loaded.values()
    ):
        raise ValueError(f"{path}: holds no flat dictionary of tensors")
    return loaded, {}
