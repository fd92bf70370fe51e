"""Build everything a run works with from its config."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..adapters.frozen import carry
from ..adapters.step_condition import with_step_count
from ..adapters.teacher import DIGESTS, read_adapters, use_adapters
from ..adapters.weights import LoraWeights
from ..backbones.base import Backbone, NetworkDenoiser
from ..backbones.discriminator import NetworkDiscriminator
from ..backbones.registry import find_family, load_backbone
from ..config import RunConfig, share_batch, to_dict
from ..data.items import Item, read_run_items
from ..data.latents import RealLatents
from ..data.progress import progress
from ..data.prompts import PromptOrder
from ..diffusion.denoiser import Cond, Denoiser
from ..diffusion.grid import TimeGrid
from ..diffusion.process import Process
from ..distill.grids import build_grids, reference_grid
from ..distill.objective import Roles, build_objective
from ..distill.stream import Stream
from ..guard.limits import Prompts
from ..parallel import launch
from ..parallel.rng import Streams
from ..parallel.sequence import PlannedGroup
from ..roles.build import GENERATORS, build_engines, build_role, empty_base
from ..roles.experts import backend_of
from ..roles.guidance import guide
from ..roles.rounding import Rounding, quantize_base
from ..roles.rules import check_family, check_settings, check_teacher
from .endings import TrainingStopped, stop_reason
from .preflight import check_machine
from .prepare import digest, prepare_embeddings, prepare_latents
from .rewards import Rewards, check_rewards

COMPARED = [
    "seed",
    "model",
    "video",
    "grid",
    "objective",
    "rewards",
    "training",
    "lora",
    "student",
    "fake",
    "ema",
]
"""Settings that a checkpoint and the run that resumes it must have in common."""


@dataclass(frozen=True)
class Run:
    """Everything the training loop needs."""

    config: RunConfig
    """Settings of the run, with the gradient accumulation that results from the number of ranks."""
    world: launch.World
    backbone: Backbone
    grid: TimeGrid
    """Grid of samples and of the export."""
    grids: tuple[TimeGrid, ...]
    """Grids of training: one, or one for each K of `objective.step_set`."""
    roles: Roles
    engines: dict[str, Any]
    """Engines of the trained roles, by role."""
    networks: dict[str, NetworkDenoiser | NetworkDiscriminator]
    """Networks of all roles, without guidance. Each counts the samples that pass through it."""
    streams: Streams
    conds: Callable[[list[int]], Cond]
    """Returns the training conditioning of prompts given by index."""
    order: PromptOrder
    prompts_digest: str
    null: Cond
    """Conditioning of the teacher's unconditional branch: `prompts.negative`, without an image."""
    gallery_items: list[Item]
    gallery: Cond
    real_digest: str
    """Digest of the real clips; empty if there are none."""
    stream: Stream | None = None
    """Trajectories that continue from iteration to iteration, with objective.rollout="stream"."""
    rewards: Rewards | None = None
    """Rewards that the student follows in addition to its teacher."""
    rounding: Rounding | None = None
    """Effect of quantizing the base, if it is quantized."""
    adapters: tuple[LoraWeights, ...] = ()
    """LoRAs of `model.adapters` as read at the start; their files may change later."""

    def evaluated(self) -> float:
        """Return the number of samples that have passed through all networks so far.

        A guided sample counts twice. A sample in the discriminator counts half, because it uses
        half of the network.

        Returns:
            Number of network evaluations.
        """
        return sum(
            network.evaluated * (0.5 if role == "discriminator" else 1)
            for role, network in self.networks.items()
        )

    @property
    def fingerprint(self) -> dict[str, Any]:
        """Settings that must be equal in a checkpoint and in the run that resumes it."""
        config, settings = self.config, to_dict(self.config)
        settings["model"].pop("idle_expert")  # it does not affect results
        if not config.model.pipeline:  # older checkpoints do not have it
            settings["model"].pop("pipeline")
        decoded = any(reward.input == "samples" for reward in config.rewards)
        if not (self.real_digest or decoded or self.backbone.takes_images):
            settings["model"].pop("tiling")  # it does not affect the training
        compared = {key: settings[key] for key in COMPARED}
        if config.objective.use_dynamic_cfg:  # its scale depends on the teacher's steps
            compared["log"] = {"teacher_steps": config.log.teacher_steps}
        if self.real_digest:
            compared |= {"discriminator": settings["discriminator"], "real": self.real_digest}
        if self.adapters:
            compared[DIGESTS] = [lora.digest for lora in self.adapters]
        # with rollout="stop", all ranks share one step k per micro-batch
        stops = config.objective.rollout == "stop"
        stopped: dict[str, int] = {"accumulation": config.batch.accumulation} if stops else {}
        schedules = {getattr(config, role).schedule for role in self.engines}
        return compared | {
            "batch": stopped
            | {
                "micro": config.batch.micro,
                # total of all ranks
                "micro_batches": config.batch.accumulation * self.world.data_size,
            },
            "prompts": self.prompts_digest,
            "prompts.negative": config.prompts.negative or None,
            "init": config.init or None,
            "backend": backend_of(self.engines["student"]),
            # a learning rate that decays to 0 depends on the number of steps
            "steps": None if schedules == {"constant"} else config.steps,
        }


def build_run(config: RunConfig, world: launch.World, *, resumed: bool = False) -> Run:
    """Load the teacher, embed the prompts and build the roles.

    Args:
        config: Settings of the run.
        world: Processes of the run.
        resumed: Whether a checkpoint is loaded afterwards, so that the LoRA of `init` is not read.

    Returns:
        The run, ready to train.

    Raises:
        ValueError: The settings or their files cannot be used.
    """
    config = share_batch(config, world.data_size)
    started = replace(config, init="") if resumed else config
    boundary, grids, shown = _check(started, world)
    grid = next(one for one in grids if one.steps == config.grid.calls)
    backbone, adapters = _load_teacher(config, world)
    conditions, items = prepare_embeddings(config, backbone, world)
    adversarial = "discriminator" in config.objective.roles
    real = prepare_latents(config, backbone, world) if adversarial else None
    null = conditions.of_prompts([config.prompts.negative]).to(world.device)
    gallery = conditions.get(shown).to(world.device)
    quantized = config.model.quantize != "none"
    rounding = None
    if quantized:
        with progress(f"rounding the base to {config.model.quantize}"):
            rounding = quantize_base(config, backbone, grid, gallery, null)
    engines, teacher = build_engines(started, world, backbone)
    networks = _networks(backbone, engines, teacher, conditions.blank().to(world.device))
    run = Run(
        config=config,
        world=world,
        backbone=backbone,
        grid=grid,
        grids=grids,
        roles=_roles(networks, engines, guide(config, teacher, null, boundary=boundary), real),
        engines=engines,
        networks=networks,
        streams=Streams(config.seed, world.device),
        conds=lambda indices: conditions.get([items[i] for i in indices]).to(world.device),
        order=PromptOrder(len(items), config.seed),
        prompts_digest=digest("prompts", conditions.describe(items)),
        null=null,
        gallery_items=shown,
        gallery=gallery,
        real_digest=digest("clips", real.known) if real else "",
        rounding=rounding,
        adapters=adapters,
    )
    return _with_trajectories(run, [item.prompt for item in items])


def _check(
    config: RunConfig, world: launch.World
) -> tuple[float, tuple[TimeGrid, ...], list[Item]]:
    """Check what can be checked without weights.

    Returns:
        The time that parts the teacher's experts (0 for a teacher of one network), the grids of
        training, and the items of the samples.
    """
    check_settings(config, distributed=world.distributed)
    check_machine(config, world)
    folder, family = find_family(config.model, weights=False)
    boundary = check_teacher(config, family.spec.read_split(folder))
    check_family(config, family)
    grids = _grids(config, family.spec.read_process(folder), boundary)
    items, shown = read_run_items(config, takes_images=family.takes_images)
    if reason := stop_reason(config, Prompts(len(items), world.data_size)):
        raise TrainingStopped(reason)
    check_rewards(config, [item.prompt for item in items])
    check_student(config, folder, family)
    return boundary, grids, shown


def _load_teacher(
    config: RunConfig, world: launch.World
) -> tuple[Backbone, tuple[LoraWeights, ...]]:
    """Load the base with the LoRAs of `model.adapters` on it, and return both."""
    backbone = load_backbone(config.model, config.video, device=world.device)
    found = read_adapters(backbone.network, config.model, backbone.lora)
    adapters = tuple(lora.copied() for lora in found)
    use_adapters(backbone, adapters)
    return backbone, adapters


def _with_trajectories(run: Run, prompts: list[str]) -> Run:
    """Return the run with its stream of trajectories and its rewards, where it has them."""
    config, world, backbone = run.config, run.world, run.backbone
    stream = build_stream(config, world, run.streams, run.grids, backbone.latent_shape())
    if not config.rewards:
        return replace(run, stream=stream)
    rewards = Rewards(
        config,
        world,
        run.streams,
        backbone.decode,
        run.conds,
        prompts,
        run.order,
        stream,
        backbone.leading,
    )
    return replace(run, stream=stream, rewards=rewards)


def _grids(config: RunConfig, process: Process, boundary: float) -> tuple[TimeGrid, ...]:
    """Return the grids of training; that of samples is one of them. The teacher's many-step grid
    is checked too, because the end of the run needs it.
    """
    reference_grid(config, process)
    return build_grids(config.grid, process, config.objective.step_set, boundary)


def build_stream(
    config: RunConfig,
    world: launch.World,
    streams: Streams,
    grids: tuple[TimeGrid, ...],
    latent_shape: tuple[int, ...],
) -> Stream | None:
    """Build this rank's trajectories for objective.rollout="stream".

    Args:
        config: Settings of the run.
        world: Processes of the run.
        streams: Random number generators of the run.
        grids: Grids of training.
        latent_shape: Shape of one latent, without the batch dimension.

    Returns:
        The trajectories; None with other rollouts.
    """
    if config.objective.rollout != "stream":
        return None
    return Stream(
        build_objective(config.objective),
        grids,
        streams,
        (config.batch.micro, *latent_shape),
        micros=config.batch.accumulation,
        first_stream=world.data_rank * config.batch.accumulation,
        total_micros=world.data_size * config.batch.accumulation,
        rewards=len(config.rewards),
    )


def check_student(config: RunConfig, folder: Path, family: type[Backbone]) -> None:
    """Check the size of samples and the student's settings by building it on the meta device.

    Args:
        config: Settings of the run.
        folder: Folder with the teacher's configs.
        family: Model family of the teacher.

    Raises:
        ValueError: The model family, or the LoRA of `init`, does not support the settings.
    """
    base = empty_base(config, folder, family)
    family.spec.tokens(base, folder, config.video)
    build_role(base, "student", config, family, group=PlannedGroup(config.parallel.sequence))


def _networks(
    backbone: Backbone, engines: dict[str, Any], teacher: NetworkDenoiser, empty: Cond
) -> dict[str, NetworkDenoiser | NetworkDiscriminator]:
    """Return the network of every role behind the method's interface."""
    networks: dict[str, NetworkDenoiser | NetworkDiscriminator] = {"teacher": teacher}
    for role, engine in engines.items():
        if role == "discriminator":
            family: Any = backbone  # a family with a discriminator trunk
            networks[role] = NetworkDiscriminator(family, engine, empty)
        else:
            networks[role] = backbone.denoiser(engine)
    return networks


def _roles(
    networks: dict[str, Any], engines: dict[str, Any], teacher: Denoiser, real: RealLatents | None
) -> Roles:
    """Return the roles as an objective calls them. The fake is None if the objective has none."""
    predictors: dict[str, Any] = {
        role: with_step_count(networks[role], engines[role].module)
        for role in GENERATORS
        if role in engines
    }
    fake: Any = predictors.get("fake")
    return Roles(
        student=predictors["student"],
        fake=fake,
        teacher=teacher,
        discriminator=networks.get("discriminator"),
        real=real,
    )


@torch.no_grad()
def on_whole_base(run: Run, weights: dict[str, Tensor]) -> Run:
    """Return the run with its student on the unquantized base.

    Args:
        run: The run.
        weights: Trained weights by parameter name.

    Returns:
        A copy of the run whose student uses a new base.
    """
    backbone, config = run.backbone, replace(run.config, init="")
    group = run.world.sequence
    base = backbone.fresh_network()
    carry(base, run.adapters)
    network = build_role(base, "student", config, type(backbone), group=group)
    own = dict(network.named_parameters())
    for name, tensor in weights.items():
        own[name].copy_(tensor)
    student = with_step_count(backbone.denoiser(network), network)
    return replace(run, roles=replace(run.roles, student=student))
