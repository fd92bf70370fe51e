"""Reading what was exported: the facts of a bundle, and a stock pipeline that samples with it."""

from __future__ import annotations

import importlib
import inspect
import json
from pathlib import Path

import diffusers
import torch

from ..backbones.base import Backbone
from ..backbones.registry import families
from ..diffusion.grid import explicit
from .lora import shared_copy

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


def stock_defaults(backbone: Backbone) -> tuple[int, float]:
    """Steps and guidance of a stock call that names neither."""
    call = inspect.signature(getattr(diffusers, backbone.pipeline_class).__call__).parameters
    return call["num_inference_steps"].default, float(call["guidance_scale"].default)


def use_student(backbone: Backbone, folder: Path | None, *, whole: bool = False):
    """The stock pipeline with the LoRA or network of `folder` and the scheduler beside it; the
    teacher for None.

    It shares the backbone's weights, and leaves them as they are. whole: with text encoder and
    autoencoder.
    """
    network = shared_copy(backbone.network)
    pipeline = backbone.whole_pipeline() if whole else backbone.stock_pipeline(network)
    pipeline.register_modules(**{backbone.spec.network_folder: network})
    if folder is None:
        return pipeline
    if (folder / backbone.lora_file).is_file() or not (folder / "config.json").is_file():
        backbone.load_lora(pipeline, folder)  # refuses what is neither
        return pipeline
    network = (
        type(backbone.network)
        .from_pretrained(folder, dtype=backbone.config.torch_dtype)
        .to(backbone.device)
    )
    pipeline.register_modules(**{backbone.spec.network_folder: network})
    timesteps = read_facts(folder).get("timesteps")
    if not timesteps:
        raise ValueError(
            f"{folder} has no {FACTS} with its timesteps: export it again (python"
            " launch/export_lora.py)"
        )
    pipeline.scheduler = backbone.student_scheduler(explicit(timesteps, backbone.process))
    return pipeline


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
        families()[facts["pipeline"]].add_lora(pipeline, folder)
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
