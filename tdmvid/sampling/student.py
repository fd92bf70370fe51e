"""What samples: a base with or without a student, as the stock diffusers pipeline."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers

from ..adapters.bundle import ADAPTER_FILES, FACTS, check_times, read_facts
from ..adapters.load import load_student
from ..adapters.lora import shared_copy
from ..adapters.teacher import load_teacher
from ..backbones.base import Backbone
from ..backbones.dtype import torch_dtype
from ..config import ClipSize, ModelConfig, from_dict, short
from ..config.rules import shown
from ..data.files import file_fingerprint
from ..data.reading import reading
from ..diffusion.grid import explicit, resampled
from ..parallel import launch


def stock_defaults(backbone: Backbone) -> tuple[int, float]:
    """Return steps and guidance of a stock call that names neither."""
    call = inspect.signature(getattr(diffusers, backbone.pipeline_class).__call__).parameters
    return call["num_inference_steps"].default, float(call["guidance_scale"].default)


def check_guidance(backbone: Backbone, guidance: Mapping[str, Any]) -> None:
    """Check that a stock call has these arguments.

    Raises:
        ValueError: it lacks one.
    """
    call = inspect.signature(getattr(diffusers, backbone.pipeline_class).__call__).parameters
    for name, value in guidance.items():
        if name not in call:
            setting = {"guidance_scale_2": "cfg_2"}.get(name, name)
            raise ValueError(
                f"{setting}={shown(value)}: {backbone.pipeline_class} has no argument {name}: leave"
                " it out"
            )


def use_student(
    backbone: Backbone, folder: Path | None, *, whole: bool = False, steps: int | None = None
):
    """Return the stock pipeline with the LoRA or network of `folder` and the scheduler beside it.

    It shares the backbone's weights and leaves them as they are.

    Args:
        folder: None samples with the teacher.
        whole: with text encoder and autoencoder.
        steps: of a student, another number than it was trained for; None: as trained.
    """
    network = shared_copy(backbone.network)
    pipeline = backbone.stock.whole_pipeline() if whole else backbone.stock.pipeline(network)
    pipeline.register_modules(**backbone.spec.named_components(network))
    if folder is None:
        return pipeline
    if (folder / backbone.lora.file).is_file() or not (folder / "config.json").is_file():
        load_student(pipeline, folder, backbone.lora)  # refuses what is neither
        check_times(pipeline.scheduler, folder)
        return _with_steps(pipeline, backbone, folder, steps)
    with reading(folder):
        network = type(backbone.network).from_pretrained(folder, dtype=torch_dtype(backbone.config))
    network = network.to(backbone.device)
    pipeline.register_modules(**{backbone.spec.network_folder: network})
    timesteps = read_facts(folder).get("timesteps")
    if not timesteps:
        raise ValueError(
            f"{folder} has no {FACTS} with its timesteps: export it again (`tdmvid export`)"
        )
    pipeline.scheduler = backbone.student_scheduler(explicit(timesteps, backbone.process))
    return _with_steps(pipeline, backbone, folder, steps)


def _with_steps(pipeline: Any, backbone: Backbone, folder: Path, steps: int | None) -> Any:
    """Give a student's pipeline another number of steps over its trajectory."""
    timesteps = read_facts(folder).get("timesteps")
    if steps and timesteps and steps != len(timesteps):
        grid = resampled(explicit(timesteps, backbone.process), steps, backbone.process)
        pipeline.scheduler = backbone.student_scheduler(grid)
    return pipeline


def set_flow_shift(pipeline: Any, shift: float) -> None:
    """Give a stock pipeline's scheduler another flow shift.

    Raises:
        ValueError: If this scheduler has none.
    """
    scheduler = pipeline.scheduler
    names = [name for name in ("flow_shift", "shift") if name in scheduler.config]
    if not names:
        raise ValueError(
            f"shift={shift:g}: {type(scheduler).__name__} of this model has no flow shift: leave it"
            " out"
        )
    pipeline.scheduler = type(scheduler).from_config(scheduler.config, **{names[0]: shift})


def load_for_sampling(
    world: launch.World,
    *,
    student: Path | None = None,
    model: str | None = None,
    revision: str | None = None,
    variant: str | None = None,
    dtype: str | None = None,
    size: str | None = None,
    fps: int | None = None,
) -> Backbone:
    """Load the base of a student, as its export.json names it, or the model that is given; what is
    given wins.

    Args:
        size: frames x height x width, e.g. "49x480x720".

    Raises:
        ValueError: for what neither the student nor the caller gives, and for a LoRA beneath the
            student that is not the one of its training.
    """
    facts = read_facts(student) if student is not None else {}
    known = {"dtype": "bfloat16" if world.device.type == "cuda" else "float32"} | facts.get(
        "model", {}
    )
    if model and model != known.get("path"):
        known |= {"path": model, "revision": None, "variant": None}
    given = {"revision": revision, "variant": variant, "dtype": dtype}
    known |= {key: value for key, value in given.items() if value}
    if not known.get("path"):
        raise ValueError(
            "model is not given, and no student names its base: give a diffusers folder or a hub id"
        )
    shape = facts.get("video", {}) | (_read_size(size) if size else {})
    if not shape:
        raise ValueError(
            "size is not given, and no student says what it was trained on: e.g. 49x480x720 (frames"
            " x height x width)"
        )
    clip = ClipSize(**(shape | ({"fps": fps} if fps else {})))
    config, trained = from_dict(ModelConfig, known, "model"), facts.get(ADAPTER_FILES)
    return load_teacher(config, clip, device=world.device, trained=trained)


def _read_size(text: str) -> dict[str, int]:
    """Return frames, height and width of "49x480x720"."""
    match = re.fullmatch(r"(\d{1,9})x(\d{1,9})x(\d{1,9})", text)
    if not match:
        raise ValueError(
            f"size={short(text)}: frames x height x width, e.g. 49x480x720, or 1x512x512 for an"
            " image"
        )
    return dict(zip(("frames", "height", "width"), map(int, match.groups()), strict=True))


def weights_of(folder: Path) -> str:
    """Identify a student by its content: another run may have written another one to the same
    place.
    """
    return file_fingerprint(
        [
            path
            for name in ("*.safetensors", "scheduler_config.json", "adapter_config.json")
            for path in folder.glob(name)
        ]
    )
