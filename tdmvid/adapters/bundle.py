"""Reading what was exported: the facts of a bundle, and a stock pipeline that samples with it."""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import diffusers

from ..backbones.base import LORA_FILE, Backbone
from ..diffusion.grid import explicit
from .lora import shared_copy

FACTS = "export.json"


def read_facts(folder: Path) -> dict:
    """What export.json says of a student (steps, timesteps, model, video, ...); empty for a LoRA from elsewhere."""
    if not Path(folder).is_dir():
        raise ValueError(f"{folder} is no folder: give the lora/ or student/ folder of a finished run, or an exported one")
    path = Path(folder) / FACTS
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def stock_defaults(backbone: Backbone) -> tuple[int, float]:
    """Steps and guidance of a stock call that names neither."""
    call = inspect.signature(getattr(diffusers, backbone.pipeline_class).__call__).parameters
    return call["num_inference_steps"].default, float(call["guidance_scale"].default)


def use_student(backbone: Backbone, folder: Path | None):
    """The stock pipeline with the LoRA or network of `folder` and the scheduler beside it; the teacher for None.

    It shares the backbone's weights, and leaves them as they are.
    """
    pipeline = backbone.stock_pipeline()
    pipeline.register_modules(**{backbone.network_folder: shared_copy(backbone.network)})
    if folder is None:
        return pipeline
    if (folder / LORA_FILE).is_file() or not (folder / "config.json").is_file():
        backbone.load_lora(pipeline, folder)  # refuses what is neither
        return pipeline
    network = type(backbone.network).from_pretrained(folder, dtype=backbone.config.torch_dtype).to(backbone.device)
    pipeline.register_modules(**{backbone.network_folder: network})
    timesteps = read_facts(folder).get("timesteps")
    if not timesteps:
        raise ValueError(f"{folder} has no {FACTS} with its timesteps: export it again (python launch/export_lora.py)")
    pipeline.scheduler = backbone.student_scheduler(explicit(timesteps, backbone.process))
    return pipeline
