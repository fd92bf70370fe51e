"""Build the roles of a run and their engines."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import nn

from ..adapters.lora import Base, attach, shared_copy, start_from
from ..adapters.step_condition import condition_on_steps
from ..backbones.base import Backbone
from ..backbones.discriminator import Discriminator
from ..config import RunConfig
from ..parallel import launch
from ..parallel.engine import TorchEngine
from ..parallel.sequence import PlannedGroup
from .recompute import keep_attention


def build_engines(
    config: RunConfig, world: launch.World, backbone: Backbone
) -> tuple[dict, object]:
    """Engines of the trained roles, and the unguided teacher.

    Under ZeRO-3 an engine leaves a rank only its share of a network, so three whole networks are
    made one after the other.
    """
    objective, base = config.objective, backbone.network
    ready = partial(prepared, config=config, world=world, backbone=backbone)
    engine = lambda role, network: _engine(network, config, role, world)  # noqa: E731
    halved = (
        shared_copy(base) if "discriminator" in objective.roles else None
    )  # before an adapter is attached
    # Where the teacher's graph is kept, its blocks are computed again when the student's adapter
    # has been switched on again.
    apart = shared_copy(base) if objective.through_scores and config.training == "lora" else None
    if config.training == "lora":
        engines = {
            role: engine(role, ready(network))
            for role, network in zip(("student", "fake"), _two_adapted(config, backbone))
        }
        teacher = (
            Base(engines["student"], engines["student"].module) if apart is None else ready(apart)
        )
    else:
        engines = {
            role: engine(role, ready(copy.deepcopy(base).float().requires_grad_(True)))
            for role in ("student", "fake")
        }
        teacher = _frozen(ready(base), config, world)
    if halved is not None:
        taps, eager = (
            backbone.discriminator_trunk(halved),
            replace(config, parallel=replace(config.parallel, compile=False)),
        )  # features are read block by block
        engines["discriminator"] = engine(
            "discriminator",
            Discriminator(ready(halved, config=eager), taps, seed=config.seed + 2),
        )
    return engines, backbone.denoiser(teacher)


def outline(config: RunConfig, folder: Path, family: type[Backbone]) -> nn.Module:
    """The base, frozen, from its config alone: on the meta device."""
    with torch.device("meta"):
        return nn.Module.to(
            family.spec.empty_network(folder), config.model.torch_dtype
        ).requires_grad_(False)


def fit(
    network: nn.Module, config: RunConfig, family: type[Backbone], group: PlannedGroup
) -> nn.Module:
    """Make of an outline what a role trains, called as it will be; ValueError for what this family,
    or the LoRA of `init`, cannot.
    """
    start = family.lora.read(Path(config.init), network) if config.init else None
    if config.training == "lora":
        adapted(network, config, family.lora_targets, seed=0)
    else:
        network.requires_grad_(True)
    if start:
        start_from(network, config.lora, *start, where=f"init={config.init!r}")
    if group.size > 1:
        family.share_tokens(network, group)
    if config.model.attention == "float32":
        family.set_attention(network, "float32")
    return network


def _two_adapted(config: RunConfig, backbone: Backbone) -> tuple[nn.Module, nn.Module]:
    """Student and fake: two adapters, on one base or on one each."""
    fake_net = (shared_copy if config.parallel.share_base else copy.deepcopy)(backbone.network)
    start = backbone.lora.read(Path(config.init), backbone.network) if config.init else None
    student_net = adapted(backbone.network, config, backbone.lora_targets, seed=config.seed)
    if start:
        start_from(student_net, config.lora, *start, where=f"init={config.init!r}")
    return student_net, adapted(fake_net, config, backbone.lora_targets, seed=config.seed + 1)


def adapted(
    network: nn.Module, config: RunConfig, targets: tuple[str, ...], *, seed: int
) -> nn.Module:
    """The network with all that a role trains beside a frozen base; targets: the family's own."""
    attach(network, config.lora, targets, seed=seed)
    if config.objective.told_steps:
        condition_on_steps(network, seed=seed)
    return network


def prepared(
    network: nn.Module, *, config: RunConfig, world: launch.World, backbone: Backbone
) -> nn.Module:
    """The network, told how it computes, whatever its role."""
    if world.sequence:
        backbone.share_tokens(network, world.sequence)
    backbone.set_attention(network, config.model.attention)
    if config.parallel.gradient_checkpointing:
        network.enable_gradient_checkpointing(
            keep_attention if config.parallel.keep_attention else None
        )
    if config.parallel.compile:
        compile_blocks(backbone.spec.blocks(network))
    return network


def compile_blocks(blocks: list[nn.Module], backend: str = "inductor") -> None:
    """Compile every block in place, so that parameters keep their names; equal blocks share their
    graphs.
    """
    limits = torch._dynamo.config
    limits.recompile_limit = max(
        limits.recompile_limit, 8 * len(blocks)
    )  # of all blocks together: what comes later is run uncompiled, without a word
    for block in blocks:
        block.compile(backend=backend, dynamic=False)


def _frozen(network: nn.Module, config: RunConfig, world: launch.World):
    """The teacher of a full fine-tune: sharded where the trained networks are."""
    if not world.distributed or config.parallel.zero_stage < 3:
        return network
    from ..parallel.deepspeed_engine import shard_frozen

    return shard_frozen(network, micro_batch=config.batch.micro, dtype=config.model.torch_dtype)


def _engine(network: nn.Module, config: RunConfig, role: str, world: launch.World):
    settings = getattr(config, role)
    updates = config.objective.roles.count(role)
    common = {
        "total_steps": config.steps * updates,
        "accumulation": config.batch.accumulation,
        "ema": config.ema if role == "student" else 0.0,
    }
    if not world.distributed:
        return TorchEngine(network, settings, **common, dtype=config.model.torch_dtype)
    from ..parallel.deepspeed_engine import DeepSpeedEngine

    return DeepSpeedEngine(
        network,
        settings,
        **common,
        zero_stage=config.parallel.zero_stage,
        micro_batch=config.batch.micro,
        dtype=config.model.torch_dtype,
        offload=config.parallel.offload,
    )
