"""A run with untrained weights on the simulated device: its networks, engines and iterations."""

from __future__ import annotations

import json
import math
import shutil
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import collectives
import counting
import sharded
import torch
import torch.distributed as dist
from cases import Case
from counting import Counter, Counts
from torch import nn
from torch._subclasses.fake_tensor import unset_fake_temporarily

from benchmarks.untrained import Stage, stage_of, text_like
from tdmvid.backbones.base import Backbone
from tdmvid.backbones.registry import find_family
from tdmvid.config import RunConfig, load_config
from tdmvid.diffusion.sampler import sample
from tdmvid.distill.grids import build_grid
from tdmvid.parallel import launch
from tdmvid.parallel.sequence import SequenceGroup
from tdmvid.plan.counts import Pipeline
from tdmvid.plan.make import make_plan
from tdmvid.plan.plan import Plan
from tdmvid.roles.build import empty_base

RANKS = 2
"""Ranks of DeepSpeed's engines."""
CONFIGS = Path(__file__).resolve().parents[2] / "configs"
UNET = {
    "block_out_channels": [320, 640],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
    "layers_per_block": 1,
    "mid_block_type": None,
}
FEW_BLOCKS = {
    "StableDiffusionPipeline": UNET,
    "StableDiffusionXLPipeline": UNET
    | {"transformer_layers_per_block": [1, 1], "attention_head_dim": [5, 10]},
    "FluxPipeline": {"num_layers": 1, "num_single_layers": 1},
    "Flux2KleinPipeline": {"num_layers": 1, "num_single_layers": 1},
}
"""Config changes that leave a family two blocks in their real width, if it is not `num_layers`."""


def shorten(config: RunConfig, blocks: int, work: Path) -> RunConfig:
    """Return the run on a copy of its teacher's configs with fewer blocks.

    Args:
        blocks: Number of blocks of a transformer; 2 for any U-Net; 0 keeps all.
        work: Folder for the copy.
    """
    folder, family = find_family(config.model, weights=False)
    if not blocks:
        return config
    out = work / f"{folder.name}-{blocks}"
    shutil.copytree(folder, out, dirs_exist_ok=True)
    changes = FEW_BLOCKS.get(family.pipeline_class, {"num_layers": blocks})
    for name in family.spec.components(out):
        path = out / name / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return replace(config, model=replace(config.model, path=str(out)))


def on_device(module: nn.Module) -> nn.Module:
    """Move all tensors of a module from the meta device to "cuda" in place."""
    for part in module.modules():
        for name, parameter in list(part._parameters.items()):
            if parameter is not None:
                new = torch.empty(parameter.shape, dtype=parameter.dtype, device="cuda")
                part._parameters[name] = nn.Parameter(new, requires_grad=parameter.requires_grad)
        for name, buffer in list(part._buffers.items()):
            if buffer is not None:
                part._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype, device="cuda")
        for name, table in list(vars(part).items()):  # of positions, which is no buffer
            if isinstance(table, torch.Tensor) and table.is_meta:
                setattr(part, name, torch.empty(table.shape, dtype=table.dtype, device="cuda"))
    return module


def load_untrained(config: RunConfig) -> Backbone:
    """Return the backbone of a run with fake weights."""
    folder, family = find_family(config.model, weights=False)

    class Untrained(family):
        """The family with parts created from their configs."""

        def fresh_network(self) -> nn.Module:
            return empty_base(config, folder, family)

        def _part(self, *_: Any, **__: Any) -> Any:
            with unset_fake_temporarily(), torch.device("meta"):
                vae, _ = self.spec.empty_vae(self.network, folder, self.config, self.size)
            return on_device(vae)

    Untrained.__name__ = family.__name__
    with unset_fake_temporarily():
        backbone = Untrained(folder, config.model, config.video, torch.device("cuda"))
    on_device(backbone.network).eval()
    return backbone


class _Alone(launch.World):
    """A rank that shares its sequence and trains without DeepSpeed."""

    distributed = False


def build_stage(config: RunConfig) -> Stage:
    """Return a run's networks and engines with text embeddings, on one rank or the first of a
    sequence-parallel group.
    """
    shared = SequenceGroup(dist.group.WORLD) if config.parallel.sequence > 1 else None
    world = _Alone(0, config.parallel.sequence, 0, torch.device("cuda"), shared)
    return stage_of(load_untrained(config), config, world)


def plan(config: RunConfig, *, pictures: bool = False, ranks: int = 1) -> Plan:
    """Plan a run with one micro-batch per iteration, as on the first of several ranks.

    Without samples, the plan does not include text encoders and autoencoder, which are then not
    loaded.

    Args:
        config: The run.
        pictures: Whether it makes samples.
        ranks: Ranks with a micro-batch of their own.
    """
    config = replace(config, batch=replace(config.batch, total=ranks * config.batch.micro))
    if pictures:
        return make_plan(config)
    nothing = Pipeline(text=0, vae=0, decoding=0)
    with patch("tdmvid.plan.make.count_pipeline", lambda networks: nothing):
        return make_plan(config, ranks=ranks * config.parallel.sequence)


def prime(stage: Stage) -> None:
    """Create the optimizer state and everything that first calls cache, like a first iteration."""
    for engine in stage.engines.values():
        for parameter in engine.trainable.values():
            parameter.grad = torch.zeros_like(parameter)
        engine.step()
    with torch.no_grad():
        stage.call("teacher")


def measure(config: RunConfig, counter: Counter) -> Counts:
    """Count an iteration that is not the first."""
    with collectives.ranks(config.parallel.sequence):
        stage = build_stage(config)
        prime(stage)
        counter.restart()
        stage.iterate(1)
    return counter.restart()


def measure_sharded(config: RunConfig, counter: Counter) -> Counts:
    """Count an iteration of DeepSpeed's engines that is not the first."""
    with sharded.launched(RANKS):
        world = launch.World(0, RANKS, 0, torch.device("cuda"))
        stage = stage_of(load_untrained(config), config, world)
        stage.iterate(1)
        counter.restart()
        stage.iterate(2)
    return counter.restart()


def draw_samples(config: RunConfig, counter: Counter) -> Counts:
    """Count the operations of generating and decoding one sample."""
    stage = build_stage(config)
    prime(stage)
    assert stage.backbone.vae
    counter.restart()
    z = torch.randn(1, *stage.shape[1:], device="cuda")
    with stage.engines["student"].averaged():
        latents = sample(stage.roles.student, z, stage.conds[0].rows(slice(0, 1)), stage.grid)
    stage.backbone.decode(latents)
    return counter.restart()


def run_stock(config: RunConfig, counter: Counter) -> Counts:
    """Count the operations of the stock pipeline with a student's scheduler, as in the check of the
    export.
    """
    backbone = load_untrained(config)
    grid = build_grid(config.grid, backbone.process)
    pipeline = backbone.stock.pipeline(backbone.network)
    pipeline.scheduler = backbone.student_scheduler(grid)
    z, text = torch.randn(1, *backbone.latent_shape(), device="cuda"), text_like(backbone, 1, 0)
    counter.restart()
    backbone.stock.latents(pipeline, z, text, steps=grid.steps)
    return counter.restart()


COUNT = {
    "iteration": measure,
    "sharded": measure_sharded,
    "samples": draw_samples,
    "stock": run_stock,
}


def attempt(case: Case, work: Path) -> dict[str, Any]:
    """Return the counts of a case with its plan, or its error. The rollout makes no call."""
    try:
        config = shorten(
            load_config(CONFIGS / f"{case.config}.json", case.changes), case.blocks, work
        )
        ranks = RANKS if case.what == "sharded" else 1
        planned = plan(config, pictures=case.what == "samples", ranks=ranks)
        steps = config.grid.calls
        with counting.device(host_value=steps) as counter:
            counts = COUNT[case.what](planned.config, counter)
    except Exception as error:  # libraries raise all kinds of errors; continue with the other cases
        return {"error": "".join(traceback.format_exception(error))[-3000:]}
    stops = config.objective.rollout == "stop"
    forwards = planned.calls.forwards - (steps - 1) / 2 * stops
    made = replace(planned, calls=replace(planned.calls, forwards=forwards))
    memory, traffic = planned.memory(), made.traffic()
    if case.what != "sharded":  # several ranks are planned with DeepSpeed, but `_Alone` has none
        memory.pop("DeepSpeed's master weights and buffers", None)
    held = math.fsum(memory.values())
    peaks = {
        "iteration": held,
        "sharded": held,
        "samples": planned.moments()["making samples"],
    }
    return counts.as_dict() | {
        "error": None,
        "planned_peak": peaks.get(case.what),
        "planned_sent": math.fsum(traffic.values()) if ranks > 1 else traffic.get("tokens", 0.0),
    }
