"""A teacher as a config names it: the base with the user's LoRAs, frozen and not merged."""

from __future__ import annotations

from pathlib import Path

import diffusers
import torch
from torch import nn

from ..backbones.base import Backbone
from ..backbones.lora_files import LoraFiles
from ..backbones.registry import load_backbone
from ..config import ClipSize, ModelConfig
from ..data.files import file_fingerprint
from .frozen import carry
from .read import find_lora, read_lora
from .weights import LoraWeights


def load_teacher(
    config: ModelConfig, size: ClipSize, *, device: torch.device | str = "cpu"
) -> Backbone:
    """Load the backbone of a teacher, its network with the LoRAs of `model.adapters`.

    `backbone.fresh_network` and the stock pipeline stay those of the plain base.

    Raises:
        ValueError: the teacher or a LoRA is not found, or one does not fit the other.
    """
    backbone = load_backbone(config, size, device=device)
    carry_adapters(backbone.network, config, backbone.lora)
    return backbone


def carry_adapters(network: nn.Module, config: ModelConfig, files: LoraFiles) -> None:
    """Give a plain network the LoRAs of `model.adapters`, in place; the meta device will do.

    Raises:
        ValueError: a LoRA is not found, or does not fit.
    """
    carry(network, read_adapters(network, config, files))


def read_adapters(network: nn.Module, config: ModelConfig, files: LoraFiles) -> list[LoraWeights]:
    """Return the LoRAs of `model.adapters`, each at its scale.

    Args:
        network: the base's, without a trained adapter; the meta device will do.
        config: names the LoRAs.
        files: the family's.

    Raises:
        ValueError: a LoRA is not found, or does not fit.
    """
    loras = []
    for i, adapter in enumerate(config.adapters):
        try:
            lora = read_lora(Path(adapter.path), files, network, bare=True)
            _check_text(lora, files)
        except (ValueError, OSError) as error:
            raise ValueError(f"model.adapters[{i}].path: {error}") from error
        loras.append(lora.scaled(adapter.scale))
    return loras


def adapters_of(backbone: Backbone) -> tuple[LoraWeights, ...]:
    """Return the LoRAs of a backbone's config, whatever its network carries by now."""
    with torch.device("meta"):
        plain = backbone.spec.empty_network(backbone.folder)
    return tuple(read_adapters(plain, backbone.config, backbone.lora))


def _check_text(lora: LoraWeights, files: LoraFiles) -> None:
    """Refuse what the stock pipeline would apply to its text encoders."""
    if lora.left_out and hasattr(
        getattr(diffusers, files.pipeline_class), "load_lora_into_text_encoder"
    ):
        raise ValueError(
            f"{lora.where} changes text encoders too ({lora.left_out[0]}): remove those tensors"
            " from a copy, to distil what it changes in the network"
        )


def adapters_digest(config: ModelConfig, files: LoraFiles) -> list[str]:
    """Identify the LoRAs of `model.adapters` by their content, in their order."""
    return [file_fingerprint([find_lora(Path(one.path), files)]) for one in config.adapters]
