"""From a config to the things a run works with."""

from __future__ import annotations

import copy
import hashlib
import importlib.util
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from ..adapters.lora import Base, attach, shared_copy, start_from
from ..adapters.step_condition import condition_on_steps, told
from ..backbones.base import Backbone, check_attention, load_backbone
from ..config import RunConfig, to_dict
from ..data.embeddings import EmbeddingCache, embed_prompts
from ..data.prompts import PromptOrder, read_prompts
from ..diffusion.denoiser import Cond, Guided
from ..diffusion.grid import TimeGrid, shifted
from ..diffusion.process import Process
from ..distill.objective import Roles
from ..parallel import launch
from ..parallel.engine import TorchEngine
from ..parallel.rng import Streams
from .recompute import keep_attention


@dataclass(frozen=True)
class Run:
    """A run, set up: what the loop needs and nothing else."""

    config: RunConfig
    world: launch.World
    backbone: Backbone
    grid: TimeGrid
    """Of samples and export."""
    grids: tuple[TimeGrid, ...]
    """Of training: one, or one for each K of the objective's set."""
    roles: Roles
    engines: dict
    streams: Streams
    conds: Callable[[list[int]], Cond]
    """Training conditioning by prompt index."""
    order: PromptOrder
    prompts_digest: str
    null: Cond
    gallery_prompts: list[str]
    gallery: Cond
    evaluated: Callable[[], int]
    """Samples that went through any of the networks so far; a guided one counts twice."""

    @property
    def fingerprint(self) -> dict:
        """What a checkpoint must agree on to be resumed by this run."""
        settings = to_dict(self.config)
        keys = ("seed", "model", "video", "grid", "objective", "training", "lora", "student", "fake", "ema")
        falls = any(optim.schedule != "constant" for optim in (self.config.student, self.config.fake))
        batch = self.config.batch
        return {key: settings[key] for key in keys} | {
            "batch": {"micro": batch.micro, "micro_batches": batch.accumulation * self.world.data_size},  # of all ranks together
            "prompts": self.prompts_digest, "init": self.config.init or None, "backend": type(self.engines["student"]).__name__,
            "steps": self.config.steps if falls else None,  # a rate that falls to 0 at the last step depends on it
        }


def build_run(config: RunConfig, world: launch.World) -> Run:
    """Load the teacher, embed the prompts, attach the roles; ValueError for what a user can mend."""
    device = world.device
    check_attention(config.model.attention, device)
    check_objective(config, distributed=world.distributed)
    if config.parallel.compile:
        check_compile(world)
    backbone = load_backbone(config.model, config.video, device=device)
    grid, grids = config.grid.build(backbone.process), config.grid.family(backbone.process, config.objective.step_set)
    reference_grid(config, backbone.process)  # what the end of the run needs is refused at its start
    cache, prompts = embeddings(config, backbone, world)
    gallery_prompts = list(config.log.sample_prompts) or prompts[: config.log.sample_count]
    null = cache.get([""]).to(device)
    engines, teacher = build_engines(config, world, backbone)
    networks = {role: backbone.denoiser(engine) for role, engine in engines.items()}
    denoisers = {role: told(network, engines[role].module) for role, network in networks.items()}
    roles = Roles(denoisers["student"], denoisers["fake"], Guided(teacher, null, config.objective.cfg))
    return Run(
        config, world, backbone, grid, grids, roles, engines, Streams(config.seed, device),
        conds=lambda indices: cache.get([prompts[i] for i in indices]).to(device),
        order=PromptOrder(len(prompts), config.seed), prompts_digest=_digest(prompts), null=null,
        gallery_prompts=gallery_prompts, gallery=cache.get(gallery_prompts).to(device),
        evaluated=lambda: sum(network.evaluated for network in (*networks.values(), teacher)),
    )


def reference_grid(config: RunConfig, process: Process) -> TimeGrid:
    """The times of the teacher's long samples."""
    try:
        return shifted(config.log.teacher_steps, config.log.teacher_shift, process)
    except ValueError as error:
        raise ValueError(
            f"log.teacher_steps={config.log.teacher_steps}: too many for the teacher, or log.teacher_shift={config.log.teacher_shift} is no flow shift ({error})"
        ) from None


def embeddings(config: RunConfig, backbone: Backbone, world: launch.World) -> tuple[EmbeddingCache, list[str]]:
    """The cache with every prompt of the run in it, and the training prompts; the text encoder is gone afterwards."""
    if not config.prompts.path:
        raise ValueError("prompts.path is empty: give a .txt, .jsonl, .csv or .parquet file of prompts")
    prompts = read_prompts(Path(config.prompts.path), column=config.prompts.column)
    prompts = prompts[: config.prompts.limit] if config.prompts.limit else prompts
    root, key = Path(config.prompts.cache), backbone.text_fingerprint()
    if world.primary:
        embed_prompts(EmbeddingCache(root, key), ["", *prompts, *config.log.sample_prompts], backbone.encode_prompts)
    launch.barrier()
    backbone.release_text()
    return EmbeddingCache(root, key), prompts


def _digest(prompts: list[str]) -> str:
    return f"{len(prompts)} prompts, sha256 {hashlib.sha256(json.dumps(prompts).encode()).hexdigest()[:16]}"


def check_objective(config: RunConfig, *, distributed: bool) -> None:
    """ValueError for an objective that cannot run with the rest of the config."""
    objective = config.objective
    missing = set(objective.roles) - {"student", "fake"}
    if missing:
        raise ValueError(
            f"objective.kind={objective.kind!r} trains a {missing.pop()}, which no model family has yet: it runs in benchmarks/toy.py;"
            " choose another kind here"
        )
    if objective.told_steps and config.training != "lora":
        raise ValueError("objective.step_set with training='full': the condition on K lives beside an adapter; use training='lora', or k_condition=false")
    if objective.through_scores and distributed:
        raise ValueError(
            f"objective.kind={objective.kind!r} differentiates through fake and teacher, which DeepSpeed takes for a training step: start one process"
            " without a launcher, or choose kind 'tdm'"
        )
    if objective.through_scores and config.parallel.gradient_checkpointing and config.training == "lora":
        raise ValueError(
            f"objective.kind={objective.kind!r} with gradient_checkpointing: the teacher's blocks would be computed again with the student's adapter;"
            " set parallel.gradient_checkpointing=false, or choose kind 'tdm'"
        )


def build_engines(config: RunConfig, world: launch.World, backbone: Backbone) -> tuple[dict, object]:
    """Engines of student and fake, and the unguided teacher.

    Under ZeRO-3 an engine leaves a rank only its share of a network, so three whole networks are
    made one after the other.
    """
    if config.training == "lora":
        fake_net = (shared_copy if config.parallel.share_base else copy.deepcopy)(backbone.network)
        start = backbone.read_lora(Path(config.init)) if config.init else None
        student_net = attach(backbone.network, config.lora, backbone.lora_targets, seed=config.seed)
        if start:
            start_from(student_net, config.lora, *start, where=f"init={config.init!r}")
        attach(fake_net, config.lora, backbone.lora_targets, seed=config.seed + 1)
        if config.objective.told_steps:
            condition_on_steps(student_net, seed=config.seed)
            condition_on_steps(fake_net, seed=config.seed + 1)
        student, fake = (_engine(net, config, role, world, backbone) for role, net in (("student", student_net), ("fake", fake_net)))
        network = Base(student, student_net)
    else:
        student, fake = (
            _engine(copy.deepcopy(backbone.network).float().requires_grad_(True), config, role, world, backbone) for role in ("student", "fake")
        )
        network = _frozen(backbone.network, config, world, backbone)
    return {"student": student, "fake": fake}, backbone.denoiser(network)


def _prepare(network: nn.Module, config: RunConfig, world: launch.World, backbone: Backbone) -> None:
    """How the network computes, whatever its role."""
    if world.sequence:
        backbone.share_tokens(network, world.sequence)
    if config.model.attention == "xformers":
        backbone.use_xformers(network)
    if config.model.attention == "float32":
        backbone.use_float32_attention(network)
    if config.parallel.gradient_checkpointing:
        network.enable_gradient_checkpointing(keep_attention if config.parallel.keep_attention else None)
    if config.parallel.compile:
        compile_blocks(backbone.blocks(network))


def compile_blocks(blocks: list[nn.Module], backend: str = "inductor") -> None:
    """Compile every block in place, so that parameters keep their names; equal blocks share their graphs."""
    for block in blocks:
        block.compile(backend=backend, dynamic=False)


def check_compile(world: launch.World) -> None:
    """ValueError where blocks cannot be compiled."""
    if world.distributed:
        raise ValueError(
            "parallel.compile=true under a launcher: DeepSpeed's hooks would break every block's graph; start one process without"
            " a launcher, or set it to false"
        )
    if world.device.type == "cuda" and not importlib.util.find_spec("triton"):
        raise ValueError("parallel.compile=true needs triton on a GPU: pip install triton, or set it to false")
    compilers = [os.environ.get("CXX") or "g++", "clang++"]
    if world.device.type == "cpu" and not any(shutil.which(name) for name in compilers):
        raise ValueError(f"parallel.compile=true needs a C++ compiler on a CPU, and there is none of {', '.join(compilers)}: install one, or set it to false")


def _frozen(network: nn.Module, config: RunConfig, world: launch.World, backbone: Backbone):
    """The teacher of a full fine-tune: sharded where the trained networks are."""
    _prepare(network, config, world, backbone)
    if not world.distributed or config.parallel.zero_stage < 3:
        return network
    from ..parallel.deepspeed_engine import shard_frozen

    return shard_frozen(network, micro_batch=config.batch.micro, dtype=config.model.torch_dtype)


def _engine(network: nn.Module, config: RunConfig, role: str, world: launch.World, backbone: Backbone):
    _prepare(network, config, world, backbone)
    settings = {"student": config.student, "fake": config.fake}[role]
    updates = config.objective.roles.count(role)
    common = {
        "total_steps": config.steps * updates, "accumulation": config.batch.accumulation,
        "ema": config.ema if role == "student" else 0.0,
    }
    if not world.distributed:
        return TorchEngine(network, settings, **common, dtype=config.model.torch_dtype)
    from ..parallel.deepspeed_engine import DeepSpeedEngine

    return DeepSpeedEngine(
        network, settings, **common, zero_stage=config.parallel.zero_stage, micro_batch=config.batch.micro,
        dtype=config.model.torch_dtype, offload=config.parallel.offload,
    )
