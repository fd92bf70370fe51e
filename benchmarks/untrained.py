"""Real architectures with random weights, for benchmarks without trained weights.

A teacher's folder is written once from the included configs; nothing is downloaded.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import unset_fake_temporarily

from tdmvid.backbones.base import Backbone
from tdmvid.backbones.dtype import torch_dtype
from tdmvid.backbones.quantize import quantize
from tdmvid.backbones.registry import find_family, load_backbone
from tdmvid.config import RunConfig
from tdmvid.diffusion.denoiser import Cond
from tdmvid.diffusion.grid import TimeGrid
from tdmvid.distill.grids import build_grid
from tdmvid.distill.iteration import Outcome, iterate
from tdmvid.distill.objective import Roles, build_objective
from tdmvid.distill.stream import Stream
from tdmvid.parallel import collectives, launch
from tdmvid.parallel.rng import Streams
from tdmvid.roles.build import build_engines, empty_base
from tdmvid.roles.guidance import guide

SMALL = {
    "StableDiffusionPipeline": {
        "block_out_channels": [64, 128],
        "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
        "layers_per_block": 1,
        "cross_attention_dim": 128,
    },
    "PixArtAlphaPipeline": {
        "num_layers": 4,
        "num_attention_heads": 4,
        "attention_head_dim": 32,
        "cross_attention_dim": 128,
        "caption_channels": 128,
    },
    "CogVideoXPipeline": {
        "num_layers": 4,
        "num_attention_heads": 8,
        "attention_head_dim": 32,
        "text_embed_dim": 128,
        "time_embed_dim": 128,
        "max_text_seq_length": 16,
    },
}
"""Changes that make a family's network small enough for a CPU, but wide enough to be
compute-bound.
"""


def write_untrained(config: RunConfig, work: Path, **changes) -> Path:
    """Write a teacher's folder with the architecture of `config.model` and random weights.

    Args:
        config: The run.
        work: Folder to write to.
        changes: Changes of the network's config.

    Returns:
        The teacher's folder.
    """
    folder, family = find_family(config.model, weights=False)
    mark = (
        hashlib.sha256(json.dumps(changes, sort_keys=True).encode()).hexdigest()[:8]
        if changes
        else "all"
    )
    out = work / f"{config.model.path.replace('/', '--')}-{mark}-{config.model.dtype}"
    if (out / "done").exists():
        return out
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(folder, out)
    _change(out, family, changes)
    torch.manual_seed(0)
    network = nn.Module.to(family.spec.empty_network(out), torch_dtype(config.model))
    for name, part in family.spec.named_components(network).items():
        part.save_pretrained(out / name)
    (out / "done").touch()
    return out


def _change(folder: Path, family: type[Backbone], changes: dict) -> None:
    """Change the configs of a teacher's networks."""
    for name in family.spec.components(folder):
        path = folder / name / "config.json"
        known = json.loads(path.read_text())
        if "n_layers" in known and "num_layers" in changes:  # Z-Image's name
            changes = {"n_layers" if key == "num_layers" else key: changes[key] for key in changes}
        if unknown := sorted(changes.keys() - known.keys()):
            option = "--layers" if unknown == ["num_layers"] else unknown[0]
            raise ValueError(
                f"{option}={changes[unknown[0]]} has no effect on {family.pipeline_class}, whose"
                f" {name}/config.json has no {unknown[0]}: leave it out"
            )
        path.write_text(json.dumps(known | changes))


def shortened(config: RunConfig, layers: int, work: Path) -> RunConfig:
    """Return the run on a copy of its teacher's configs with fewer blocks, without weights.

    Args:
        config: The run.
        layers: Number of blocks.
        work: Folder to write to.

    Returns:
        A new config.
    """
    folder, family = find_family(config.model, weights=False)
    out = work / f"{folder.name}-{layers}"
    shutil.copytree(folder, out, dirs_exist_ok=True)
    _change(out, family, {"num_layers": layers})
    return replace(config, model=replace(config.model, path=str(out), revision=None))


def untrained(config: RunConfig, work: Path, *, primary: bool = True, **changes) -> RunConfig:
    """Return the run on its architecture with random weights, which the primary rank writes.

    Args:
        config: The run.
        work: Folder to write to.
        primary: Whether this rank writes the weights.
        changes: Changes of the network's config.

    Returns:
        A new config.
    """
    if primary:
        write_untrained(config, work, **changes)
    collectives.barrier()
    return replace(
        config, model=replace(config.model, path=str(write_untrained(config, work, **changes)))
    )


def text_like(backbone: Backbone, batch: int, seed: int) -> Cond:
    """Return random text embeddings in the teacher's shapes, for every token, and random
    conditions of given images if it takes them.

    Args:
        backbone: The teacher's model family.
        batch: Number of prompts B.
        seed: Seed.

    Returns:
        Conditioning of B prompts.
    """
    example = type(backbone).spec.example(
        backbone.network, backbone.folder, backbone.size, batch, torch_dtype(backbone.config)
    )
    generator = torch.Generator().manual_seed(seed)
    captions = example.get("cap_feats")  # a list of [T, D]
    first = example["encoder_hidden_states"] if captions is None else torch.stack(captions)
    shape = first.shape
    tensors = {"prompt_embeds": torch.randn(shape, generator=generator)}
    pooled = example.get(
        "pooled_projections", example.get("added_cond_kwargs", {}).get("text_embeds")
    )
    if pooled is not None:
        tensors["pooled_prompt_embeds"] = torch.randn(pooled.shape, generator=generator)
    if "encoder_hidden_states_2" in example:  # of quoted text
        quoted = example["encoder_hidden_states_2"].shape
        tensors["prompt_embeds_2"] = torch.randn(quoted, generator=generator)
        tensors["prompt_embeds_mask"] = torch.ones(shape[:2], dtype=torch.bool)
        tensors["prompt_embeds_mask_2"] = torch.ones(quoted[:2], dtype=torch.bool)
    elif "encoder_attention_mask" in example or captions is not None:
        tensors["prompt_attention_mask"] = torch.ones(shape[:2], dtype=torch.long)
    if "encoder_hidden_states_mask" in example:
        tensors["prompt_embeds_mask"] = torch.ones(shape[:2], dtype=torch.bool)
    given = (backbone.network, backbone.folder, backbone.size)
    for name, shape in type(backbone).spec.image_shapes(*given).items():
        tensors[name] = torch.randn((batch, *shape), generator=generator)
    return Cond(tensors).to(backbone.device)


def random_backbone(config: RunConfig, device: torch.device) -> Backbone:
    """Return a teacher of `config.model` with random weights, created on the device without writing
    files.

    Args:
        config: The run.
        device: Device of the weights.

    Returns:
        The backbone.
    """
    folder, family = find_family(config.model, weights=False)

    class Untrained(family):  # type: ignore[misc, valid-type]
        """The family with a network created from its config."""

        def fresh_network(self) -> nn.Module:
            with unset_fake_temporarily():
                network = empty_base(config, folder, family)
            return filled(network, device)

    Untrained.__name__ = family.__name__
    return Untrained(folder, config.model, config.video, device)


@torch.no_grad()
def filled(network: nn.Module, device: torch.device) -> nn.Module:
    """Fill a network on the meta device with small random values.

    Args:
        network: The network. It is modified.
        device: Device of the values.

    Returns:
        The network in evaluation mode.
    """
    for part in network.modules():
        for name, old in part._parameters.items():
            if old is not None:
                new = torch.empty(old.shape, dtype=old.dtype, device=device)
                part._parameters[name] = nn.Parameter(new.normal_(0, 0.02), requires_grad=False)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = torch.zeros(buffer.shape, dtype=buffer.dtype, device=device)
    return network.eval()


@dataclass(frozen=True)
class Stage:
    """Everything an iteration needs, without prompts and files."""

    config: RunConfig
    backbone: Backbone
    roles: Roles
    engines: dict
    grid: TimeGrid
    conds: list[Cond]
    streams: Streams
    first_stream: int
    total_micros: int
    """Micro-batches of all ranks."""
    stream: Stream | None = None
    """Trajectories of a streaming rollout."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape [B, ...] of one micro-batch's latents."""
        return self.config.batch.micro, *self.backbone.latent_shape()

    def iterate(self, step: int, iteration=iterate, roles: Roles | None = None) -> Outcome:
        """Run one iteration. Raises AssertionError if a loss or gradient is not finite.

        Args:
            step: The iteration.
            iteration: Iteration function.
            roles: Roles to use instead of the stage's.

        Returns:
            Result of the iteration.
        """
        outcome = iteration(
            step,
            self.conds,
            self.shape,
            objective=build_objective(self.config.objective),
            roles=roles or self.roles,
            engines=self.engines,
            grid=self.grid,
            streams=self.streams,
            first_stream=self.first_stream,
            **({} if self.stream is None else {"stream": self.stream}),
        )
        assert outcome.failed is None, outcome
        return outcome

    def with_objective(self, **changes: Any) -> Stage:
        """Return the same networks with other settings of the objective. A stream is started.

        Args:
            changes: Changed settings.

        Returns:
            A new stage.
        """
        objective = replace(self.config.objective, **changes)
        stage = replace(self, config=replace(self.config, objective=objective), stream=None)
        if objective.rollout != "stream":
            return stage
        stream = Stream(
            build_objective(objective),
            (self.grid,),
            self.streams,
            self.shape,
            micros=len(self.conds),
            first_stream=self.first_stream,
            total_micros=self.total_micros,
        )
        stream.begin(self.roles.student, self.conds)
        return replace(stage, stream=stream)

    def call(self, role: str) -> Tensor:
        """Call a role once at a middle time, with a graph if gradients are enabled.

        Args:
            role: The role.

        Returns:
            Prediction of x0, [B, ...].
        """
        x = torch.randn(
            self.shape, generator=self.streams.generator(0, "x"), device=self.streams.device
        )
        return getattr(self.roles, role)(
            x, torch.full((len(x),), self.grid.times[-2], device=x.device), self.conds[0]
        )


def build_stage(config: RunConfig, world: launch.World) -> Stage:
    """Build the networks and engines of a run, with random text embeddings.

    Args:
        config: The run.
        world: Processes of the run.

    Returns:
        The stage.
    """
    backbone = load_backbone(config.model, config.video, device=world.device)
    return stage_of(backbone, config, world)


def stage_of(backbone: Backbone, config: RunConfig, world: launch.World) -> Stage:
    """Build the networks and engines of a run on a loaded backbone, with random text embeddings.

    Args:
        backbone: The teacher.
        config: The run.
        world: Processes of the run.

    Returns:
        The stage.
    """
    if config.model.quantize != "none":
        network = backbone.network
        quantize(network, backbone.spec.blocks(network), config.model.quantize)
    engines, teacher = build_engines(config, world, backbone)
    denoisers = {role: backbone.denoiser(engine) for role, engine in engines.items()}
    roles = Roles(
        denoisers["student"],
        denoisers["fake"],
        guide(config, teacher, text_like(backbone, 1, 0)),
    )
    conds = [
        text_like(backbone, config.batch.micro, 1 + world.data_rank)
        for _ in range(config.batch.accumulation)
    ]
    first = world.data_rank * config.batch.accumulation
    stage = Stage(
        config,
        backbone,
        roles,
        engines,
        build_grid(config.grid, backbone.process),
        conds,
        Streams(config.seed, world.device),
        first,
        world.data_size * config.batch.accumulation,
    )
    return stage.with_objective()
