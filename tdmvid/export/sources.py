"""Export checkpoints of a run, published LoRAs and full fine-tunes.

Each export takes one process, without a launcher: a checkpoint of any number of ranks contains the
student's whole weights beside the shards of each rank. Each function here makes students with their
reference samples, and `write_bundles` writes them.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from ..adapters.bundle import check_grid, folders_of_set, read_facts, student_folder
from ..adapters.extract import adapt
from ..adapters.lora import attach, in_host_memory
from ..adapters.read import read_lora
from ..adapters.step_condition import condition_on_steps
from ..adapters.teacher import DIGESTS, adapters_of, load_teacher
from ..backbones.base import Backbone
from ..backbones.experts import Experts
from ..backbones.weight_files import load_whole
from ..config import RunConfig
from ..config.json_files import read_object
from ..data.items import Item, gallery_items, read_items
from ..data.markdown import code
from ..data.reading import reading
from ..diffusion.grid import TimeGrid
from ..distill.grids import build_grid, build_grids
from ..guard.record import GuardRecord
from ..parallel.engine import check_shapes, shapes_of
from ..roles.rounding import story as base_story
from ..sampling.student import weights_of
from .bundle import write_bundles
from .check import LORA_TOLERANCE, choose_tolerance
from .original import compare_with_original, describe_comparison
from .request import ExportRequest, check_request, items_of
from .student import (
    Adapter,
    Provenance,
    Reference,
    Student,
    describe_method,
    draw_reference,
    extract_lora,
    list_timesteps,
    sample_reference,
    with_merged,
)
from .trained import Trained, average, check_runs, read_trained

REMEDY = "use the config or the model that the weights were trained with"
"""Advice for weights that do not fit the model."""


def export_run(
    out: Path,
    run: Path,
    request: ExportRequest = ExportRequest(),
    *,
    checkpoint: Path | None = None,
    weights: Literal["", "ema", "raw"] = "",
    others: Sequence[Path] = (),
) -> dict:
    """Export a run's newest checkpoint, or a given one, to `out`.

    A run over a set of step counts gives one bundle for each: `out`, and `out_2steps` and so on
    beside it.

    Args:
        out: The folder to write; an older export in it is replaced.
        run: The run's folder.
        request: What to write.
        checkpoint: One of the run's checkpoint folders.
        weights: The averaged or the raw weights. Empty uses the average if the run keeps one.
        others: Other runs from the same start; the mean of all students is exported.

    Returns:
        Contents of export.json in `out`.

    Raises:
        ValueError: A checkpoint is damaged, the run does not have what is requested, or a run of
            `others` cannot be averaged with it.
        RuntimeError: The export differs from the student by more than the tolerance.
    """
    check_runs([run, *others])
    trained = read_trained(run, checkpoint=checkpoint, weights=weights)
    averaged = [read_trained(other, weights=weights) for other in others]
    if averaged:
        for one in (trained, *averaged):
            print(f"averaging {one.run}: {_progress(one)}", file=sys.stderr)
    tensors, config, step = average([trained, *averaged]), trained.config, trained.step
    lora = config.training == "lora"
    if lora and request.rank:
        raise ValueError(
            f"rank={request.rank} applies to full fine-tunes, but this run trained a LoRA: omit it"
        )
    digests = trained.fingerprint.get(DIGESTS, [])
    backbone = load_teacher(config.model, config.video, device=_device(), trained=digests)
    check_request(
        request,
        backbone,
        adapted=lora or bool(request.rank),
        conditioned_on_steps=config.objective.conditioned_on_steps,
    )
    items = items_of(request, backbone) or _run_items(config, backbone)
    reference = draw_reference(backbone, items, request.seed)
    provenance = _trace(trained, averaged)
    exported = GuardRecord.read(run).exported or config.steps
    own = step == exported and weights != ("raw" if config.ema else "ema") and not request.rank
    if own and not averaged:
        # These are the weights that the run itself exported.
        provenance = replace(provenance, **_measured(run, config))
    if not lora:
        grid = build_grid(config.grid, backbone.process)
        student = _tuned_student(backbone, grid, tensors, reference, provenance)
        return _write_tuned(out, student, request)
    students = _students_of_set(out, config, backbone, tensors, reference, provenance)
    write_bundles(students if request.fuse else with_merged(students), request)
    return read_facts(out)


def export_published(
    out: Path,
    path: Path,
    backbone: Backbone,
    grid: TimeGrid,
    request: ExportRequest,
    *,
    scale: float = 1.0,
) -> dict:
    """Export a published LoRA with the grid that it is meant for.

    Args:
        out: The folder to write.
        path: The LoRA file.
        backbone: Its base. The LoRA is attached to it, in place.
        grid: The times of its steps.
        request: What to write.
        scale: Scale at which its authors recommend loading it.

    Returns:
        Contents of export.json.

    Raises:
        ValueError: The file is not a LoRA of this base, or the request does not suit it.
        RuntimeError: The export, or the student, differs by more than the tolerance.
    """
    check_request(request, backbone, adapted=True)
    check_grid(list_timesteps(backbone, grid), path)
    reference = draw_reference(backbone, items_of(request, backbone), request.seed)
    lora = read_lora(path, backbone.lora, backbone.network, bare=True).scaled(scale)
    module, tensors, settings = adapt(backbone, lora)
    included = f", including its scale of {scale:g}." if scale != 1 else "."
    student = Student(
        backbone,
        grid,
        tensors,
        reference,
        sample_reference(backbone, module, reference, grid),
        Adapter(module, settings),
        Provenance(origin=f"Converted from the published {code(path.name)}{included}"),
    )
    tolerance = choose_tolerance(student, request, LORA_TOLERANCE["float32"])
    with in_host_memory([student.network]):
        original = compare_with_original(student, lora, tolerance)
    origin = student.provenance.origin + describe_comparison(original)
    provenance = replace(student.provenance, origin=origin)
    student = replace(student, original=original, provenance=provenance)
    write_bundles({out: student}, request)
    return read_facts(out)


def check_network_folder(folder: Path) -> None:
    """Check that a folder holds a diffusers model.

    Args:
        folder: The fine-tuned network.

    Raises:
        ValueError: It does not.
    """
    if not (folder / "config.json").is_file():
        raise ValueError(
            f"--network {str(folder)!r} is not a diffusers model folder (no config.json): for a"
            " full fine-tune of a run, use its student/ folder"
        )


def export_tuned(
    out: Path, folder: Path, backbone: Backbone, grid: TimeGrid, request: ExportRequest
) -> dict:
    """Export a full fine-tune from a diffusers model folder.

    With `request.rank` it becomes a LoRA, otherwise a checked copy with its scheduler.

    Args:
        out: The folder to write.
        folder: The fine-tuned network, with config.json.
        backbone: The base.
        grid: The times of its steps.
        request: What to write.

    Returns:
        Contents of export.json.

    Raises:
        ValueError: The folder is not a network of this base, or the request does not suit it.
        RuntimeError: The export differs from the student by more than the tolerance.
    """
    check_network_folder(folder)
    if isinstance(backbone.network, Experts):
        raise ValueError(
            f"--network {str(folder)!r} is one network, but the model has two experts: only LoRAs"
            " of both are exported (--run or --published)"
        )
    check_request(request, backbone, adapted=bool(request.rank))
    check_grid(list_timesteps(backbone, grid), folder)
    reference = draw_reference(backbone, items_of(request, backbone), request.seed)
    with reading(folder):
        network = load_whole(type(backbone.network), folder)
    tensors = {name: parameter.detach() for name, parameter in network.named_parameters()}
    provenance = Provenance(origin=f"From the fine-tuned network {code(folder.name)}.")
    student = _tuned_student(backbone, grid, tensors, reference, provenance)
    return _write_tuned(out, student, request)


def _write_tuned(out: Path, student: Student, request: ExportRequest) -> dict:
    write_bundles({out: extract_lora(student, request.rank) if request.rank else student}, request)
    return read_facts(out)


def _tuned_student(
    backbone: Backbone,
    grid: TimeGrid,
    weights: dict[str, Tensor],
    reference: Reference,
    provenance: Provenance,
) -> Student:
    """Return the student of full training; `weights` are all parameters by name."""
    check_shapes(
        shapes_of(weights),
        shapes_of(dict(backbone.network.named_parameters())),
        "fine-tuned weights:",
        REMEDY,
    )
    network = copy.deepcopy(backbone.network)
    network.load_state_dict(weights, strict=False)
    latents = sample_reference(backbone, network, reference, grid)
    return Student(backbone, grid, weights, reference, latents, provenance=provenance)


def _students_of_set(
    out: Path,
    config: RunConfig,
    backbone: Backbone,
    weights: dict[str, Tensor],
    reference: Reference,
    provenance: Provenance,
) -> dict[Path, Student]:
    """Return the LoRA students of a run by folder, one for each K; they share one network."""
    adapters = adapters_of(backbone)
    module = _attach(config, backbone, weights)
    own = build_grid(config.grid, backbone.process)
    grids = build_grids(config.grid, backbone.process, config.objective.step_set)
    return {
        folder: Student(
            backbone,
            grid,
            weights,
            reference,
            sample_reference(backbone, module, reference, grid),
            Adapter(module, config.lora),
            # scores belong to the run's own K
            provenance if grid == own else replace(provenance, scores={}, results=()),
            adapters=adapters,
        )
        for folder, grid in zip(folders_of_set(out, grids, own), grids, strict=True)
    }


@torch.no_grad()
def _attach(config: RunConfig, backbone: Backbone, weights: dict[str, Tensor]) -> nn.Module:
    """Attach the run's LoRA with its trained weights to the backbone's network."""
    module = attach(backbone.network, config.lora, backbone.lora_targets, seed=config.seed)
    if config.objective.conditioned_on_steps:
        condition_on_steps(module, seed=config.seed)
    if isinstance(module, Experts):
        module.place_trained()
    own = {name: p for name, p in module.named_parameters() if p.requires_grad}
    check_shapes(shapes_of(weights), shapes_of(own), "trained weights:", REMEDY)
    for name, tensor in weights.items():
        own[name].copy_(tensor)
    return module


def _run_items(config: RunConfig, backbone: Backbone) -> list[Item]:
    takes_images = backbone.takes_images
    own = bool(config.log.sample_prompts) and (bool(config.log.sample_images) or not takes_images)
    items = [] if own else read_items(config.prompts, images=takes_images)
    return gallery_items(config.log, items, takes_images=takes_images)


def _progress(trained: Trained) -> str:
    """Return the iteration of a student, and how many its run has."""
    return f"iteration {trained.step:,} of {trained.config.steps:,}"


def _trace(trained: Trained, averaged: Sequence[Trained]) -> Provenance:
    """Return the provenance of a run's student, or of its mean with the students of other runs."""
    run, step = trained.run, trained.step
    origin = f"{describe_method(trained.config.objective)}{base_story(run)} "
    if averaged:
        others = [f"{_progress(one)} (seed {one.config.seed})" for one in averaged]
        origin += (
            f"Mean of the weights of {len(averaged) + 1} runs from one start:"
            f" {_progress(trained)} of the run below, and {', '.join(others)} of the others."
        )
    else:
        origin += f"Iteration {step}.{GuardRecord.read(run).story(step, trained.config.steps)}"
    return Provenance(read_object(run / "config.json"), origin=origin)


def _measured(run: Path, config: RunConfig) -> dict:
    """Return `scores` and `results` of a Provenance from evaluations in the run's folder.

    Only evaluations of the very weights in the run's student folder count.
    """
    folder = student_folder(run, config.training)
    own = weights_of(folder) if folder.is_dir() else ""

    def found(path: Path) -> dict:
        content = read_object(path) if path.is_file() else {}
        return content if own and content.get("weights") == own else {}

    results = [
        run / name / "results.md"
        for name in ("vbench", "images")
        if found(run / name / "results.json")
    ]
    return {
        "scores": found(run / "scores.json"),
        "results": tuple(path.read_text(encoding="utf-8") for path in results),
    }


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
