"""Write students as bundles: weights, scheduler, samples, model card and export.json.

What is written is loaded into a stock diffusers pipeline and sampled from the student's own noise
(check.py). If the samples differ by more than the tolerance, nothing is kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import diffusers
import torch
from peft import get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor, nn

from ..adapters.bundle import (
    ABSENT_PARTS,
    ADAPTER_FILES,
    FACTS,
    FLOAT32_PARTS,
    SET,
    TEXT_PARTS,
    VARIANTS,
)
from ..adapters.frozen import merge_carried
from ..adapters.layouts import KeyLayout, adapted_modules
from ..adapters.lora import ADAPTER, host_copy, in_host_memory, merge
from ..adapters.step_condition import baked
from ..adapters.text import TextPart, text_parts
from ..adapters.weights import (
    config_of_expert,
    join,
    of_component,
    rank_and_scale,
    weights_of_config,
)
from ..backbones.autoencode import decode_shown
from ..backbones.base import Backbone
from ..backbones.dtype import torch_dtype
from ..backbones.experts import Experts, split_names
from ..backbones.lora_files import LoraFiles
from ..backbones.scheduler import states_of
from ..data.files import sort_metadata, write_json
from ..data.video import write_clips
from ..diffusion.process import RectifiedFlow
from .card import write_card
from .check import (
    LORA_TOLERANCE,
    TOLERANCE,
    Agreement,
    check_consumer_files,
    check_lora,
    check_network,
    choose_tolerance,
)
from .consumers import consumers
from .replace import replacing
from .request import ExportRequest, check_request
from .student import Student

WHOLE = [0.0, 1.0]
"""Interval of times with guidance that leaves none out."""
EXPERT_ENDS = ("_high_noise", "_low_noise")
"""Suffixes of file names for other programs, if there are two experts."""


def write_bundles(
    students: Mapping[Path, Student], request: ExportRequest = ExportRequest()
) -> dict[Path, dict]:
    """Write each student to its folder. Either all folders are replaced, or none.

    Args:
        students: Student by folder.
        request: What to write.

    Returns:
        Contents of export.json, by folder.

    Raises:
        ValueError: The request does not suit a student, or a folder contains files that no export
            wrote.
        RuntimeError: A reloaded file differs from its student by more than the tolerance.
    """
    for student in students.values():
        check_request(
            request,
            student.backbone,
            adapted=student.adapter is not None,
            conditioned_on_steps=student.conditioned_on_steps,
        )
        _check_text_parts(student, request)
    names = {folder: Path(folder).resolve().name for folder in students}
    shared = {SET: sorted(names.values())} if len(names) > 1 else {}
    with replacing(*students) as aside:
        return {
            folder: _write_bundle(aside / names[folder], student, request, shared)
            for folder, student in students.items()
        }


def _check_text_parts(student: Student, request: ExportRequest) -> None:
    """Refuse files that cannot hold the text-encoder parts of the user's LoRAs."""
    parts = [lora for lora in student.adapters if lora.text]
    others = [name for name in request.formats if name != "diffusers"]
    if parts and (request.fuse or (student.merged and others)):
        setting = "fuse" if request.fuse else f"format {','.join(others)}"
        raise ValueError(
            f"{setting}: {parts[0].where} of model.adapters also changes text encoders, which this"
            " file would not hold: export the format diffusers"
        )


@torch.no_grad()
def _write_bundle(
    folder: Path, student: Student, request: ExportRequest, shared: Mapping[str, Any]
) -> dict:
    """Write one bundle. Its export.json also has the `shared` entries."""
    folder.mkdir()
    # Fuse first: it copies the base, which then moves to host memory while the check loads another.
    fused = _fuse(student) if request.fuse and student.adapter else None
    with in_host_memory([student.network]):
        if student.adapter and not request.fuse:
            facts = _write_lora(folder, student, request)
        else:
            network = _load_whole(student) if fused is None else fused
            facts = _write_network(folder, student, request, network)
        facts |= shared
        grid = student.provenance.config.get("grid", {})
        if grid.get("kind") == "shifted":
            facts["shift"] = grid["shift"]
        if request.hub_base:
            facts["model"] |= {"path": request.hub_base, "on_hub": True}
        write_card(folder, student, facts, _write_samples(folder, student))
    files = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    facts["files"] = sorted(files)
    write_json(folder / FACTS, facts)
    return facts


def _write_lora(folder: Path, student: Student, request: ExportRequest) -> dict[str, Any]:
    """Write and check a LoRA: diffusers' file, and one for each requested consumer."""
    assert student.adapter is not None
    backbone, dtype = student.backbone, request.dtype or "float32"
    loras = list(_plain_loras(student, dtype))
    for lora in loras:
        lora.files.save(folder, lora.layers, lora.config, lora.text)
    backbone.student_scheduler(student.grid).save_pretrained(folder)
    tolerance = choose_tolerance(student, request, LORA_TOLERANCE[dtype])
    agreement = check_lora(folder, student, tolerance)
    facts = _student_facts(student, dtype, agreement, tolerance, adapted=True)
    facts |= {"rank": loras[0].config.r, "alpha": loras[0].config.lora_alpha}
    if student.extraction is not None:
        facts["extraction"] = student.extraction
    if student.original is not None:
        facts["original"] = student.original
    return facts | _write_consumer_files(folder, student, request.formats, loras, tolerance)


@dataclass(frozen=True)
class _PlainLora:
    """Contents of a LoRA file, for the network or for one expert."""

    files: LoraFiles
    layers: dict[str, Tensor]
    """Tensors by peft's names."""
    config: Any
    """peft's settings."""
    text: Mapping[str, TextPart] = field(default_factory=dict)
    """Tensors and settings of text encoders."""

    @property
    def alpha(self) -> float | dict[str, float]:
        """The alpha of all layers, or by layer if they differ."""
        if not (self.config.alpha_pattern or self.config.rank_pattern):
            alpha: float = self.config.lora_alpha
            return alpha
        found = {name: rank_and_scale(self.config, name) for name in adapted_modules(self.layers)}
        return {name: rank * scale for name, (rank, scale) in found.items()}


def _plain_loras(student: Student, dtype: str) -> Iterator[_PlainLora]:
    """Yield the student's LoRA, or one LoRA per expert."""
    assert student.adapter is not None
    module, steps = student.adapter.module, student.grid.steps
    configs: Any = module.peft_config
    found = get_peft_model_state_dict(module, state_dict=student.weights, adapter_name=ADAPTER)
    parts = [(module, found, student.weights)]
    if isinstance(module, Experts):
        names, networks = module.split.names, module.networks
        pair, trained_pair = split_names(found, names), split_names(student.weights, names)
        parts = [(networks[name], pair[name], trained_pair[name]) for name in names]
    for files, (network, own, trained) in zip(student.backbone.lora_files, parts, strict=True):
        settings = configs[ADAPTER]
        if isinstance(module, Experts):
            settings = config_of_expert(settings, files.component, module.split.names)
        layers, config = baked(own, settings, network, trained, steps)
        text: dict[str, TextPart] = {}
        if student.merged:
            users = of_component(student.adapters, files.component)
            whole = join([*users, weights_of_config(layers, config)])
            layers, config = whole.state(), whole.config()
            text = text_parts(users)
        kept = {key: x.to(getattr(torch, dtype)).contiguous().cpu() for key, x in layers.items()}
        yield _PlainLora(files, kept, config, text)


def _write_consumer_files(
    folder: Path,
    student: Student,
    formats: tuple[str, ...],
    loras: list[_PlainLora],
    tolerance: float,
) -> dict:
    """Write and check the LoRA, or those of both experts, for each consumer."""
    extras: dict = {}
    stem = student.provenance.config.get("name") or folder.name
    written: dict[str, str | list[str]] = {}
    errors: dict[str, float] = {}
    for name in sorted(set(formats) - {"diffusers"}, key=formats.index):
        consumer = consumers()[name]
        ends = EXPERT_ENDS if len(loras) > 1 else ("",)
        paths = [f"{name}/{stem}_{student.grid.steps}steps{end}.safetensors" for end in ends]
        files = [folder / path for path in paths]
        for file, lora in zip(files, loras, strict=True):
            _save_layout(file, consumer.layout, student, lora.layers, lora.alpha)
        modules = [adapted_modules(lora.layers) for lora in loras]
        found = check_consumer_files(files, consumer.layout, modules, student, tolerance)
        errors[name] = found.error
        written[name] = paths if len(paths) > 1 else paths[0]
        extras |= consumer.write_extras(files, student)
    return {"formats": written, "errors": errors} | extras


def _save_layout(
    path: Path,
    layout: KeyLayout,
    student: Student,
    layers: dict[str, Tensor],
    alpha: float | dict[str, float],
) -> None:
    rank = str(_read_rank(layers))
    tensors = layout.write(layers, alpha, student.backbone.pipeline_class)
    path.parent.mkdir(exist_ok=True)
    metadata = {"format": "pt", "ss_network_dim": rank, "ss_network_alpha": rank}
    save_file(tensors, path, metadata=metadata)
    sort_metadata(path)


def _read_rank(layers: dict[str, Tensor]) -> int:
    return next(len(tensor) for key, tensor in layers.items() if key.endswith("lora_A.weight"))


def _write_network(
    folder: Path, student: Student, request: ExportRequest, network: Any
) -> dict[str, Any]:
    """Write and check a whole network, given in float32."""
    backbone, dtype = student.backbone, request.dtype or student.backbone.config.dtype
    _cast(network, backbone, getattr(torch, dtype))
    network.save_pretrained(folder)
    backbone.student_scheduler(student.grid).save_pretrained(folder)
    tolerance = choose_tolerance(student, request, TOLERANCE[dtype])
    agreement = check_network(folder, student, tolerance)
    return _student_facts(student, dtype, agreement, tolerance, adapted=False)


def _load_whole(student: Student) -> nn.Module:
    # Load it again: the backbone's network may be sharded.
    network = student.backbone.fresh_network().cpu().float()
    network.load_state_dict(student.weights, strict=False)
    return network


def _fuse(student: Student) -> nn.Module:
    """Return base and LoRA as one network, merged in float32 in host memory."""
    network = host_copy(student.network).float()
    network.load_state_dict(student.weights, strict=False)
    merge_carried(merge(network))
    return network


def _cast(network: nn.Module, backbone: Backbone, dtype: torch.dtype) -> None:
    """Cast a float32 copy of the backbone's network to `dtype`, in place.

    Parameters that the family keeps in float32 stay in float32.
    """
    like = {
        name.replace(".base_layer", ""): x.dtype
        for name, x in chain(backbone.network.named_parameters(), backbone.network.named_buffers())
    }
    for name, x in chain(network.named_parameters(), network.named_buffers()):
        x.data = x.data.to(dtype if like[name] == torch_dtype(backbone.config) else like[name])


def _teacher(config: dict, *, flow: bool = False) -> dict | None:
    """Return the guidance and, for a flow, the shift of the teacher in training; None if the run is
    not known.
    """
    if "objective" not in config:
        return None
    objective = config["objective"]
    second, times = objective.get("cfg_2"), list(objective.get("cfg_interval", WHOLE))
    return {
        "guidance": objective["cfg"],
        **({} if second is None else {"guidance_2": second}),
        **({"use_dynamic_cfg": True} if objective.get("use_dynamic_cfg") else {}),
        **({} if times == WHOLE else {"guidance_interval": times}),
        **({"shift": config["log"]["teacher_shift"]} if flow and "log" in config else {}),
        "negative_prompt": config.get("prompts", {}).get("negative", ""),
    }


def _student_facts(
    student: Student, dtype: str, agreement: Agreement, tolerance: float, *, adapted: bool
) -> dict:
    """Return the entries of export.json that every student has.

    `model` is the base to load the files on. `merged` lists the user's LoRAs that they include.

    Args:
        student: The student.
        dtype: Dtype of the files.
        agreement: Differences found by the check.
        tolerance: Allowed error.
        adapted: Whether the files are a LoRA.
    """
    backbone = student.backbone
    scheduler = backbone.student_scheduler(student.grid)
    model = asdict(backbone.config)
    inside = student.adapters and (student.merged or not adapted)
    beside = [] if inside else [lora.digest for lora in student.adapters]
    text = sorted({part for lora in student.adapters for part in lora.text})
    kind = type(scheduler)
    module = "diffusers" if hasattr(diffusers, kind.__name__) else kind.__module__
    even = backbone.stock.even_sigmas
    return {
        "error": agreement.error,
        "sample_errors": list(agreement.by_sample),
        "tolerance": tolerance,
        "samples": len(student.reference.z),
        "steps": student.grid.steps,
        "timesteps": student.timesteps,
        "guidance": 1.0,
        "teacher": _teacher(
            student.provenance.config, flow=isinstance(backbone.process, RectifiedFlow)
        ),
        "dtype": dtype,
        "pipeline": backbone.pipeline_class,
        "network": backbone.spec.network_folder,
        "scheduler": {
            "module": module,
            "name": kind.__name__,
            "states": states_of(scheduler, student.grid.steps, even_sigmas=even),
        },
        "model": model | ({"adapters": ()} if inside else {}),
        **({"merged": model["adapters"]} if inside else {}),
        **({ADAPTER_FILES: beside} if beside else {}),
        **({TEXT_PARTS: text} if student.merged and text else {}),
        "video": asdict(backbone.size),
        FLOAT32_PARTS: backbone.spec.float32_parts(backbone.folder, backbone.config),
        ABSENT_PARTS: backbone.stock.absent_parts(),
        VARIANTS: backbone.stock.variants(*([] if adapted else [backbone.spec.network_folder])),
    }


def _write_samples(folder: Path, student: Student) -> list[str]:
    """Write the reference samples as videos or images, one per prompt, and return their names."""
    prompts = student.reference.prompts
    if not prompts:
        return []
    videos = decode_shown(student.backbone, student.latents[: len(prompts)])
    return write_clips(folder / "samples", videos, student.backbone.size.fps)
