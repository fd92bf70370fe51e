"""Select the weight files of a model component, and check that they are complete."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import diffusers
import transformers

from ..config import short

SHARD = r"(?:-\d+-of-\d+)?"
WEIGHTS = re.compile(
    rf"(?:diffusion_pytorch_model|pytorch_model|model){SHARD}(?:\.(\w+))?{SHARD}\.(?:safetensors|bin)"
)
"""Matches names of weight files; its group is the variant."""
HALF = "fp16"
"""The variant of float16 weights."""


def weights_variant(folder: Path, wanted: str | None) -> str | None:
    """Return the variant of the weight files to load.

    Args:
        folder: The component's folder.
        wanted: The requested variant; often only some components of a model have it.

    Returns:
        `wanted` if the component has it. Otherwise None for plain files or, if there are none, a
        variant that exists: many repositories have float16 only.
    """
    found = _variants_in(folder)
    if wanted in found:
        return wanted
    if None in found or not found:
        return None
    return HALF if HALF in found else min(filter(None, found))


def _variants_in(folder: Path) -> set[str | None]:
    """Return the variants of a component's weight files; None stands for plain files."""
    return {match[1] for path in folder.iterdir() if (match := WEIGHTS.fullmatch(path.name))}


def pipeline_variants(
    folder: Path, parts: Iterable[str], wanted: str | None
) -> dict[str, str | None]:
    """Return the variants with which a stock pipeline loads the files that `weights_variant` names.

    Args:
        folder: The pipeline's folder.
        parts: Its components, with or without weights.
        wanted: The requested variant.

    Returns:
        The pipeline's argument `variant` as `default`, and the variants of the components for
        which the pipeline would load other files.
    """
    folders = [folder / part for part in parts if (folder / part).is_dir()]
    found = {each.name: weights_variant(each, wanted) for each in folders if _variants_in(each)}
    counted = Counter(found.values()).most_common(1)
    default = counted[0][0] if counted else None
    default = wanted if wanted and wanted in found.values() else default
    same = {default, None} if default == wanted else {default}  # plain files replace missing ones
    return {"default": default} | {part: each for part, each in found.items() if each not in same}


def load_whole(kind: Any, folder: Path, **options: Any) -> Any:
    """Load a component and check that its files contain every weight.

    diffusers and transformers initialise missing weights at random and only log it.

    Args:
        kind: A model class of diffusers or transformers.
        folder: The component's folder.
        options: Arguments of `from_pretrained`.

    Returns:
        The model in evaluation mode.

    Raises:
        ValueError: Weights are missing or have another shape.
    """
    model, loaded = kind.from_pretrained(folder, output_loading_info=True, **options)
    missing = sorted(set(loaded["missing_keys"]) | _mismatched(loaded))
    if missing:
        raise ValueError(
            f"{folder}: {len(missing)} weights of {kind.__name__} are missing from its files, e.g."
            f" {short(missing[0])}: copy or download the folder again, or install the versions of"
            " diffusers and transformers that setup.py requires"
        )
    return model.eval()


def _mismatched(loaded: dict[str, Any]) -> set[str]:
    """Return the names of weights whose shape differs from the model's."""
    entries = loaded.get("mismatched_keys") or ()
    return {entry if isinstance(entry, str) else str(entry[0]) for entry in entries}


def encoder_class(entry: list[str | None] | None) -> Any:
    """Return the class of a text encoder; None for a tokenizer or a missing component.

    Args:
        entry: The component's entry in model_index.json, [library, class].
    """
    kind = getattr(transformers, entry[1] or "", None) if entry else None
    is_model = isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel)
    return kind if is_model else None


def component_class(entry: list[str]) -> Any:
    """Return the class of a component with weights.

    Args:
        entry: The component's entry in model_index.json, [library, class].
    """
    return encoder_class([*entry]) or getattr(diffusers, entry[1])
