"""A run of an untrained teacher on the pretended device: its networks, engines and iterations."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from counting import Counter, Counts
from torch import nn
from torch._subclasses.fake_tensor import unset_fake_temporarily

from benchmarks.untrained import Stage, text_like
from tdmvid.backbones.base import Backbone
from tdmvid.backbones.registry import find_family
from tdmvid.config import RunConfig
from tdmvid.diffusion.denoiser import Guided
from tdmvid.distill.grids import build_grid
from tdmvid.distill.objective import Roles
from tdmvid.parallel import launch
from tdmvid.parallel.rng import Streams
from tdmvid.roles.build import build_engines, empty_base

UNET = {
    "block_out_channels": [320, 640],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
    "layers_per_block": 1,
}
FEW_BLOCKS = {
    "StableDiffusionPipeline": UNET,
    "StableDiffusionXLPipeline": UNET
    | {"transformer_layers_per_block": [1, 2], "attention_head_dim": [5, 10]},
}
"""What leaves a family two blocks of their own width, where it is not `num_layers`."""


def shorten(config: RunConfig, blocks: int, work: Path) -> RunConfig:
    """Return the run on a copy of its teacher's configs with so many blocks.

    Args:
        blocks: of a transformer; 2 for any U-Net; 0 leaves all.
        work: where the copy is written.
    """
    folder, family = find_family(config.model, weights=False)
    if not blocks:
        return config
    out = work / f"{folder.name}-{blocks}"
    shutil.copytree(folder, out, dirs_exist_ok=True)
    path = out / family.spec.network_folder / "config.json"
    changes = FEW_BLOCKS.get(family.pipeline_class, {"num_layers": blocks})
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return replace(config, model=replace(config.model, path=str(out)))


def on_device(module: nn.Module) -> nn.Module:
    """Give a module of the meta device parameters and buffers on "cuda", in place."""
    for part in module.modules():
        for name, parameter in list(part._parameters.items()):
            if parameter is not None:
                new = torch.empty(parameter.shape, dtype=parameter.dtype, device="cuda")
                part._parameters[name] = nn.Parameter(new, requires_grad=parameter.requires_grad)
        for name, buffer in list(part._buffers.items()):
            if buffer is not None:
                part._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype, device="cuda")
    return module


def load_untrained(config: RunConfig) -> Backbone:
    """Return the backbone of a run with weights that are not there."""
    folder, family = find_family(config.model, weights=False)

    class Untrained(family):
        """The family, with parts from their configs."""

        def _part(self, kind: Any, name: str, dtype: torch.dtype | None = None) -> Any:
            return empty_base(config, folder, family)

    Untrained.__name__ = family.__name__
    with unset_fake_temporarily():
        backbone = Untrained(folder, config.model, config.video, torch.device("cuda"))
    on_device(backbone.network).eval()
    return backbone


def build_stage(config: RunConfig) -> Stage:
    """Return a run's networks and engines, with text, on one rank."""
    world = launch.World(0, 1, 0, torch.device("cuda"))
    backbone = load_untrained(config)
    engines, teacher = build_engines(config, world, backbone)
    denoisers = {role: backbone.denoiser(engine) for role, engine in engines.items()}
    roles = Roles(
        denoisers["student"],
        denoisers["fake"],
        Guided(teacher, text_like(backbone, 1, 0), config.objective.cfg),
    )
    conds = [text_like(backbone, config.batch.micro, 1) for _ in range(config.batch.accumulation)]
    return Stage(
        config,
        backbone,
        roles,
        engines,
        build_grid(config.grid, backbone.process),
        conds,
        Streams(config.seed, world.device),
        0,
    )


def measure(config: RunConfig, counter: Counter) -> Counts:
    """Count the second iteration of a run."""
    stage = build_stage(config)
    stage.iterate(0)  # makes the optimiser's state
    counter.restart()
    stage.iterate(1)
    return counter.restart()
