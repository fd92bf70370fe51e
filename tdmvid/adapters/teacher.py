"""A teacher as a config names it: the base with the user's LoRAs, frozen and not merged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
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
from .read import read_lora
from .settings import SETTINGS_FILE
from .weights import LoraWeights

DIGESTS = "files of model.adapters"
"""What a checkpoint's fingerprint calls the digests of the LoRAs that its teacher has."""


def load_teacher(
    config: ModelConfig,
    size: ClipSize,
    *,
    device: torch.device | str = "cpu",
    trained: Sequence[str] | None = None,
) -> Backbone:
    """Load the backbone of a teacher, its network with the LoRAs of `model.adapters`.

    `backbone.fresh_network` and the stock pipeline stay those of the plain base.

    Args:
        config: names base and LoRAs.
        size: of its samples.
        device: of its weights.
        trained: see `read_adapters`.

    Raises:
        ValueError: the teacher or a LoRA is not found, or one does not fit the other.
    """
    backbone = load_backbone(config, size, device=device)
    carry(backbone.network, read_adapters(backbone.network, config, backbone.lora, trained=trained))
    return backbone


def carry_adapters(network: nn.Module, config: ModelConfig, files: LoraFiles) -> None:
    """Give a plain network the LoRAs of `model.adapters`, in place; the meta device will do.

    Raises:
        ValueError: a LoRA is not found, or does not fit.
    """
    carry(network, read_adapters(network, config, files))


def read_adapters(
    network: nn.Module,
    config: ModelConfig,
    files: LoraFiles,
    *,
    trained: Sequence[str] | None = None,
) -> list[LoraWeights]:
    """Return the LoRAs of `model.adapters`, each at its scale and with its digest.

    Args:
        network: the base's, without a trained adapter; the meta device will do.
        config: names the LoRAs.
        files: the family's.
        trained: digests of the LoRAs that a student was trained with, to check these against;
            None if they are not known.

    Raises:
        ValueError: a LoRA is not found, does not fit, or is not the one of the training.
    """
    if trained is not None and len(trained) != len(config.adapters):
        raise ValueError(
            f"model.adapters names {len(config.adapters)} LoRAs, and the student was trained with"
            f" {len(trained)}: put the list back as it was"
        )
    loras = []
    for i, adapter in enumerate(config.adapters):
        try:
            lora = read_lora(Path(adapter.path), files, network, bare=True)
            _check_text(lora, files)
            digest = digest_of(Path(lora.where))
            if trained is not None and trained[i] != digest:
                raise ValueError(
                    f"{lora.where} is not what the student was trained with, its content differs:"
                    " put that file back"
                )
        except (ValueError, OSError) as error:
            raise ValueError(f"model.adapters[{i}].path: {error}") from error
        loras.append(replace(lora.scaled(adapter.scale), digest=digest))
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


def digest_of(path: Path) -> str:
    """Identify a LoRA file by its content, and by that of peft's settings beside it."""
    beside = path.with_name(SETTINGS_FILE)
    return file_fingerprint([path, *([beside] if beside.is_file() else [])])
