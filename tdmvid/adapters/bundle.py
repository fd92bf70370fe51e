"""Reading what was exported: the facts of a bundle, and a stock pipeline that samples with it."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import diffusers
import torch

from ..backbones.registry import families

FACTS = "export.json"


def read_facts(folder: Path) -> dict:
    """What export.json says of a student (steps, timesteps, model, video, ...); empty for a LoRA
    from elsewhere.
    """
    if not Path(folder).is_dir():
        raise ValueError(
            f"{folder} is no folder: give the lora/ or student/ folder of a finished run, or an"
            " exported one"
        )
    path = Path(folder) / FACTS
    if not path.is_file():
        for name in ("lora", "student"):
            if (Path(folder) / name / FACTS).is_file():
                raise ValueError(
                    f"{folder} is a run's folder: give its student, {Path(folder) / name}"
                )
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def load_pipeline(folder: str | Path, *, dtype: str | None = None):
    """The stock diffusers pipeline of an exported student: base, LoRA or network, and scheduler, as
    export.json names them.

    dtype: of the base, e.g. "float16"; the student's if not given. ValueError for a folder that is
    no export.
    """
    folder = Path(folder)
    facts = read_facts(folder)
    if not facts:
        raise ValueError(f"{folder} has no {FACTS}: give a folder that tdmvid exported")
    model, part, kind = facts["model"], facts["network"], facts["scheduler"]
    settings = {
        "dtype": getattr(torch, dtype or model["dtype"]),
        "revision": model["revision"],
        "variant": model["variant"],
    }
    if "rank" not in facts:
        config = json.loads((folder / "config.json").read_text())
        settings[part] = getattr(diffusers, config["_class_name"]).from_pretrained(
            folder, dtype=settings["dtype"]
        )
    pipeline = getattr(diffusers, facts["pipeline"]).from_pretrained(model["path"], **settings)
    if model.get("tiling"):
        pipeline.vae.enable_tiling()
    if "rank" in facts:
        families()[facts["pipeline"]].lora.add(pipeline, folder)
    if kind["module"] != "diffusers" and not kind["module"].startswith(
        f"{__package__.split('.')[0]}."
    ):
        raise ValueError(
            f"{folder / FACTS}: scheduler of module {kind['module']!r}: only diffusers' and"
            " tdmvid's are loaded"
        )
    pipeline.scheduler = getattr(
        importlib.import_module(kind["module"]), kind["name"]
    ).from_pretrained(folder)
    return pipeline
