"""Read peft's settings of a LoRA file, from its header or the adapter_config.json beside it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
from peft import LoraConfig

from ..data.reading import reason

SETTINGS_FILE, PEFT_FILE = "adapter_config.json", "adapter_model"
_CHANGES_BASE = ("pissa", "olora", "loftq", "corda", "lora_ga")
"""peft's initialisations that also change the base's weights."""
_NOT_PLAIN = (
    "modules_to_save",
    "layer_replication",
    "target_parameters",
    "trainable_token_indices",
    "kasa_config",
)
"""peft's settings that change more than two factors per layer."""


def read_settings(
    path: Path, header: Mapping[str, str], part: str, *, of_peft: bool
) -> LoraConfig | None:
    """Return peft's settings of a LoRA file, where its own program looks for them.

    Args:
        path: The file.
        header: The file's metadata.
        part: The adapted component of the pipeline.
        of_peft: Whether its keys are in peft's layout.

    Returns:
        The settings, or None if there are none.

    Raises:
        ValueError: The settings are damaged, or not those of a plain LoRA.
    """
    beside = path.with_name(SETTINGS_FILE)
    if LORA_ADAPTER_METADATA_KEY in header:
        stated = _parse(header[LORA_ADAPTER_METADATA_KEY], f"{path}'s header")
        settings = {
            key.removeprefix(f"{part}."): value
            for key, value in stated.items()
            if key.startswith(f"{part}.")
        }
        settings = settings or {key: value for key, value in stated.items() if "." not in key}
        return _config_of(settings, f"{path}'s header") if settings else None
    if (of_peft or path.stem == PEFT_FILE) and beside.is_file():
        return _config_of(_parse(beside.read_bytes(), str(beside)), str(beside))
    return None


def _parse(text: str | bytes, where: str) -> dict[str, Any]:
    try:
        settings = json.loads(text)
    except (ValueError, RecursionError) as error:  # also of the encoding or of endless numbers
        raise ValueError(
            f"{where} is not valid JSON ({error}): export or download it again"
        ) from error
    if not isinstance(settings, dict):
        raise ValueError(f"{where} is not a JSON object: export or download it again")
    return settings


def _config_of(settings: dict[str, Any], where: str) -> LoraConfig:
    """Return the LoraConfig of settings; refuse those of anything but a plain LoRA."""
    kind = str(settings.get("peft_type") or "LORA").rpartition(".")[2].upper()
    if kind != "LORA":
        raise ValueError(f"{where}: peft_type={kind!r} is not supported: use a LoRA")
    fields = LoraConfig.__dataclass_fields__
    known = {key: value for key, value in settings.items() if key in fields}
    if known.get("use_dora"):
        raise ValueError(f"{where}: use_dora=true: a DoRA is not supported, use a plain LoRA")
    start = known.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_CHANGES_BASE):
        raise ValueError(
            f"{where}: init_lora_weights={start!r} changes the base's weights too: convert it to a"
            " plain LoRA with peft (path_initial_model_for_weight_conversion)"
        )
    for name in _NOT_PLAIN:
        if known.get(name):
            raise ValueError(
                f"{where}: {name} is set, which a plain LoRA cannot hold: use a LoRA without it"
            )
    known = {"init_lora_weights": True} | known
    try:
        config = LoraConfig(**known)
        ranks = {"r": config.r} | (config.rank_pattern or {})
        alphas = {"lora_alpha": config.lora_alpha} | (config.alpha_pattern or {})
        wrong = {name: value for name, value in ranks.items() if not _is_number(value, 1)}
        wrong |= {name: value for name, value in alphas.items() if not _is_number(value)}
    except (TypeError, ValueError, AttributeError) as error:
        raise ValueError(
            f"{where}: peft rejects these settings ({reason(error)}): correct them"
        ) from error
    if wrong:
        name, value = next(iter(wrong.items()))
        raise ValueError(f"{where}: {name}={str(value)[:40]!r}  is not a number that peft accepts")
    return config


def _is_number(value: Any, least: float = -math.inf) -> bool:
    kind = isinstance(value, (int, float)) and not isinstance(value, bool)
    return kind and math.isfinite(value) and value >= least
