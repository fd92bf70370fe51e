"""Build the networks of a run's roles, and the engines that train them.

A role is made in two steps. First its base is chosen: the one base, another module tree over the
same weights, or a copy. Then `build_role` turns the base into the role's network. A run does this
on its device; a plan, and the check at the start of a run, do it on the meta device.
"""

from __future__ import annotations

import copy
import importlib.util
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..adapters.load import check_loaded
from ..adapters.lora import Base, attach, shared_copy, start_from
from ..adapters.read import read_lora
from ..adapters.step_condition import condition_on_steps
from ..adapters.teacher import carry_adapters
from ..backbones.attention import choose_attention
from ..backbones.base import Backbone
from ..backbones.discriminator import Discriminator
from ..backbones.dtype import torch_dtype
from ..backbones.experts import Experts
from ..config import RunConfig
from ..diffusion.process import RectifiedFlow
from ..distill.grids import build_grid
from ..parallel import launch
from ..parallel.engine import TorchEngine
from ..parallel.sequence import SequenceGroup
from .experts import ExpertEngines
from .guidance import check_guidance
from .recompute import keep_attention

SEED_OFFSETS = {"student": 0, "fake": 1, "discriminator": 2}
"""Added to the run's seed for a role's initial weights."""
WORTH_COMPILING = 200
"""Number of iterations from which "auto" compiles."""
GENERATORS = ("student", "fake")
"""Trained roles that predict x0. Other roles are frozen, or train heads on a frozen network."""


@dataclass(frozen=True)
class RoleSpec:
    """What a role trains on its base."""

    adapter: bool = False
    """Train an adapter, and the step condition if there is one, on the frozen base."""
    whole: bool = False
    """Train all weights."""
    init: str = ""
    """LoRA folder that initialises the adapter; empty for none."""

    @classmethod
    def of(cls, role: str, config: RunConfig) -> RoleSpec:
        """Return what a role trains according to the config.

        Args:
            role: "student", "fake", "teacher" or "discriminator".
            config: The run's config.
        """
        trained, lora = role in GENERATORS, config.trains_lora
        return cls(
            adapter=trained and lora,
            whole=trained and not lora,
            init=config.init if role == "student" else "",
        )


def empty_base(config: RunConfig, folder: Path, family: type[Backbone]) -> nn.Module:
    """Build the frozen base on the meta device, with the LoRAs of `model.adapters`.

    Args:
        config: The run's config.
        folder: The pipeline folder.
        family: The model family.

    Raises:
        ValueError: A LoRA is not found or does not fit.
    """
    with torch.device("meta"):
        network = nn.Module.to(family.spec.empty_network(folder), torch_dtype(config.model))
    carry_adapters(network, config.model, family.lora)
    return network.requires_grad_(False)


def build_role(
    network: nn.Module,
    role: str,
    config: RunConfig,
    family: type[Backbone],
    *,
    group: SequenceGroup | None = None,
) -> nn.Module:
    """Turn a base into the network of a role, in place.

    Args:
        network: A base. On the meta device it is prepared for tracing by a plan: with stock kernels
            where a kernel needs a device, without checkpointing and compilation.
        role: "student", "fake", "teacher" or "discriminator".
        config: The run's config.
        family: The model family.
        group: The ranks that share one sequence, if there are several.

    Returns:
        `network`.

    Raises:
        ValueError: The family or the LoRA of `init` does not support the config.
    """
    check_guidance(config, family)
    spec = RoleSpec.of(role, config)
    family.fuse(network)
    if spec.adapter:
        _adapt(network, spec, config, family, seed=config.seed + SEED_OFFSETS[role])
        if isinstance(network, Experts):
            network.place_trained()
    else:
        network.requires_grad_(spec.whole)
    if group is not None and group.size > 1:
        family.share_tokens(network, group)
    device = next(network.parameters()).device
    on_meta, attention = device.type == "meta", attention_of(config, family, device)
    if not on_meta or attention == "float32":
        family.set_attention(network, attention)
    if not on_meta:
        # the discriminator reads features block by block
        compiled = role != "discriminator" and compiles(config, device)
        _set_execution(network, config, family, compiled=compiled)
    return network


def attention_of(config: RunConfig, family: type[Backbone], device: torch.device) -> str:
    """Return the attention kernel of a run on a device."""
    chosen = config.model.attention
    if chosen != "auto":
        return chosen
    dtype, kept = torch_dtype(config.model), config.parallel.keep_attention
    return choose_attention(family.kernels, device, dtype, kept=kept)


def compiles(config: RunConfig, device: torch.device) -> bool:
    """Return whether a run compiles its blocks.

    With "auto" it does where compilation works and the run is long enough to benefit.
    """
    parallel = config.parallel
    if parallel.compile != "auto":
        return parallel.compile
    gathers = launch.distributed() and parallel.zero_stage == 3  # gathers weights inside the blocks
    forbidden = gathers or parallel.keep_attention or config.model.quantize != "none"
    return (
        device.type == "cuda"
        and not forbidden
        and config.steps >= WORTH_COMPILING
        and bool(importlib.util.find_spec("triton"))
        and any(map(shutil.which, (os.environ.get("CC", "cc"), "gcc", "clang")))
    )


def _adapt(
    network: nn.Module, spec: RoleSpec, config: RunConfig, family: type[Backbone], *, seed: int
) -> None:
    """Add everything that a role trains on a frozen base."""
    start = read_lora(Path(spec.init), family.lora, network) if spec.init else None
    attach(network, config.lora, family.lora_targets, seed=seed)
    if config.objective.conditioned_on_steps:
        condition_on_steps(network, seed=seed)
    if start:
        start_from(network, config.lora, start, where=f"init={spec.init!r}")
        if not next(network.parameters()).is_meta:
            check_loaded(network, start)


def _set_execution(
    network: nn.Module, config: RunConfig, family: type[Backbone], *, compiled: bool
) -> None:
    """Set checkpointing and compilation, which change time and memory but not results."""
    if config.parallel.gradient_checkpointing:
        model: Any = network
        model.enable_gradient_checkpointing(
            keep_attention if config.parallel.keep_attention else None
        )
    if compiled:
        compile_blocks(family.spec.blocks(network))


def compile_blocks(blocks: list[nn.Module], backend: str = "inductor") -> None:
    """Compile every block in place. Parameters keep their names, and equal blocks share graphs.

    Args:
        blocks: The network's blocks.
        backend: A backend of torch.compile.
    """
    limits = torch._dynamo.config
    # The limit counts all blocks together. Code beyond it runs uncompiled, without a warning.
    limits.recompile_limit = max(limits.recompile_limit, 8 * len(blocks))
    for block in blocks:
        block.compile(backend=backend, dynamic=False)


def build_discriminator(
    network: nn.Module,
    config: RunConfig,
    family: type[Backbone],
    *,
    group: SequenceGroup | None = None,
) -> Discriminator:
    """Turn a base into a discriminator: its first half, frozen, with trained heads.

    Args:
        network: A base, modified in place.
        config: The run's config.
        family: The model family.
        group: The ranks that share one sequence, if there are several.
    """
    family.fuse(network)  # replaces blocks, so call it before tapping them
    taps = family.discriminator_trunk(network)
    build_role(network, "discriminator", config, family, group=group)
    return Discriminator(network, taps, seed=config.seed + SEED_OFFSETS["discriminator"])


def build_engines(
    config: RunConfig, world: launch.World, backbone: Backbone
) -> tuple[dict[str, Any], Any]:
    """Build an engine for each trained role of the objective, and the unguided teacher.

    Under ZeRO-3 an engine keeps only the rank's shard of a network, so whole networks are made one
    after the other.

    Args:
        config: The run's config.
        world: The run's processes.
        backbone: The teacher.

    Returns:
        The engines by role, and the teacher as a Denoiser.
    """
    family, base = type(backbone), backbone.network
    if world.primary and world.device.type == "cuda":
        kernel = attention_of(config, family, world.device)
        blocks = "compiled" if compiles(config, world.device) else "not compiled"
        print(f"attention: {kernel}; blocks: {blocks}", flush=True)
    build = partial(build_role, config=config, family=family, group=world.sequence)
    roles = [role for role in GENERATORS if role in config.objective.roles]
    adversarial = "discriminator" in config.objective.roles
    half = shared_copy(base) if adversarial else None  # before an adapter is attached
    build_trained = _build_adapted if config.trains_lora else _build_whole
    engines, teacher = build_trained(roles, build, config, world, base)
    if half is not None:
        critic = build_discriminator(half, config, family, group=world.sequence)
        engines["discriminator"] = build_engine(critic, "discriminator", config, world)
    return engines, backbone.denoiser(teacher)


BuildRole = Callable[..., nn.Module]
"""(network, role) -> the role's network."""


def _build_adapted(
    roles: list[str], build: BuildRole, config: RunConfig, world: launch.World, base: nn.Module
) -> tuple[dict[str, Any], Any]:
    """Build adapters on one shared base, or on a copy each; the teacher is the student's base.

    If the objective needs gradients through the teacher, the teacher is a separate tree over the
    base: checkpointing recomputes its blocks when the student's adapter is active again.
    """
    copied = shared_copy if config.parallel.share_base else copy.deepcopy
    apart = shared_copy(base) if config.objective.through_scores else None
    bases = {role: base if role == "student" else copied(base) for role in roles}
    networks = {role: build(bases[role], role) for role in roles}
    engines = {role: build_engine(networks[role], role, config, world) for role in roles}
    if apart is not None:
        return engines, build(apart, "teacher")
    return engines, Base(engines["student"], engines["student"].module)


def _build_whole(
    roles: list[str], build: BuildRole, config: RunConfig, world: launch.World, base: nn.Module
) -> tuple[dict[str, Any], Any]:
    """Build trained float32 copies of the base, each sharded before the next, and the teacher."""
    engines = {
        role: build_engine(build(copy.deepcopy(base).float(), role), role, config, world)
        for role in roles
    }
    return engines, _frozen(build(base, "teacher"), config, world)


def _frozen(network: nn.Module, config: RunConfig, world: launch.World) -> Any:
    """Return the teacher of a full fine-tune, sharded if the trained networks are."""
    if not world.distributed or config.parallel.zero_stage < 3:
        return network
    from ..parallel.deepspeed_engine import shard_frozen

    return shard_frozen(network, micro_batch=config.batch.micro)


def expert_shares(config: RunConfig, experts: Experts) -> dict[str, float]:
    """Return the share of the student's steps that each expert takes, by expert name.

    It is the same for every K of `objective.step_set`, because all grids must have a time at the
    boundary.
    """
    grid = build_grid(config.grid, RectifiedFlow(experts.scale), experts.split.time)
    low, high = (len(side) / grid.steps for side in grid.sides())
    return dict(zip(experts.split.names, (high, low), strict=True))


def build_engine(
    network: nn.Module, role: str, config: RunConfig, world: launch.World, *, share: float = 1.0
) -> Any:
    """Build the engine that trains a role's network, on one process or all ranks.

    Args:
        network: One network, or both experts, which get one engine each.
        role: The role, whose optimiser settings are used.
        config: The run's config.
        world: The run's processes.
        share: Share of the iterations that train this network, for the learning rate schedule.
    """
    if isinstance(network, Experts):
        shares = expert_shares(config, network)
        return ExpertEngines(
            network,
            lambda each, name: build_engine(each, role, config, world, share=shares[name]),
        )
    settings = getattr(config, role)
    # An engine counts its updates, a config iterations.
    updates = config.objective.roles.count(role) * share
    if updates != 1:
        settings = replace(settings, warmup=round(settings.warmup * updates))
    common: dict[str, Any] = {
        "total_steps": round(config.steps * updates),
        "accumulation": config.batch.accumulation,
        "ema": config.ema if role == "student" else 0.0,
        "dtype": torch_dtype(config.model),
    }
    if not world.distributed:
        return TorchEngine(network, settings, **common)
    from ..parallel.deepspeed_engine import DeepSpeedEngine

    return DeepSpeedEngine(
        network,
        settings,
        **common,
        zero_stage=config.parallel.zero_stage,
        micro_batch=config.batch.micro,
        offload=config.parallel.offload,
    )
