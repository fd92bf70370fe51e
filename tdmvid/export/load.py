"""Load an exported student in one call: base, LoRA or network, and scheduler."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import DiffusionPipeline

from ..adapters.bundle import (
    ABSENT_PARTS,
    ADAPTER_FILES,
    FACTS,
    FLOAT32_PARTS,
    VARIANTS,
    check_scheduler,
    read_facts,
)
from ..adapters.load import load_beside, load_lora, networks_of
from ..adapters.teacher import read_adapters
from ..backbones.registry import families
from ..backbones.weight_files import component_class, load_whole
from ..config import ModelConfig, from_dict, short
from ..config.json_files import read_object
from ..config.resources import find_model
from ..data.reading import reading
from .base_name import on_hub
from .request import DTYPES

PACKAGE = __package__.split(".")[0]


def load_pipeline(
    folder: str | Path, *, base: str | None = None, dtype: str | torch.dtype | None = None
) -> DiffusionPipeline:
    """Load the stock diffusers pipeline of an exported student, as its export.json describes it.

    Args:
        folder: A folder that `tdmvid export` or a run wrote.
        base: Folder or hub id of the base, if it is not where export.json says.
        dtype: Dtype of the base: float32, float16 or bfloat16, as text or of torch; the default is
            the one in export.json.

    Returns:
        The pipeline, on the CPU. Sample with the student's number of steps and guidance 1.

    Raises:
        ValueError: The folder is not an export, its base is not on this machine, its LoRA cannot be
            loaded completely, or one of the user's LoRAs differs from that used in training.
    """
    folder = Path(folder).expanduser()
    facts = _facts(folder)
    _place_base(folder, facts, base)
    own = str(facts["model"]["dtype"] if dtype is None else dtype).removeprefix("torch.")
    if own not in DTYPES:
        raise ValueError(f"dtype={short(own)}: choose {', '.join(DTYPES)}")
    pipeline = _load_base(folder, facts, getattr(torch, own))
    if "rank" in facts:
        _add_loras(pipeline, folder, facts)
    pipeline.scheduler = _load_scheduler(folder, facts["scheduler"])
    stock = families()[facts["pipeline"]].stock_class
    check_scheduler(pipeline.scheduler, folder, even_sigmas=stock.even_sigmas)
    stock.set_guidance(pipeline, 1.0)
    return pipeline


def _facts(folder: Path) -> dict[str, Any]:
    """Return the contents of export.json that loading needs."""
    facts = read_facts(folder)
    if not facts:
        raise ValueError(f"{folder} has no {FACTS}: use a folder that tdmvid exported")
    if lacking := sorted({"model", "network", "pipeline", "scheduler"} - facts.keys()):
        raise ValueError(f"{folder / FACTS} lacks {lacking[0]}: export the student again")
    if facts["pipeline"] not in families():
        raise ValueError(
            f"{folder / FACTS}: pipeline={str(facts['pipeline'])[:80]!r} is not supported: choose"
            f" from {', '.join(sorted(families()))}"
        )
    return facts


def _place_base(folder: Path, facts: dict[str, Any], base: str | None) -> None:
    """Replace the base's place in `facts`, and check that a folder is there."""
    if base is not None:
        facts["model"] |= {"path": str(Path(base).expanduser()), "revision": None}
    path = find_model(facts["model"]["path"])
    if not on_hub(path) and not Path(path).is_dir():
        stated = f"base={path!r}" if base else f"{folder / FACTS}: the base {path!r}"
        raise ValueError(
            f"{stated} is not a folder on this machine: pass the base's folder or hub id, e.g."
            ' load_pipeline(folder, base="THUDM/CogVideoX-2b")'
        )


def _load_base(folder: Path, facts: Mapping[str, Any], own: torch.dtype) -> Any:
    """Load the pipeline of the base, with the student's network if the folder has a whole one."""
    model = facts["model"]
    dtypes = dict.fromkeys(facts.get(FLOAT32_PARTS, ()), torch.float32) | {"default": own}
    default, others = _variants(facts)
    settings = dict.fromkeys(facts.get(ABSENT_PARTS, ())) | {
        **families()[facts["pipeline"]].stock_class.options,
        "dtype": dtypes,
        "revision": model["revision"],
        "variant": default,
    }
    if "rank" not in facts:
        kind = read_object(folder / "config.json")["_class_name"]
        with reading(folder):
            network = load_whole(getattr(diffusers, kind), folder, dtype=own)
        settings[facts["network"]] = network
    base, kind = find_model(model["path"]), getattr(diffusers, facts["pipeline"])
    with reading(model["path"]):
        for part, variant in others.items():
            entry = kind.load_config(base, revision=model["revision"])[part]
            settings[part] = component_class(entry).from_pretrained(
                base,
                subfolder=part,
                dtype=dtypes.get(part, own),
                revision=model["revision"],
                variant=variant,
            )
        pipeline = kind.from_pretrained(base, **settings)
    if model.get("tiling"):
        pipeline.vae.enable_tiling()
    return pipeline


def _variants(facts: Mapping[str, Any]) -> tuple[str | None, dict[str, str | None]]:
    """Return the variant of the base's weight files, and the variants of other components."""
    stated = facts.get(VARIANTS, {"default": facts["model"]["variant"]})
    return stated["default"], {part: each for part, each in stated.items() if part != "default"}


def _add_loras(pipeline: Any, folder: Path, facts: Mapping[str, Any]) -> None:
    """Load the student's LoRA, beside those of the user with which it was trained."""
    files = families()[facts["pipeline"]].lora
    stated = from_dict(ModelConfig, {"adapters": facts["model"].get("adapters", ())}, "model")
    networks, trained = networks_of(pipeline, files), facts.get(ADAPTER_FILES)
    if adapters := read_adapters(networks, stated, files, trained=trained):
        load_beside(pipeline, folder, adapters, files)
    else:
        load_lora(pipeline, folder, files)


def _load_scheduler(folder: Path, kind: dict[str, str]):
    """Load the scheduler beside a student, only if it is a class of diffusers or tdmvid.

    Args:
        folder: The bundle.
        kind: The scheduler's `module` and `name`.
    """
    if kind["module"] != "diffusers" and not kind["module"].startswith(f"{PACKAGE}."):
        raise ValueError(
            f"{folder / FACTS}: scheduler module {kind['module']!r} is not allowed: use a scheduler"
            " of diffusers or tdmvid"
        )
    scheduler = getattr(importlib.import_module(kind["module"]), kind["name"])
    return scheduler.from_pretrained(folder)
