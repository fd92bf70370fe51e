"""Load a teacher as a config describes it: the base with the user's LoRAs, frozen and unmerged."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from ..backbones.base import Backbone
from ..backbones.experts import Experts
from ..backbones.lora_files import LORA_FILE, LoraFiles
from ..backbones.registry import find_family, load_backbone
from ..config import ClipSize, ModelConfig
from ..data.files import file_fingerprint
from .frozen import carry
from .read import read_lora
from .settings import SETTINGS_FILE
from .text import text_state
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
    use_adapters(backbone, loras)
    return backbone


def use_adapters(backbone: Backbone, loras: Sequence[LoraWeights]) -> None:
    """Add LoRAs to the network and to the text encoders of a plain backbone, in place.

    Args:
        backbone: The base.
        loras: The LoRAs of `model.adapters`.
    """
    carry(backbone.network, loras)
    backbone.text_lora = text_state(loras)


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
    network: nn.Module | Mapping[str, nn.Module],
    config: ModelConfig,
    files: LoraFiles,
    *,
    trained: Sequence[str] | None = None,
) -> list[LoraWeights]:
    """Read the LoRAs of `model.adapters`, each at its scale and with its digest.

    Args:
        network: The base's network without a trained adapter, or both experts by component; may be
            on the meta device.
        config: Names the LoRAs.
        files: The family's LoRA files.
        trained: Digests of the LoRAs that a student was trained with, to compare with; None if they
            are not known.

    Returns:
        One LoRA for each file, with the component that it adapts.

    Raises:
        ValueError: A LoRA is not found, does not fit, or differs from the one used in training.
    """
    networks = _networks(network, files)
    stated = list(_stated(config, tuple(networks)))
    if trained is not None and len(trained) != len(stated):
        raise ValueError(
            f"model.adapters names {len(stated)} LoRAs, but the student was trained with"
            f" {len(trained)}: restore the list used in training"
        )
    by_component = {files.part: files}
    if len(networks) > 1:
        by_component = files.of_experts(tuple(networks))
    loras = []
    for i, one in enumerate(stated):
        own = by_component[one.component]
        try:
            path = _place(Path(one.path), own)
            network_of = networks[one.component]
            lora = read_lora(path, own, network_of, bare=True, text=True)
            digest = digest_of(Path(lora.where))
            if trained is not None and trained[i] != digest:
                raise ValueError(
                    f"{lora.where} differs from the file that the student was trained with: restore"
                    " that file"
                )
        except (ValueError, OSError) as error:
            raise ValueError(f"{one.setting}: {error}") from error
        loras.append(replace(lora.scaled(one.scale), component=one.component, digest=digest))
    return loras


@dataclass(frozen=True)
class _Stated:
    """One LoRA file of `model.adapters`."""

    setting: str
    path: str
    scale: float
    component: str


def _stated(config: ModelConfig, components: tuple[str, ...]) -> Iterator[_Stated]:
    """Yield the LoRA files of `model.adapters`, each with the component that it adapts."""
    first, *second = components
    for i, adapter in enumerate(config.adapters):
        if adapter.path:
            yield _Stated(f"model.adapters[{i}].path", adapter.path, adapter.scale, first)
        if not adapter.path_2:
            continue
        setting = f"model.adapters[{i}].path_2"
        if not second:
            raise ValueError(
                f"{setting}={adapter.path_2!r} is the LoRA of a second expert, but this teacher has"
                " one network: remove it"
            )
        yield _Stated(setting, adapter.path_2, adapter.second_scale, second[0])


def _networks(
    network: nn.Module | Mapping[str, nn.Module], files: LoraFiles
) -> Mapping[str, nn.Module]:
    """Return the networks by component: one, or both experts."""
    if isinstance(network, Experts):
        return network.networks
    return {files.part: network} if isinstance(network, nn.Module) else network


def _place(path: Path, files: LoraFiles) -> Path:
    """Return the file in a folder with one expert's LoRA alone, which has the usual name."""
    usual = path / LORA_FILE
    return usual if not (path / files.file).is_file() and usual.is_file() else path


def adapters_of(backbone: Backbone) -> tuple[LoraWeights, ...]:
    """Return the LoRAs of a backbone's config, read again from their files."""
    with torch.device("meta"):
        plain = backbone.spec.empty_network(backbone.folder)
    return tuple(read_adapters(plain, backbone.config, backbone.lora))


def digest_of(path: Path) -> str:
    """Return a digest of the content of a LoRA file and of peft's settings beside it."""
    beside = path.with_name(SETTINGS_FILE)
    return file_fingerprint([path, *([beside] if beside.is_file() else [])], named=False)
