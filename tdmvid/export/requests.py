"""Exports of a run's checkpoints, of published LoRAs and of full fine-tunes, in one process without
a launcher.

A checkpoint of any number of ranks holds the student's whole weights beside every rank's shards.
"""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ..adapters.bundle import read_facts
from ..adapters.extract import adapt, extract, read_published
from ..adapters.lora import attach, in_host_memory
from ..adapters.step_condition import NAME, condition_on_steps, with_step_count
from ..backbones.base import Backbone
from ..backbones.registry import load_backbone
from ..config import LoraSettings, RunConfig, load_config
from ..data.prompts import read_prompts
from ..diffusion.grid import TimeGrid
from ..diffusion.sampler import ddim
from ..distill.grids import build_grid, build_grids
from ..roles.rounding import story as base_story
from ..sampling.shots import noise
from ..sampling.student import weights_of
from ..train.checkpoint import Checkpoints, whole
from .bundle import export_fused, export_lora, export_network, replacing
from .card import Story
from .consumers import check_formats


@dataclass(frozen=True)
class Options:
    """What to write."""

    formats: tuple[str, ...] = ("diffusers",)
    dtype: str = ""
    """Of the files; empty is float32 for a LoRA and the base's for a network."""
    fuse: bool = False
    """Base and LoRA in one network."""
    rank: int = 0
    """Extract a LoRA of this rank from a full fine-tune; 0 writes the network itself."""
    prompts: tuple[str, ...] = ()
    """Of the check and the sample videos; empty takes the run's."""
    seed: int = 1234
    tolerance: float = 0.0
    """Of the check's relative difference; 0 is that of the dtypes."""

    def __post_init__(self):
        if not 0 <= self.tolerance < 1:
            raise ValueError(
                f"tolerance={self.tolerance:g}: a relative difference below 1, or 0 for that of the"
                " dtypes"
            )
        if self.dtype not in ("", "float32", "float16", "bfloat16"):
            raise ValueError(f"dtype={self.dtype!r}: choose float32, float16 or bfloat16")
        if self.fuse and (self.rank or self.formats != ("diffusers",)):
            raise ValueError("fuse writes a whole network: leave out rank and formats")


def export_run(
    out: Path,
    run: Path,
    options: Options = Options(),
    *,
    checkpoint: Path | None = None,
    weights: Literal["", "ema", "raw"] = "",
) -> dict:
    """Export a run's newest checkpoint, or another one, to `out`; returns export.json.

    A run over a set of K has one bundle for each: `out`, and out_2steps and so on beside it.

    weights: the averaged or the raw ones; empty takes the average if the run keeps one. ValueError
    for a damaged checkpoint and for what the run does not have; RuntimeError if the export differs.
    """
    if not (run / "config.json").is_file():
        raise ValueError(
            f"{run} is no run folder: it has no config.json; give the folder that launch/train.py"
            " wrote, e.g. runs/shapes_4nfe"
        )
    config = load_config(run / "config.json")
    tensors, step = _student(run, checkpoint, weights, config)
    backbone = load_backbone(config.model, config.video, device=_device())
    story = Story(
        _plain_config(run),
        origin=Story.origin + base_story(run),
        prompts=options.prompts or _prompts(config),
    )
    if (
        step == config.steps and weights != ("raw" if config.ema else "ema") and not options.rank
    ):  # what the run itself exported
        story = replace(story, **_measured(run, config))
    own = build_grid(config.grid, backbone.process)
    student = _Student(
        backbone, own, replace(story, origin=f"{story.origin} Iteration {step}."), options
    )
    if config.training != "lora":
        return student.write_network(out, tensors)
    if options.rank:
        raise ValueError("rank is for a full fine-tune; this run trained a LoRA")
    check_formats(options.formats, backbone)
    module = attach(backbone.network, config.lora, backbone.lora_targets, seed=config.seed)
    if config.objective.conditioned_on_steps:
        condition_on_steps(module, seed=config.seed)
    own_story, grids = (
        student.story,
        build_grids(config.grid, backbone.process, config.objective.step_set),
    )
    folders = [_of_steps(out, grid, own) for grid in grids]
    with replacing(*folders) as together:  # the bundles of one checkpoint, or the older ones
        for student.grid, folder in zip(grids, folders):
            student.story = (
                own_story if student.grid == own else replace(own_story, scores={}, results=())
            )
            student.write_lora(together / folder.name, module, tensors, config.lora)
    return read_facts(out)


def export_published(
    out: Path,
    path: Path,
    backbone: Backbone,
    grid: TimeGrid,
    options: Options,
    *,
    scale: float = 1.0,
) -> dict:
    """A published LoRA as a bundle with the grid it is meant for; scale: at which its authors say
    to load it.
    """
    check_formats(options.formats, backbone)
    state, alpha = read_published(path, backbone, scale=scale)
    module, tensors, settings = adapt(backbone, state, alpha)
    story = Story(
        origin=f"Converted from the published `{path.name}`"
        + (f", its scale of {scale:g} included." if scale != 1 else "."),
        prompts=options.prompts,
    )
    return _Student(backbone, grid, story, options).write_lora(out, module, tensors, settings)


def export_tuned(
    out: Path, folder: Path, backbone: Backbone, grid: TimeGrid, options: Options
) -> dict:
    """A full fine-tune in a diffusers model folder as a LoRA of `options.rank`, or as a checked
    copy with its scheduler.
    """
    if not (folder / "config.json").is_file():
        raise ValueError(
            f"network={str(folder)!r} is no diffusers model folder: it has no config.json; of a"
            " run's full fine-tune it is runs/X/student"
        )
    network = type(backbone.network).from_pretrained(folder)
    tensors = {name: parameter.detach() for name, parameter in network.named_parameters()}
    story = Story(origin=f"From the fine-tuned network `{folder.name}`.", prompts=options.prompts)
    return _Student(backbone, grid, story, options).write_network(out, tensors)


def _of_steps(out: Path, grid: TimeGrid, own: TimeGrid) -> Path:
    """Where the student of one K of a set goes: `out` for the one that the run's samples showed."""
    return out if grid == own else out.with_name(f"{out.name}_{grid.steps}steps")


class _Student:
    """A student to be written: base, grid, and the samples that each export must reproduce."""

    def __init__(self, backbone: Backbone, grid: TimeGrid, story: Story, options: Options):
        if not story.prompts:
            raise ValueError(
                "prompts is empty: the export is checked on samples, give at least one prompt"
            )
        self.backbone, self.grid, self.story, self.options = backbone, grid, story, options
        self.cond = backbone.encode_prompts(list(story.prompts)).to(backbone.device)
        backbone.release_text()
        z = [noise(prompt, options.seed, backbone.latent_shape()) for prompt in story.prompts]
        self.z = torch.stack(z).to(backbone.device)

    def write_lora(
        self,
        out: Path,
        module: nn.Module,
        tensors: dict[str, Tensor],
        settings: LoraSettings,
        extra: dict | None = None,
    ) -> dict:
        own = {
            name: parameter
            for name, parameter in module.named_parameters()
            if parameter.requires_grad
        }
        _check_shapes(tensors, own)
        with torch.no_grad():
            for name, tensor in tensors.items():
                own[name].copy_(tensor)
        common = self._common(self._sample(module))
        if self.options.fuse:
            export_fused(
                out, module=module, weights=tensors, dtype=self.options.dtype or None, **common
            )
            return read_facts(out)
        with in_host_memory([module]):  # the check loads another base
            export_lora(
                out,
                module=module,
                weights=tensors,
                settings=settings,
                formats=self.options.formats,
                dtype=self.options.dtype or "float32",
                extra=extra,
                **common,
            )
        return read_facts(out)

    def write_network(self, out: Path, tensors: dict[str, Tensor]) -> dict:
        _check_shapes(tensors, dict(self.backbone.network.named_parameters()))
        network = copy.deepcopy(self.backbone.network)
        network.load_state_dict(tensors, strict=False)
        expected = self._sample(network)
        del network
        if not self.options.rank:
            if self.options.formats != ("diffusers",):
                raise ValueError(
                    f"format {','.join(self.options.formats)}: a whole network has no LoRA formats,"
                    " give a rank to extract a LoRA"
                )
            with in_host_memory([self.backbone.network]):
                export_network(
                    out, weights=tensors, dtype=self.options.dtype or None, **self._common(expected)
                )
            return read_facts(out)
        check_formats(self.options.formats, self.backbone)
        state, errors = extract(self.backbone.network, tensors, self.options.rank)
        module, adapter, settings = adapt(self.backbone, state)
        found = self._sample(module)
        errors["latents_error"] = ((found - expected).norm() / expected.norm()).item()
        return self.write_lora(out, module, adapter, settings, {"extraction": errors})

    def _common(self, expected: Tensor) -> dict:
        return {
            "backbone": self.backbone,
            "grid": self.grid,
            "expected": expected,
            "z": self.z,
            "cond": self.cond,
            "story": self.story,
            "tolerance": self.options.tolerance,
        }

    def _sample(self, network: nn.Module) -> Tensor:
        denoiser, conditioned = (
            with_step_count(self.backbone.denoiser(network), network),
            NAME in dict(network.named_children()),
        )
        cond = (
            self.cond.with_step_count(self.grid.steps, len(self.z), self.z.device)
            if conditioned
            else self.cond
        )
        return ddim(denoiser, self.z, cond, self.grid)


def _student(
    run: Path, checkpoint: Path | None, weights: str, config: RunConfig
) -> tuple[dict[str, Tensor], int]:
    """The student's whole trained tensors by parameter name, and after how many iterations."""
    checkpoints = Checkpoints(run / "checkpoints", keep=1)
    path = whole(checkpoint) if checkpoint else checkpoints.latest()
    if path is None:
        raise ValueError(f"{run} has no whole checkpoint: train it first, or give another --run")
    averaged = path / "student" / "average.safetensors"
    if weights == "ema" and not averaged.is_file():
        raise ValueError(
            f"{path} holds no average, the run had ema={config.ema:g}: export the raw weights"
        )
    use = (
        averaged
        if weights != "raw" and averaged.is_file()
        else path / "student" / "weights.safetensors"
    )
    return load_file(use), json.loads((path / "checkpoint.json").read_text())["step"]


def _check_shapes(tensors: dict[str, Tensor], own: dict[str, nn.Parameter]) -> None:
    given, here = (
        {name: tuple(tensor.shape) for name, tensor in side.items()} for side in (tensors, own)
    )
    if given != here:
        name, shape = sorted(set(given.items()) ^ set(here.items()))[0]
        raise ValueError(
            f"{name} {shape} does not fit: the weights are of another model or LoRA than the config"
            " names"
        )


def _prompts(config: RunConfig) -> tuple[str, ...]:
    path = Path(config.prompts.path)
    if config.log.sample_prompts:
        return tuple(config.log.sample_prompts)
    return tuple(read_prompts(path, column=config.prompts.column)[: config.log.sample_count])


def _measured(run: Path, config: RunConfig) -> dict:
    """scores and results of a Story: what programs of eval/ left in the run's folder, of the very
    student that lies in it.
    """
    folder = run / ("lora" if config.training == "lora" else "student")
    own = weights_of(folder) if folder.is_dir() else ""

    def found(path: Path) -> dict:
        content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
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


def _plain_config(run: Path) -> dict:
    return json.loads((run / "config.json").read_text(encoding="utf-8"))


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
