"""Load what samples: a base with or without a student, as the stock diffusers pipeline."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch

from ..adapters.bundle import ADAPTER_FILES, FACTS, TEXT_PARTS, check_scheduler, read_facts
from ..adapters.load import load_student
from ..adapters.lora import shared_copy
from ..adapters.teacher import load_teacher
from ..backbones.base import Backbone
from ..backbones.dtype import torch_dtype
from ..backbones.registry import find_family
from ..backbones.weight_files import load_whole
from ..config import ClipSize, ModelConfig, from_dict, short
from ..config.data import is_hub_id
from ..config.resources import find_embedded_size, find_model
from ..config.rules import shown
from ..data.files import file_fingerprint
from ..data.reading import reading
from ..diffusion.grid import explicit, resampled
from ..parallel import launch


def stock_defaults(backbone: Backbone) -> tuple[int, float]:
    """Return the default number of steps and guidance scale of the stock pipeline's call."""
    call = inspect.signature(getattr(diffusers, backbone.pipeline_class).__call__).parameters
    return call["num_inference_steps"].default, backbone.stock.default_guidance()


def check_guidance(backbone: Backbone, guidance: Mapping[str, Any]) -> None:
    """Check that the stock pipeline's call accepts these arguments.

    Args:
        backbone: The teacher.
        guidance: Arguments by name.

    Raises:
        ValueError: It does not accept one of them.
    """
    call = inspect.signature(getattr(diffusers, backbone.pipeline_class).__call__).parameters
    for name, value in guidance.items():
        if name not in call:
            setting = {"guidance_scale_2": "cfg_2"}.get(name, name)
            raise ValueError(
                f"{setting}={shown(value)}: {backbone.pipeline_class} has no argument {name}: omit"
                " it"
            )


def use_student(
    backbone: Backbone, folder: Path | None, *, whole: bool = False, steps: int | None = None
):
    """Return the stock pipeline with the student in `folder` and its scheduler.

    The pipeline shares the backbone's weights and does not change them.

    Args:
        backbone: The base.
        folder: Holds a LoRA or a network; None samples with the teacher.
        whole: Whether to load text encoders and autoencoder too.
        steps: Number of steps of a student; None uses the number that it was trained for.

    Raises:
        ValueError: The folder has no student, or one that cannot be loaded completely.
    """
    network = shared_copy(backbone.network)
    pipeline = backbone.stock.whole_pipeline() if whole else backbone.stock.pipeline(network)
    pipeline.register_modules(**backbone.spec.named_components(network))
    if folder is None:
        return pipeline
    if not whole and read_facts(folder).get(TEXT_PARTS):
        raise ValueError(
            f"{folder} also changes text encoders, which this command does not apply: use the"
            " folder `lora` of the same run, which loads your LoRAs beside it"
        )
    if (folder / backbone.lora.file).is_file() or not (folder / "config.json").is_file():
        # Raises if the folder has neither a LoRA nor a network.
        load_student(pipeline, folder, backbone.lora)
        check_scheduler(pipeline.scheduler, folder, even_sigmas=backbone.stock.even_sigmas)
        return _with_steps(pipeline, backbone, folder, steps)
    with reading(folder):
        network = load_whole(type(backbone.network), folder, dtype=torch_dtype(backbone.config))
    network = network.to(backbone.device)
    pipeline.register_modules(**{backbone.spec.network_folder: network})
    timesteps = read_facts(folder).get("timesteps")
    if not timesteps:
        raise ValueError(
            f"{folder} has no {FACTS} with timesteps: export it again (`tdmvid export`)"
        )
    pipeline.scheduler = backbone.student_scheduler(explicit(timesteps, backbone.process))
    return _with_steps(pipeline, backbone, folder, steps)


def _with_steps(pipeline: Any, backbone: Backbone, folder: Path, steps: int | None) -> Any:
    """Change the number of steps of a student's pipeline, along the same trajectory."""
    timesteps = read_facts(folder).get("timesteps")
    if steps and timesteps and steps != len(timesteps):
        grid = resampled(explicit(timesteps, backbone.process), steps, backbone.process)
        pipeline.scheduler = backbone.student_scheduler(grid)
    return pipeline


def set_flow_shift(pipeline: Any, shift: float) -> None:
    """Set the flow shift of a stock pipeline's scheduler, instead of one that depends on the size.

    Args:
        pipeline: Modified in place.
        shift: The new shift.

    Raises:
        ValueError: The scheduler has no flow shift.
    """
    scheduler = pipeline.scheduler
    names = [name for name in ("flow_shift", "shift") if name in scheduler.config]
    if not names:
        raise ValueError(
            f"shift={shift:g}: {type(scheduler).__name__} of this model has no flow shift: omit it"
        )
    changes: dict[str, Any] = {names[0]: shift}
    if scheduler.config.get("use_dynamic_shifting"):  # it would replace the shift
        changes |= {"use_dynamic_shifting": False, "shift_terminal": None}
    pipeline.scheduler = type(scheduler).from_config(scheduler.config, **changes)


def load_for_sampling(
    world: launch.World,
    *,
    student: Path | None = None,
    model: str | None = None,
    revision: str | None = None,
    variant: str | None = None,
    pipeline: str | None = None,
    dtype: str | None = None,
    size: str | None = None,
    fps: int | None = None,
    guidance: float | None = None,
    tiling: bool | None = None,
    setting: str = "--model",
) -> Backbone:
    """Load the base of a student as its export.json describes it, or a given model.

    Arguments override export.json.

    Args:
        world: Gives the device.
        student: The student's folder.
        model: diffusers folder or hub id of the base.
        revision: Revision of a hub id.
        variant: Variant of the weight files.
        pipeline: Pipeline class to use instead of the model's own.
        dtype: Dtype of the weights.
        size: Frames x height x width, e.g. "49x480x720".
        fps: Frames per second of written videos.
        guidance: Guidance scale that the network reads (FLUX.1).
        tiling: Whether to decode in tiles.
        setting: What sets `model`, for messages.

    Raises:
        ValueError: Neither student nor arguments give a required value, or a LoRA of the base
            differs from that used in training; or the model cannot have the size or guidance.
    """
    facts = read_facts(student) if student is not None else {}
    known = {"dtype": "bfloat16" if world.device.type == "cuda" else "float32"} | facts.get(
        "model", {}
    )
    if model and model != known.get("path"):
        known |= {"path": model, "revision": None, "variant": None}
    given = {"revision": revision, "variant": variant, "pipeline": pipeline, "dtype": dtype}
    known |= {key: value for key, value in given.items() if value}
    computing = {"guidance": guidance, "tiling": tiling}
    known |= {key: value for key, value in computing.items() if value is not None}
    if not known.get("path"):
        raise ValueError(
            f"{setting} is missing: give a diffusers folder or a hub id, or a student that names"
            " its base"
        )
    base = find_model(str(known["path"]))
    if student is not None and not model and not Path(base).is_dir() and not is_hub_id(base):
        raise ValueError(
            f"{student / FACTS} names the base {base!r}, which is not on this machine: give its"
            f" place with {setting}"
        )
    clip = ClipSize(**(find_size(student, size, known["path"]) | ({"fps": fps} if fps else {})))
    config, trained = from_dict(ModelConfig, known, "model"), facts.get(ADAPTER_FILES)
    _check_base(config, clip)
    return load_teacher(config, clip, device=world.device, trained=trained)


def _check_base(config: ModelConfig, size: ClipSize) -> None:
    """Check what needs no weights, before a long download: size and guidance."""
    folder, family = find_family(config, weights=False)
    if config.guidance is not None and family.embedded_guidance is None:
        raise ValueError(
            f"--guidance={config.guidance:g}: the network of {family.pipeline_class} reads no"
            " guidance scale: omit it, or use --cfg"
        )
    with torch.device("meta"):
        family.spec.tokens(family.spec.empty_network(folder), folder, size)


def find_size(student: Path | None, size: str | None, model: str | None) -> dict[str, int]:
    """Return the size of samples.

    Args:
        student: The student's folder.
        size: Frames x height x width, e.g. "49x480x720"; None uses the size of the training.
        model: Name, folder or hub id of the base; an embedded teacher has a default size.

    Returns:
        Frames, height and width, and fps if the student states it.

    Raises:
        ValueError: The size is invalid, or none of the three gives one.
    """
    facts = read_facts(student) if student is not None else {}
    shape: dict[str, int] = facts.get("video", {}) | (_read_size(size) if size else {})
    if not shape and not (shape := find_embedded_size(model)):
        raise ValueError(
            "--size is missing: give e.g. 49x480x720 (frames x height x width), or a student that"
            " states the size of its training"
        )
    return shape


def _read_size(text: str) -> dict[str, int]:
    """Parse frames, height and width from a text such as "49x480x720"."""
    match = re.fullmatch(r"(\d{1,9})x(\d{1,9})x(\d{1,9})", text)
    if not match:
        raise ValueError(
            f"size={short(text)}: use frames x height x width, e.g. 49x480x720, or 1x512x512 for an"
            " image"
        )
    return dict(zip(("frames", "height", "width"), map(int, match.groups()), strict=True))


def weights_of(folder: Path) -> str:
    """Return a digest of a student's files.

    It distinguishes students that different runs wrote to the same folder.
    """
    return file_fingerprint(
        [
            path
            for name in ("*.safetensors", "scheduler_config.json", "adapter_config.json")
            for path in folder.glob(name)
        ]
    )
