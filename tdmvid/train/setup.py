"""From a config to the things a run works with."""

from __future__ import annotations

import copy
import hashlib
import importlib.util
import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from ..adapters.lora import Base, attach, in_host_memory, shared_copy, start_from
from ..adapters.step_condition import condition_on_steps, told
from ..backbones.base import Backbone, check_attention
from ..backbones.discriminator import Discriminator, NetworkDiscriminator
from ..backbones.quantize import check_torchao
from ..backbones.registry import load_backbone
from ..config import RunConfig, to_dict
from ..data.embeddings import PATIENCE, EmbeddingCache, embed_prompts
from ..data.latents import RealLatents, real_files
from ..data.prompts import PromptOrder, read_prompts
from ..data.video import read_clip
from ..diffusion.denoiser import Cond, Guided
from ..diffusion.grid import TimeGrid, shifted
from ..diffusion.process import Process
from ..distill.objective import Roles
from ..parallel import launch
from ..parallel.engine import TorchEngine
from ..parallel.rng import Streams
from ..parallel.sequence import PlannedGroup
from ..roles.recompute import keep_attention
from ..roles.rounding import Rounding, quantize_base


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
        prompts_digest=_digest("prompts", prompts),
        null=null,
        gallery_prompts=gallery_prompts,
        gallery=gallery,
        real_digest=_digest("clips", real.known) if real else "",
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
    network = _prepared(
        adapted(backbone.fresh_network(), config, backbone.lora_targets, seed=config.seed),
        config=config,
        world=run.world,
        backbone=backbone,
    )
    own = dict(network.named_parameters())
    for name, tensor in weights.items():
        own[name].copy_(tensor)
    return replace(run, roles=replace(run.roles, student=told(backbone.denoiser(network), network)))


def reference_grid(config: RunConfig, process: Process) -> TimeGrid:
    """The times of the teacher's long samples."""
    try:
        return shifted(config.log.teacher_steps, config.log.teacher_shift, process)
    except ValueError as error:
        raise ValueError(
            f"log.teacher_steps={config.log.teacher_steps}: too many for the teacher, or"
            f" log.teacher_shift={config.log.teacher_shift} is no flow shift ({error})"
        ) from None


def embeddings(
    config: RunConfig, backbone: Backbone, world: launch.World
) -> tuple[EmbeddingCache, list[str]]:
    """The cache with every prompt of the run in it, and the training prompts; the text encoder is
    gone afterwards.
    """
    if not config.prompts.path:
        raise ValueError(
            "prompts.path is empty: give a .txt, .jsonl, .csv or .parquet file of prompts"
        )
    prompts = read_prompts(Path(config.prompts.path), column=config.prompts.column)
    prompts = prompts[: config.prompts.limit] if config.prompts.limit else prompts
    launch.check_same("file of prompts", {"prompts.path": _digest("prompts", prompts)})
    root, key = Path(config.prompts.cache), backbone.text_fingerprint()
    if world.primary:
        with in_host_memory(
            [backbone.network]
        ):  # so that base and text encoder are not on the device together
            embed_prompts(
                EmbeddingCache(root, key),
                ["", *prompts, *config.log.sample_prompts],
                backbone.encode_prompts,
                each=lambda: launch.all_agree(False),
            )
            backbone.release_text()
    while not launch.all_agree(
        True
    ):  # the others answer after each shard: a wait for all of them would outlast the timeout
        pass
    cache = EmbeddingCache(root, key)
    if missing := cache.missing(["", *prompts, *config.log.sample_prompts], patience=PATIENCE):
        raise ValueError(
            f"prompts.cache={config.prompts.cache!r} lacks {len(missing)} prompts that another rank"
            " embedded: it must be a folder that all machines share"
        )
    return cache, prompts


def real_latents(config: RunConfig, backbone: Backbone, world: launch.World) -> RealLatents:
    """The real clips, encoded; every rank has encoded its share of what the cache lacked."""
    size = config.video
    real = RealLatents(config.real, backbone.video_fingerprint(), frames=size.frames)
    clip = partial(
        read_clip, frames=size.frames, height=size.height, width=size.width, fps=size.fps
    )
    failed = real.encode(
        clip,
        backbone.encode,
        share=world.rank,
        shares=world.size,
        meet=launch.barrier,
        progress=world.primary,
    )
    backbone.release_vae()
    if not launch.all_agree(not failed):
        some = (
            f"{len(failed)} clips cannot be used"
            f" ({'; '.join(str(error) for error in list(failed.values())[:3])})"
        )
        some = some if failed else "another rank found clips that cannot be used and names them"
        raise ValueError(
            f"real.path={config.real.path!r}: {some}: take them out of the folder; the others are"
            " encoded"
        )
    if missing := real.missing(patience=PATIENCE):
        raise ValueError(
            f"real.cache={config.real.cache!r} lacks {missing} clips that other ranks encoded:"
            " real.path and real.cache must be folders that all machines share"
        )
    return real


def _digest(what: str, names: list[str]) -> str:
    return (
        f"{len(names)} {what}, sha256 {hashlib.sha256(json.dumps(names).encode()).hexdigest()[:16]}"
    )


def check_settings(config: RunConfig, *, distributed: bool) -> None:
    """ValueError for settings that cannot be together, or that name what is not there: of a run and
    of its plan.
    """
    check_objective(config, distributed=distributed)
    check_quantize(config, distributed=distributed)
    check_compile(config, distributed=distributed)
    check_folders(config)


def check_folders(config: RunConfig) -> None:
    """ValueError if a file is where a run writes its folders."""
    for name, path in (
        ("out", config.folder),
        ("prompts.cache", Path(config.prompts.cache)),
        ("real.cache", Path(config.real.cache)),
    ):
        there = next(place for place in (path, *path.absolute().parents) if place.exists())
        if not there.is_dir():
            raise ValueError(
                f"{name}={str(path)!r}: {there} is a file, and a folder is to be there: give"
                " another"
            )


def check_machine(config: RunConfig, world: launch.World) -> None:
    """ValueError where this machine, or the way the run was started, lacks what it needs."""
    check_attention(config.model.attention, world.device)
    if config.parallel.compile:
        check_compiler(world.device)
    if config.parallel.offload != "none" and not world.distributed:
        raise ValueError(
            f"parallel.offload={config.parallel.offload!r} without a launcher: it is DeepSpeed that"
            " moves weights to host memory; start with `deepspeed launch/train.py ...`, or set it"
            " to 'none'"
        )
    if config.model.quantize != "none":
        check_torchao()


def check_objective(config: RunConfig, *, distributed: bool) -> None:
    """ValueError for an objective that cannot run with the rest of the config."""
    objective = config.objective
    adversarial = "discriminator" in objective.roles
    if adversarial and not config.real.path:
        raise ValueError(
            f"objective.kind={objective.kind!r} compares with real clips: name a folder of videos"
            " or images in real.path, or choose kind 'tdm'"
        )
    if adversarial:
        real_files(config.real, frames=config.video.frames)
    if objective.told_steps and config.training != "lora":
        raise ValueError(
            "objective.step_set with training='full': the condition on K lives beside an adapter;"
            " use training='lora', or k_condition=false"
        )
    if not (objective.through_scores or adversarial):
        return
    through = f"objective.kind={objective.kind!r} takes a gradient in a network's input"
    if distributed and config.parallel.zero_stage == 3:
        raise ValueError(
            f"{through}, which DeepSpeed cannot with sharded weights: set parallel.zero_stage to 2,"
            " or choose kind 'tdm'"
        )
    if config.parallel.sequence > 1:
        raise ValueError(
            f"{through}, which ranks that share a video cannot yet: set parallel.sequence to 1, or"
            " choose kind 'tdm'"
        )


def check_quantize(config: RunConfig, *, distributed: bool) -> None:
    """ValueError where a quantised base cannot be."""
    if config.model.quantize != "none" and distributed:
        raise ValueError(
            f"model.quantize={config.model.quantize!r} under a launcher: DeepSpeed moves every"
            " parameter, which torchao's tensors do not allow where two networks share them; start"
            " one process without a launcher, or set it to 'none'"
        )


def build_engines(
    config: RunConfig, world: launch.World, backbone: Backbone
) -> tuple[dict, object]:
    """Engines of the trained roles, and the unguided teacher.

    Under ZeRO-3 an engine leaves a rank only its share of a network, so three whole networks are
    made one after the other.
    """
    objective, base = config.objective, backbone.network
    prepared = partial(_prepared, config=config, world=world, backbone=backbone)
    engine = lambda role, network: _engine(network, config, role, world)  # noqa: E731
    halved = (
        shared_copy(base) if "discriminator" in objective.roles else None
    )  # before an adapter is attached
    # Where the teacher's graph is kept, its blocks are computed again when the student's adapter
    # has been switched on again.
    apart = shared_copy(base) if objective.through_scores and config.training == "lora" else None
    if config.training == "lora":
        engines = {
            role: engine(role, prepared(network))
            for role, network in zip(("student", "fake"), _two_adapted(config, backbone))
        }
        teacher = (
            Base(engines["student"], engines["student"].module)
            if apart is None
            else prepared(apart)
        )
    else:
        engines = {
            role: engine(role, prepared(copy.deepcopy(base).float().requires_grad_(True)))
            for role in ("student", "fake")
        }
        teacher = _frozen(prepared(base), config, world)
    if halved is not None:
        taps, eager = (
            backbone.halve(halved),
            replace(config, parallel=replace(config.parallel, compile=False)),
        )  # features are read block by block
        engines["discriminator"] = engine(
            "discriminator",
            Discriminator(prepared(halved, config=eager), taps, seed=config.seed + 2),
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
    start = family.read_lora(Path(config.init), network) if config.init else None
    if config.training == "lora":
        adapted(network, config, family.lora_targets, seed=0)
    else:
        network.requires_grad_(True)
    if start:
        start_from(network, config.lora, *start, where=f"init={config.init!r}")
    if group.size > 1:
        family.share_tokens(network, group)
    if config.model.attention == "float32":
        family.use_float32_attention(network)
    return network


def _two_adapted(config: RunConfig, backbone: Backbone) -> tuple[nn.Module, nn.Module]:
    """Student and fake: two adapters, on one base or on one each."""
    fake_net = (shared_copy if config.parallel.share_base else copy.deepcopy)(backbone.network)
    start = backbone.read_lora(Path(config.init), backbone.network) if config.init else None
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


def _prepared(
    network: nn.Module, *, config: RunConfig, world: launch.World, backbone: Backbone
) -> nn.Module:
    """The network, told how it computes, whatever its role."""
    if world.sequence:
        backbone.share_tokens(network, world.sequence)
    if config.model.attention == "xformers":
        backbone.use_xformers(network)
    if config.model.attention == "float32":
        backbone.use_float32_attention(network)
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


def check_compile(config: RunConfig, *, distributed: bool) -> None:
    """ValueError where blocks cannot be compiled."""
    if config.parallel.compile and distributed and config.parallel.zero_stage == 3:
        raise ValueError(
            "parallel.compile=true with parallel.zero_stage=3: DeepSpeed's hooks gather the weights"
            " of every layer apart, and break the blocks' graphs there; set zero_stage to 2, or"
            " compile to false"
        )


def check_compiler(device: torch.device) -> None:
    """ValueError if this machine has not what torch.compile needs."""
    if device.type == "cuda" and not importlib.util.find_spec("triton"):
        raise ValueError(
            "parallel.compile=true needs triton on a GPU: pip install triton, or set it to false"
        )
    compiler = os.environ.get(
        "CXX", "clang++" if sys.platform == "darwin" else "g++"
    )  # the one that torch.compile looks for
    if device.type == "cpu" and not shutil.which(compiler):
        raise ValueError(
            f"parallel.compile=true needs a C++ compiler on a CPU, and there is no {compiler!r}:"
            " install it, name yours in CXX, or set it to false"
        )


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
