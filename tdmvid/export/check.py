"""Checks that an export, reloaded by a stock diffusers pipeline, gives the student's samples."""

from __future__ import annotations

import gc
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from ..adapters.frozen import carry
from ..adapters.layouts import KeyLayout
from ..adapters.load import attach_to_sample, load_beside, load_student
from ..adapters.weights import weights_of_state
from ..backbones.base import Backbone
from ..backbones.dtype import torch_dtype
from ..backbones.scheduler import load_scheduler
from ..diffusion.grid import TimeGrid
from ..roles.rounding import difference
from .request import ExportRequest
from .student import Student, list_timesteps

TOLERANCE = {"float32": 1e-5, "float16": 1e-2, "bfloat16": 5e-2}
"""Root mean square difference of latents between student and reloaded export, relative to theirs,
by the dtype of base or whole network.
"""
GPU_TOLERANCE = 1e-4
"""In float32 on a GPU, whose convolutions round to TF32 unless told otherwise."""
LORA_TOLERANCE = {"float32": 0.0, "float16": 1e-3, "bfloat16": 1e-2}
"""What the rounding of a LoRA file alone may change, by its dtype."""
EMBEDDING_TOLERANCE = 1e-3
"""What rounding a grid to whole timesteps may change: networks embed them by sines."""


def choose_tolerance(student: Student, request: ExportRequest, rounding: float) -> float:
    """Return the request's tolerance, or the usual one; rounding: what the files' dtype allows."""
    usual = usual_tolerance(student.backbone, student.grid, student.reference.z, rounding)
    return request.tolerance or usual


def usual_tolerance(backbone: Backbone, grid: TimeGrid, z: Tensor, rounding: float) -> float:
    """Return the tolerance by the base's dtype, the device, the files' rounding, and the grid's."""
    gpu = GPU_TOLERANCE if z.is_cuda else 0.0
    return max(TOLERANCE[backbone.config.dtype], gpu, rounding) + _grid_rounding(backbone, grid)


def _grid_rounding(backbone: Backbone, grid: TimeGrid) -> float:
    """By how many timesteps the stock scheduler rounds the grid, at most EMBEDDING_TOLERANCE."""
    scheduler = backbone.student_scheduler(grid)
    scheduler.set_timesteps(grid.steps)
    off = scheduler.timesteps - torch.tensor(list_timesteps(backbone, grid))
    return min(EMBEDDING_TOLERANCE, off.abs().max().item())


def check_lora(folder: Path, student: Student, tolerance: float) -> float:
    """Return how far a stock pipeline with the LoRA and scheduler of `folder` is from the student.

    Returns:
        The root mean square difference of the latents, relative to the student's.

    Raises:
        RuntimeError: it is above the tolerance.
    """
    backbone = student.backbone
    pipeline = backbone.stock.pipeline()
    if student.adapters and not student.merged:
        load_beside(pipeline, folder, student.adapters, backbone.lora)
        pipeline.scheduler = load_scheduler(folder)
    else:
        load_student(pipeline, folder, backbone.lora)
    reference, steps = student.reference, student.grid.steps
    found = backbone.stock.latents(pipeline, reference.z, reference.cond, steps=steps)
    del pipeline
    gc.collect()  # a cycle would keep its base on the device beside the next, and the run's own
    return _compare(found, student, tolerance)


def check_network(folder: Path, student: Student, tolerance: float) -> float:
    """Return how far a stock pipeline with the network in `folder` is from the student.

    Returns and raises as `check_lora`.
    """
    backbone, reference = student.backbone, student.reference
    kind, dtype = type(backbone.network), torch_dtype(backbone.config)
    network = kind.from_pretrained(folder, dtype=dtype).to(reference.z.device)
    pipeline = backbone.stock.pipeline(network)
    pipeline.scheduler = backbone.student_scheduler(student.grid)
    found = backbone.stock.latents(pipeline, reference.z, reference.cond, steps=student.grid.steps)
    del pipeline, network
    gc.collect()  # as in check_lora
    return _compare(found, student, tolerance)


def check_consumer_files(
    paths: list[Path],
    layout: KeyLayout,
    modules: list[list[str]],
    student: Student,
    tolerance: float,
) -> float:
    """Read another program's file back by its rules, and check the LoRA as `check_lora` does.

    Args:
        paths: the file, or those of both experts, in a folder of the bundle.
        layout: the program's.
        modules: names of the modules that each file adapts.
        student: what it must reproduce.
        tolerance: of the relative difference.
    """
    backbone = student.backbone
    pipeline = backbone.stock.pipeline()
    for path, names, files in zip(paths, modules, backbone.lora_files, strict=True):
        state = layout.read(load_file(path), backbone.pipeline_class, names)
        network = getattr(pipeline, files.component)
        if not student.merged:
            carry(network, student.adapters)
        attach_to_sample(network, weights_of_state(state))
    pipeline.scheduler = load_scheduler(paths[0].parents[1])
    reference, steps = student.reference, student.grid.steps
    found = backbone.stock.latents(pipeline, reference.z, reference.cond, steps=steps)
    del pipeline
    gc.collect()  # as in check_lora
    return _compare(found, student, tolerance)


def _compare(found: Tensor, student: Student, tolerance: float) -> float:
    error = difference(found, student.latents)
    if not error <= tolerance:  # not a number is an error, too
        raise RuntimeError(
            f"the export, reloaded by stock diffusers, differs from the student by {error:.2e} of"
            f" its size (tolerance {tolerance:.0e}); checkpoints are kept: if that is the rounding"
            " of a deep network, tdmvid export --tolerance allows it"
        )
    return error
