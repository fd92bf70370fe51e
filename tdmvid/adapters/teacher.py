"""Load a teacher as a config describes it: the base with the user's LoRAs, frozen and unmerged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import diffusers
import torch
from torch import nn

from ..backbones.base import Backbone
from ..backbones.lora_files import LoraFiles
from ..backbones.registry import find_family, load_backbone
from ..config import ClipSize, ModelConfig
from ..data.files import file_fingerprint
from .frozen import carry
from .read import read_lora
from .settings import SETTINGS_FILE
from .weights import LoraWeights

DIGESTS = "files of model.adapters"
"""Entry of a checkpoint's fingerprint with the digests of the teacher's LoRAs."""


def load_teacher(
    config: ModelConfig,
    size: ClipSize,
    *,
    device: torch.device | str = "cpu",
    trained: Sequence[str] | None = None,
) -> Backbone:
    """Load the backbone of a teacher, with the LoRAs of `model.adapters` in its network.

    `backbone.fresh_network` and the stock pipeline remain those of the plain base.

    Args:
        config: Names the base and the LoRAs.
        size: Height, width and number of frames of samples.
        device: Where the weights go.
        trained: See `read_adapters`.

    Raises:
        ValueError: The base or a LoRA is not found, or they do not fit.
    """
    loras = _read_before_loading(config, trained)
    backbone = load_backbone(config, size, device=device)
    carry(backbone.network, loras)
    return backbone


def _read_before_loading(config: ModelConfig, trained: Sequence[str] | None) -> list[LoraWeights]:
    """Read the LoRAs of `model.adapters` against the base's configs, without its weights."""
    if not config.adapters and not trained:
        return []
    folder, family = find_family(config, weights=False)
    with torch.device("meta"):
        plain = family.spec.empty_network(folder)
    return read_adapters(plain, config, family.lora, trained=trained)


def carry_adapters(network: nn.Module, config: ModelConfig, files: LoraFiles) -> None:
    """Add the LoRAs of `model.adapters` to a plain network, in place.

    Args:
        network: The base's network; may be on the meta device.
        config: Names the LoRAs.
        files: The family's LoRA files.

    Raises:
        ValueError: A LoRA is not found or does not fit.
    """
    carry(network, read_adapters(network, config, files))


def read_adapters(
    network: nn.Module,
    config: ModelConfig,
    files: LoraFiles,
    *,
    trained: Sequence[str] | None = None,
) -> list[LoraWeights]:
    """Read the LoRAs of `model.adapters`, each at its scale and with its digest.

    Args:
        network: The base's network without a trained adapter; may be on the meta device.
        config: Names the LoRAs.
        files: The family's LoRA files.
        trained: Digests of the LoRAs that a student was trained with, to compare with; None if they
            are not known.

    Raises:
        ValueError: A LoRA is not found, does not fit, or differs from the one used in training.
    """
    if trained is not None and len(trained) != len(config.adapters):
        raise ValueError(
            f"model.adapters names {len(config.adapters)} LoRAs, but the student was trained with"
            f" {len(trained)}: restore the list used in training"
        )
    loras = []
    for i, adapter in enumerate(config.adapters):
        try:
            lora = read_lora(Path(adapter.path), files, network, bare=True)
            _check_text(lora, files)
            digest = digest_of(Path(lora.where))
            if trained is not None and trained[i] != digest:
                raise ValueError(
                    f"{lora.where} differs from the file that the student was trained with: restore"
                    " that file"
                )
        except (ValueError, OSError) as error:
            raise ValueError(f"model.adapters[{i}].path: {error}") from error
        loras.append(replace(lora.scaled(adapter.scale), digest=digest))
    return loras


def adapters_of(backbone: Backbone) -> tuple[LoraWeights, ...]:
    """Return the LoRAs of a backbone's config, read again from their files."""
    with torch.device("meta"):
        plain = backbone.spec.empty_network(backbone.folder)
    return tuple(read_adapters(plain, backbone.config, backbone.lora))


def _check_text(lora: LoraWeights, files: LoraFiles) -> None:
    """Refuse a LoRA whose text-encoder part the stock pipeline would apply."""
    if lora.left_out and hasattr(
        getattr(diffusers, files.pipeline_class), "load_lora_into_text_encoder"
    ):
        raise ValueError(
            f"{lora.where} also changes text encoders ({lora.left_out[0]}), which is not supported:"
            " use a copy without these tensors"
        )


def digest_of(path: Path) -> str:
    """Return a digest of a LoRA file's content and of peft's settings beside it."""
    beside = path.with_name(SETTINGS_FILE)
    return file_fingerprint([path, *([beside] if beside.is_file() else [])])
