"""Which weight files of a model folder are loaded, and that they hold every weight."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import transformers

from ..config import short

SHARD = r"(?:-\d+-of-\d+)?"
WEIGHTS = re.compile(
    rf"(?:diffusion_pytorch_model|pytorch_model|model){SHARD}(?:\.(\w+))?{SHARD}\.(?:safetensors|bin)"
)
"""A file of weights; its group is the variant."""
HALF = "fp16"


def weights_variant(folder: Path, wanted: str | None) -> str | None:
    """Return the variant whose files of a part are loaded.

    Args:
        folder: The part's.
        wanted: The variant that is asked for; often only some parts of a model have it.

    Returns:
        The wanted one if the part has it; without plain files one that it has (many repositories
        have float16 only); else None.
    """
    found = {match[1] for path in folder.iterdir() if (match := WEIGHTS.fullmatch(path.name))}
    if wanted in found:
        return wanted
    if None in found or not found:
        return None
    return HALF if HALF in found else min(filter(None, found))


def load_whole(kind: Any, folder: Path, **options: Any) -> Any:
    """Load a part and check that its files have every weight of it: libraries draw the others at
    random and only log it.

    Args:
        kind: A model class of diffusers or transformers.
        folder: The part's.
        options: Of its `from_pretrained`.

    Raises:
        ValueError: For weights that the files lack.
    """
    model, loaded = kind.from_pretrained(folder, output_loading_info=True, **options)
    missing = sorted(set(loaded["missing_keys"]) | _mismatched(loaded))
    if missing:
        raise ValueError(
            f"{folder}: {len(missing)} weights of {kind.__name__} are not in its files, e.g."
            f" {short(missing[0])}: copy or download the folder again, or use the versions of"
            " diffusers and transformers that setup.py names"
        )
    return model.eval()


def _mismatched(loaded: dict[str, Any]) -> set[str]:
    """Return the names of weights that have another shape."""
    entries = loaded.get("mismatched_keys") or ()
    return {entry if isinstance(entry, str) else str(entry[0]) for entry in entries}


def encoder_class(entry: list[str | None] | None) -> Any:
    """Return the class of a text encoder, None for a tokenizer and for what is left out.

    Args:
        entry: Of the part in model_index.json, [library, class].
    """
    kind = getattr(transformers, entry[1] or "", None) if entry else None
    is_model = isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel)
    return kind if is_model else None
