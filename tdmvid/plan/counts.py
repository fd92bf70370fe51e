"""Count a run's parameters, its network calls and what surrounds them, from configs alone."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..backbones.base import Backbone
from ..backbones.discriminator import Discriminator
from ..backbones.dtype import torch_dtype
from ..backbones.experts import experts_of
from ..backbones.quantize import planned_bytes
from ..backbones.spec import Tokens
from ..config import RunConfig
from ..parallel.sequence import PlannedGroup
from ..roles.build import GENERATORS, build_discriminator, build_role, empty_base
from .cost import Trace, decoding_bytes, trace


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Parameters of the run's networks."""

    base: int
    """Parameters of one network, or of both experts."""
    base_bytes: int
    """Bytes that hold them, frozen."""
    buffers: int = 0
    """Bytes of a network's tables, of positions chiefly."""
    trainable: int
    """Trainable parameters of the student, and as many of the fake, if there is one."""
    generators: tuple[str, ...] = GENERATORS
    """Those of student and fake that the objective trains."""
    heads: int = 0
    """Trainable parameters of the discriminator."""
    experts: int = 1
    """Networks of which an iteration trains one, and a call uses one."""

    @property
    def called(self) -> int:
        """Parameters of the network of one call."""
        return self.base // self.experts

    @property
    def trained(self) -> int:
        """Trainable parameters of all roles."""
        return len(self.generators) * self.trainable + self.heads


@dataclass(frozen=True, kw_only=True)
class Calls:
    """Network calls of one micro-batch of an iteration, and what each costs a rank."""

    forwards: float
    backwards: int
    network: Trace
    discriminator: Trace | None = None
    """A call with a gradient in its input."""


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """Bytes of what surrounds the network."""

    text: int
    """Weights of the text encoders, as far as their configs are known."""
    vae: int
    """Weights of the autoencoder."""
    decoding: int
    """Peak bytes of tensors while it decodes one sample."""
    embedding: int = 0
    """Bytes of one prompt's embedding."""


@dataclass(frozen=True, kw_only=True)
class Outline:
    """A run's networks on the meta device: what a role trains, and the discriminator."""

    config: RunConfig
    folder: Path
    family: type[Backbone]
    network: nn.Module
    discriminator: Discriminator | None
    group: PlannedGroup
    tokens: Tokens
    weights: Weights


def outline_networks(config: RunConfig, folder: Path, family: type[Backbone]) -> Outline:
    """Build a run's networks on the meta device.

    Raises:
        ValueError: this family, or the LoRA of `init`, cannot do what the run asks for.
    """
    network = empty_base(config, folder, family)
    tokens = family.spec.tokens(network, folder, config.video)
    base = _parameters(network)
    base_bytes = planned_bytes(network, family.spec.blocks(network), config.model.quantize)
    group = PlannedGroup(config.parallel.sequence)
    there = Path(config.init).is_dir()  # a stage that is not finished yet can be planned on
    startable = config if there else replace(config, init="")
    with torch.device("meta"):
        build_role(network, "student", startable, family, group=group)
    if not config.trains_lora:
        network.float()  # as whole trained copies are
    critic = None
    if "discriminator" in config.objective.roles:
        half = empty_base(config, folder, family)
        with torch.device("meta"):
            critic = build_discriminator(half, config, family)
    return Outline(
        config=config,
        folder=folder,
        family=family,
        network=network,
        discriminator=critic,
        group=group,
        tokens=tokens,
        weights=Weights(
            base=base,
            base_bytes=base_bytes,
            buffers=sum(b.numel() * b.element_size() for b in network.buffers()),
            trainable=sum(p.numel() for p in network.parameters() if p.requires_grad),
            generators=tuple(role for role in GENERATORS if role in config.objective.roles),
            heads=_parameters(critic.heads) if critic else 0,
            experts=len(experts_of(network)),
        ),
    )


def count_calls(networks: Outline) -> Calls:
    """Count and trace the calls of an iteration; the networks are changed."""
    config, family = networks.config, networks.family
    network = experts_of(networks.network)[0]  # a call goes through one, and they are alike
    dtype, critic = torch_dtype(config.model), networks.discriminator

    def example() -> dict[str, Any]:
        return family.spec.example(
            network, networks.folder, config.video, config.batch.micro, dtype
        )

    def example_of_critic() -> dict[str, Any]:
        inputs = example()
        sample = next(iter(inputs))  # the noisy latents come first
        inputs[sample].requires_grad_()
        return inputs | {"tau": torch.rand(config.batch.micro), "steps": None}

    forwards, backwards = calls_per_iteration(config)
    blocks = family.spec.blocks(network)
    call = trace(network, blocks, example, dtype=dtype, group=networks.group)
    judged = None
    if critic:
        judged = trace(critic, family.spec.blocks(critic.network), example_of_critic, dtype=dtype)
    return Calls(forwards=forwards, backwards=backwards, network=call, discriminator=judged)


def weighed_settings(config: RunConfig) -> tuple[object, ...]:
    """Return all settings on which the tokens and weights of `outline_networks` depend."""
    model, objective = config.model, config.objective
    return (
        (model.path, model.revision, model.dtype, model.quantize, config.video),
        (config.training, config.lora, config.init),
        (objective.conditioned_on_steps, objective.roles),
    )


def traced_settings(config: RunConfig) -> tuple[object, ...]:
    """Return all settings on which the traces of `count_calls` depend."""
    model, objective = config.model, config.objective
    return (
        (model.path, model.revision, model.dtype, model.attention),
        (config.video, config.batch.micro, config.parallel.sequence),
        (config.training, config.lora, config.init),
        (objective.conditioned_on_steps, objective.roles),
    )


def calls_per_iteration(config: RunConfig) -> tuple[float, int]:
    """Return the mean forwards and the backwards of one iteration, in whole-batch network calls per
    micro-batch.

    Rollout (none if trajectories go on) + the graded call + per fake update (1F1B) + the student's
    turn (teacher once or twice, fake once unless the draw is shared, 1B); with accumulation the
    graded call is made twice, unless each micro-batch takes all turns. A turn with trajectories of
    its own rolls out and calls the student once more. A gradient that is taken through the scores
    adds their backwards.
    """
    objective = config.objective
    steps = float(config.grid.calls)
    if objective.step_set:
        steps = sum(objective.step_set) / len(objective.step_set)
    rollout = {"full": steps - 1, "stop": (steps - 1) / 2, "stream": 0.0}[objective.rollout]
    graded = 2 if graded_twice(config) else 1
    teacher = teacher_calls(config)
    scores = 1 + teacher if objective.through_scores else 0
    updates = objective.roles.count("fake")
    fake = updates + (objective.draws == "own") if updates else 0
    own = objective.own_trajectories * (rollout + 1)
    finished = rest_of_rollouts(config, steps) * (1 + objective.own_trajectories)
    return rollout + graded + own + fake + teacher + finished, updates + 1 + scores


def rest_of_rollouts(config: RunConfig, steps: float) -> float:
    """Return the mean calls by which a rollout of K steps is finished, for a reward to see."""
    if not config.rewards:
        return 0.0
    # one graph at a time: with joint updates the call at the rollout's end is made twice
    again = config.objective.updates == "joint" and config.batch.accumulation > 1
    rest = {"full": 1.0, "stop": (steps - 1) / 2 + again, "stream": 0.0}
    return rest[config.objective.rollout]


def graded_twice(config: RunConfig) -> bool:
    """Return whether the student's call of the fake's turn is made again, with a graph."""
    # with rewards a stream's fake learns from trajectories that have ended
    own_turns = not (config.rewards and config.objective.rollout == "stream")
    return config.batch.accumulation > 1 and config.objective.updates == "sequential" and own_turns


def teacher_calls(config: RunConfig) -> int:
    """Return the network calls of one guided call of the teacher."""
    return 2 if config.objective.guided else 1


def count_pipeline(networks: Outline) -> Pipeline:
    """Count the text encoders and the autoencoder."""
    config, folder, family = networks.config, networks.folder, networks.family
    vae, decoding = _autoencoder(config, folder, family, networks.network)
    return Pipeline(
        text=family.spec.text_bytes(folder, config.model),
        vae=vae,
        decoding=decoding,
        embedding=_embedding_bytes(networks),
    )


def _embedding_bytes(networks: Outline) -> int:
    config, folder, spec = networks.config, networks.folder, networks.family.spec
    with torch.device("meta"):
        inputs = spec.example(networks.network, folder, config.video, 1, torch_dtype(config.model))
    states: torch.Tensor = inputs["encoder_hidden_states"]
    return states.numel() * states.element_size()


def decoded_settings(config: RunConfig) -> tuple[object, ...]:
    """Return all settings on which `count_pipeline` depends."""
    return config.video, replace(config.model, quantize="none", attention="sdpa")


def _autoencoder(
    config: RunConfig, folder: Path, family: type[Backbone], network: nn.Module
) -> tuple[int, int]:
    """Bytes of its weights, and of what it makes while it decodes one sample; tiles stay until they
    are joined, then there are two such pictures.
    """
    with torch.device("meta"):
        vae, shape = family.spec.empty_vae(network, folder, config.model, config.video)
    size, value = config.video, bytes_per_value(next(vae.parameters()).dtype)
    weights = _parameters(vae) * value
    joined = 3 * 3 * size.frames * size.height * size.width * value if config.model.tiling else 0
    return weights, decoding_bytes(vae, shape) + joined


def bytes_per_value(dtype: torch.dtype) -> int:
    """Return the bytes of one number."""
    return torch.finfo(dtype).bits // 8


def _parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())
