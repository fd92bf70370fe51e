"""From a config to the things a run works with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..adapters.step_condition import told
from ..backbones.base import Backbone
from ..backbones.discriminator import NetworkDiscriminator
from ..backbones.registry import load_backbone
from ..config import RunConfig, to_dict
from ..data.prompts import PromptOrder
from ..diffusion.denoiser import Cond, Guided
from ..diffusion.grid import TimeGrid
from ..distill.grids import reference_grid
from ..distill.objective import Roles
from ..parallel import launch
from ..parallel.rng import Streams
from ..parallel.sequence import PlannedGroup
from ..roles.build import adapted, build_engines, fit, outline, prepared
from ..roles.rounding import Rounding, quantize_base
from ..roles.rules import check_settings
from .preflight import check_machine
from .prepare import digest, embeddings, real_latents


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
    real_digest: str
    """Of the real clips; empty if there are none."""
    evaluated: Callable[[], float]
    """Samples that went through any of the networks so far; a guided one counts twice, one through
    the discriminator half.
    """
    rounding: Rounding | None = None
    """Of the base, if it is quantised."""

    @property
    def fingerprint(self) -> dict:
        """What a checkpoint must agree on to be resumed by this run."""
        settings = to_dict(self.config)
        if (
            not self.real_digest
        ):  # real clips are encoded in tiles too; without them only pictures are
            settings["model"].pop("tiling")
        keys = (
            "seed",
            "model",
            "video",
            "grid",
            "objective",
            "training",
            "lora",
            "student",
            "fake",
            "ema",
        )
        optims = {role: getattr(self.config, role) for role in self.engines}
        falls = any(optim.schedule != "constant" for optim in optims.values())
        adversarial = (
            {"discriminator": settings["discriminator"], "real": self.real_digest}
            if self.real_digest
            else {}
        )
        batch = self.config.batch
        return (
            {key: settings[key] for key in keys}
            | adversarial
            | {
                "batch": {
                    "micro": batch.micro,
                    "micro_batches": batch.accumulation * self.world.data_size,
                },  # of all ranks together
                "prompts": self.prompts_digest,
                "init": self.config.init or None,
                "backend": type(self.engines["student"]).__name__,
                "steps": (
                    self.config.steps if falls else None
                ),  # a rate that falls to 0 at the last step depends on it
            }
        )


def build_run(config: RunConfig, world: launch.World, *, resumed: bool = False) -> Run:
    """Load the teacher, embed the prompts, attach the roles; ValueError for what a user can mend.

    resumed: a checkpoint is about to be loaded into it, so the LoRA of `init` is not read.
    """
    device = world.device
    check_settings(config, distributed=world.distributed)
    check_machine(config, world)
    backbone = load_backbone(config.model, config.video, device=device)
    grid, grids = (
        config.grid.build(backbone.process),
        config.grid.family(backbone.process, config.objective.step_set),
    )
    reference_grid(
        config, backbone.process
    )  # what the end of the run needs is refused at its start
    started = replace(config, init="") if resumed else config
    fit(
        outline(config, backbone.folder, type(backbone)),
        started,
        type(backbone),
        PlannedGroup(config.parallel.sequence),
    )  # before anything is encoded
    cache, prompts = embeddings(config, backbone, world)
    gallery_prompts = list(config.log.sample_prompts) or prompts[: config.log.sample_count]
    null = cache.get([""]).to(device)
    real = (
        real_latents(config, backbone, world) if "discriminator" in config.objective.roles else None
    )
    gallery = cache.get(gallery_prompts).to(device)
    rounding = (
        quantize_base(config, backbone, grid, gallery, null)
        if config.model.quantize != "none"
        else None
    )
    engines, teacher = build_engines(started, world, backbone)
    student, fake = (backbone.denoiser(engines[role]) for role in ("student", "fake"))
    critic = NetworkDiscriminator(backbone, engines["discriminator"], null) if real else None
    guided = Guided(teacher, null, config.objective.cfg)
    roles = Roles(
        told(student, engines["student"].module),
        told(fake, engines["fake"].module),
        guided,
        critic,
        real,
    )
    return Run(
        config,
        world,
        backbone,
        grid,
        grids,
        roles,
        engines,
        Streams(config.seed, device),
        conds=lambda indices: cache.get([prompts[i] for i in indices]).to(device),
        order=PromptOrder(len(prompts), config.seed),
        prompts_digest=digest("prompts", prompts),
        null=null,
        gallery_prompts=gallery_prompts,
        gallery=gallery,
        real_digest=digest("clips", real.known) if real else "",
        evaluated=lambda: (
            sum(network.evaluated for network in (student, fake, teacher))
            + (critic.evaluated / 2 if critic else 0)
        ),
        rounding=rounding,
    )


@torch.no_grad()
def on_whole_base(run: Run, weights: dict[str, Tensor]) -> Run:
    """The run with its student on the base as users have it; weights: the trained ones by parameter
    name.
    """
    config, backbone = run.config, run.backbone
    network = prepared(
        adapted(backbone.fresh_network(), config, backbone.lora_targets, seed=config.seed),
        config=config,
        world=run.world,
        backbone=backbone,
    )
    own = dict(network.named_parameters())
    for name, tensor in weights.items():
        own[name].copy_(tensor)
    return replace(run, roles=replace(run.roles, student=told(backbone.denoiser(network), network)))
