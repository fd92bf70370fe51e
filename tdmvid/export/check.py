"""Check that an export, loaded into a stock diffusers pipeline, gives the student's samples."""

from __future__ import annotations

import gc
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ..adapters.frozen import carry
from ..adapters.layouts import KeyLayout
from ..adapters.load import attach_to_sample, load_beside, load_student
from ..adapters.weights import of_component, weights_of_state
from ..backbones.base import Backbone
from ..backbones.dtype import torch_dtype
from ..backbones.scheduler import load_scheduler, set_steps
from ..data.progress import QUICK
from ..diffusion.grid import TimeGrid
from ..roles.rounding import difference
from .request import ExportRequest
from .student import Student, list_timesteps

TOLERANCE = {"float32": 1e-5, "float16": 1e-2, "bfloat16": 5e-2}
"""Allowed error of a reloaded export (see `Agreement`).

By dtype of the base or of the whole network.
"""
GPU_TOLERANCE = 1e-4
"""Allowed difference in float32 on a GPU, where convolutions use TF32 by default."""
LORA_TOLERANCE = {"float32": 0.0, "float16": 1e-3, "bfloat16": 1e-2}
"""Allowed difference from rounding the LoRA file alone, by its dtype."""
EMBEDDING_TOLERANCE = 1e-3
"""Largest allowance for rounding a grid to whole timesteps, which are embedded by sines."""


@dataclass(frozen=True)
class Agreement:
    """How far the latents of a reloaded export are from the student's."""

    by_sample: tuple[float, ...]
    """Root mean square difference of each sample, relative to the student's sample."""

    @classmethod
    def of(cls, found: Tensor, expected: Tensor) -> Self:
        """Compare samples.

        Args:
            found, expected: Latents, [B, ...].
        """
        return cls(tuple(difference(a, b) for a, b in zip(found, expected, strict=True)))

    @property
    def error(self) -> float:
        """The smallest difference that more than half of the samples do not exceed.

        A wrong weight, key or scheduler moves all samples, but one sample can move by rounding
        alone. NaN if a difference is not finite.
        """
        if not all(map(math.isfinite, self.by_sample)):
            return math.nan
        return sorted(self.by_sample)[len(self.by_sample) // 2]


def choose_tolerance(student: Student, request: ExportRequest, rounding: float) -> float:
    """Return the tolerance of the request, or the default if it has none.

    Args:
        student: The student to export.
        request: What to write.
        rounding: Allowed difference from rounding the files to their dtype.
    """
    usual = usual_tolerance(student.backbone, student.grid, student.reference.z, rounding)
    return request.tolerance or usual


def usual_tolerance(backbone: Backbone, grid: TimeGrid, z: Tensor, rounding: float) -> float:
    """Return the default tolerance.

    It is the largest of those for the base's dtype, for the GPU and for the rounding of the files,
    plus that for the rounding of timesteps.

    Args:
        backbone: The base.
        grid: The student's times.
        z: Noise, [B, ...], on the device of the check.
        rounding: Allowed difference from rounding the files to their dtype.
    """
    gpu = GPU_TOLERANCE if z.is_cuda else 0.0
    return max(TOLERANCE[backbone.config.dtype], gpu, rounding) + _grid_rounding(backbone, grid)


def _grid_rounding(backbone: Backbone, grid: TimeGrid) -> float:
    """Return how far the stock scheduler rounds the timesteps, at most EMBEDDING_TOLERANCE."""
    scheduler = backbone.student_scheduler(grid)
    set_steps(scheduler, grid.steps, even_sigmas=backbone.stock.even_sigmas)
    off = scheduler.timesteps - torch.tensor(list_timesteps(backbone, grid))
    return min(EMBEDDING_TOLERANCE, off.abs().max().item())


def check_lora(folder: Path, student: Student, tolerance: float) -> Agreement:
    """Compare a stock pipeline that uses the LoRA and scheduler in `folder` with the student.

    Args:
        folder: The bundle.
        student: The student it must reproduce.
        tolerance: Allowed relative difference.

    Returns:
        The differences of the latents.

    Raises:
        RuntimeError: Their error is above the tolerance.
    """
    backbone = student.backbone
    encodes = any(lora.text for lora in student.adapters)
    pipeline = _stock_pipeline(backbone, encodes=encodes)
    if student.adapters and not student.merged:
        load_beside(pipeline, folder, student.adapters, backbone.lora)
        pipeline.scheduler = load_scheduler(folder)
    else:
        load_student(pipeline, folder, backbone.lora)
    reference, steps = student.reference, student.grid.steps
    cond = reference.cond
    if encodes and reference.prompts:
        with backbone.encoding_with(pipeline):  # type: ignore[attr-defined]  # of a pipeline
            cond = backbone.encode_prompts(list(reference.prompts))
    found = backbone.stock.latents(pipeline, reference.z, cond, steps=steps)
    del pipeline
    gc.collect()  # a reference cycle would keep this base on the device beside the next one
    return _compare(found, student, tolerance)


def check_network(folder: Path, student: Student, tolerance: float) -> Agreement:
    """Compare a stock pipeline that uses the network in `folder` with the student.

    Arguments, result and exceptions are those of `check_lora`.
    """
    backbone, reference = student.backbone, student.reference
    kind, dtype = type(backbone.network), torch_dtype(backbone.config)
    network = kind.from_pretrained(folder, dtype=dtype).to(reference.z.device)
    pipeline = _stock_pipeline(backbone, network)
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
) -> Agreement:
    """Read another program's files back by its rules, and compare them as `check_lora` does.

    Args:
        paths: The file, or those of both experts, in a subfolder of the bundle.
        layout: The program's key layout.
        modules: Names of the modules that each file adapts.
        student: The student they must reproduce.
        tolerance: Allowed relative difference.

    Returns:
        The differences of the latents.

    Raises:
        ValueError: The program would not load one of the keys.
        RuntimeError: Their error is above the tolerance.
    """
    backbone = student.backbone
    pipeline = _stock_pipeline(backbone)
    for path, names, files in zip(paths, modules, backbone.lora_files, strict=True):
        state = layout.read(load_file(path), backbone.pipeline_class, names)
        network = getattr(pipeline, files.component)
        if not student.merged:
            carry(network, of_component(student.adapters, files.component))
        attach_to_sample(network, weights_of_state(state))
    pipeline.scheduler = load_scheduler(paths[0].parents[1])
    reference, steps = student.reference, student.grid.steps
    found = backbone.stock.latents(pipeline, reference.z, reference.cond, steps=steps)
    del pipeline
    gc.collect()  # as in check_lora
    return _compare(found, student, tolerance)


def _stock_pipeline(
    backbone: Backbone, network: nn.Module | None = None, *, encodes: bool = False
) -> Any:
    """Load a stock pipeline that shows its progress; one rank alone checks an export."""
    stock = backbone.stock
    pipeline = stock.encoding_pipeline() if encodes else stock.pipeline(network)
    pipeline.set_progress_bar_config(desc="checking the export", leave=False, delay=QUICK)
    return pipeline


def _compare(found: Tensor, student: Student, tolerance: float) -> Agreement:
    agreement = Agreement.of(found, student.latents)
    if not agreement.error <= tolerance:  # also true for NaN
        raise RuntimeError(
            "the export, reloaded into stock diffusers, differs from the student by"
            f" {agreement.error:.2e} (relative; tolerance {tolerance:.0e}); nothing was exported,"
            " checkpoints are kept: if rounding in a deep network explains this, use"
            " `tdmvid export --tolerance`"
        )
    if above := [error for error in agreement.by_sample if error > tolerance]:
        print(
            f"export: {len(above)} of {len(agreement.by_sample)} samples differ from the student's"
            f" by more than the tolerance {tolerance:.0e}, at most by {max(above):.2e}: rounding"
            " leads them to another sample"
        )
    return agreement
