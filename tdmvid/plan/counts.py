"""Count a run's parameters, trace its network calls, and count the text encoders and autoencoder
around the network, from configs alone.
"""

from __future__ import annotations

import math
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
from ..config import RunConfig, decoded_frames
from ..parallel.sequence import PlannedGroup
from ..roles.build import GENERATORS, build_discriminator, build_role, empty_base
from .calls import calls_of_rewards, calls_per_iteration, graded_twice, teacher_calls
from .cost import Trace, decoding_bytes, decoding_flops, trace

__all__ = [
    "Calls",
    "Outline",
    "Pipeline",
    "Weights",
    "bytes_per_value",
    "calls_of_rewards",
    "calls_per_iteration",
    "count_calls",
    "count_pipeline",
    "decoded_settings",
    "graded_twice",
    "outline_networks",
    "teacher_calls",
    "traced_settings",
    "weighed_settings",
]


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Parameter counts of a run's networks."""

    base: int
    """Parameters of one network, or of both experts together."""
    base_bytes: int
    """Bytes of these parameters when they are frozen."""
    buffers: int = 0
    """Bytes of a network's buffers, mainly position tables."""
    trainable: int
    """Trainable parameters of the student. The fake, if there is one, has the same number."""
    generators: tuple[str, ...] = GENERATORS
    """The roles among student and fake that the objective trains."""
    heads: int = 0
    """Trainable parameters of the discriminator."""
    experts: int = 1
    """Number of expert networks. An iteration trains one of them, and a call uses one."""

    @property
    def called(self) -> int:
        """Parameters of the network that one call uses."""
        return self.base // self.experts

    @property
    def trained(self) -> int:
        """Trainable parameters of all roles."""
        return len(self.generators) * self.trainable + self.heads


@dataclass(frozen=True, kw_only=True)
class Calls:
    """Number of network calls for one micro-batch of an iteration, and the cost of each on one
    rank.
    """

    forwards: float
    backwards: int
    network: Trace
    discriminator: Trace | None = None
    """Cost of a discriminator call that computes a gradient for its input."""


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """Bytes of the parts of the pipeline around the network."""

    text: int
    """Bytes of the weights of the text encoders whose configs are known."""
    vae: int
    """Bytes of the weights of the autoencoder."""
    decoding: int
    """Peak bytes of tensors while the autoencoder decodes one sample."""
    at_once: int = 1
    """Number of samples that it decodes together."""
    embedding: int = 0
    """Bytes of the text embedding of one prompt."""
    image: int = 0
    """Bytes of the cached condition of one given image."""
    latent: int = 0
    """Number of values of one latent; 0 without rewards and discriminator."""
    scored: int = 0
    """Peak bytes of tensors while the frames that rewards get are decoded; 0 without any."""
    decoding_flops: float = 0.0
    """FLOPs of decoding these frames of one sample; 0 without any."""


@dataclass(frozen=True, kw_only=True)
class Outline:
    """A run's networks on the meta device: a trained role and the discriminator."""

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

    Args:
        config: Settings of the run.
        folder: Folder with the teacher's configs.
        family: Model family of the teacher.

    Returns:
        The networks with their parameter counts.

    Raises:
        ValueError: The model family, or the LoRA given by `init`, does not support the settings.
    """
    network = empty_base(config, folder, family)
    tokens = family.spec.tokens(network, folder, config.video)
    base = _parameters(network)
    base_bytes = planned_bytes(network, family.spec.blocks(network), config.model.quantize)
    group = PlannedGroup(config.parallel.sequence)
    there = Path(config.init).is_dir()  # a plan may refer to a stage that has not run yet
    startable = config if there else replace(config, init="")
    with torch.device("meta"):
        build_role(network, "student", startable, family, group=group)
    if not config.trains_lora:
        network.float()  # full copies are trained in float32
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
    """Count the network calls of an iteration and trace the cost of each.

    Args:
        networks: The networks on the meta device. They are modified.

    Returns:
        Number and cost of the calls for one micro-batch.
    """
    config, family = networks.config, networks.family
    network = experts_of(networks.network)[0]  # a call uses one expert, and all are equal
    dtype, critic = torch_dtype(config.model), networks.discriminator

    def example() -> dict[str, Any]:
        return family.spec.example(
            network, networks.folder, config.video, config.batch.micro, dtype
        )

    def example_of_critic() -> dict[str, Any]:
        inputs = example()
        sample = next(iter(inputs))  # the noisy latents come first
        for tensor in _tensors(inputs[sample]):
            tensor.requires_grad_()
        return inputs | {"tau": torch.rand(config.batch.micro), "steps": None}

    forwards, backwards = calls_per_iteration(config)
    blocks = family.spec.blocks(network)
    call = trace(network, blocks, example, dtype=dtype, group=networks.group)
    judged = None
    if critic:
        judged = trace(critic, family.spec.blocks(critic.network), example_of_critic, dtype=dtype)
    return Calls(forwards=forwards, backwards=backwards, network=call, discriminator=judged)


def weighed_settings(config: RunConfig) -> tuple[object, ...]:
    """Return all settings that determine the tokens and weights of `outline_networks`.

    Args:
        config: Settings of the run.

    Returns:
        A tuple to compare with that of another run.
    """
    model, objective = config.model, config.objective
    return (
        (model.path, model.revision, model.pipeline, model.dtype, model.quantize, config.video),
        (config.training, config.lora, config.init),
        (objective.conditioned_on_steps, objective.roles),
    )


def traced_settings(config: RunConfig) -> tuple[object, ...]:
    """Return all settings that determine the traces of `count_calls`.

    Args:
        config: Settings of the run.

    Returns:
        A tuple to compare with that of another run.
    """
    model, objective = config.model, config.objective
    return (
        (model.path, model.revision, model.pipeline, model.dtype, model.attention),
        (config.video, config.batch.micro, config.parallel.sequence),
        (config.training, config.lora, config.init),
        (objective.conditioned_on_steps, objective.roles),
    )


def count_pipeline(networks: Outline) -> Pipeline:
    """Count the bytes of the text encoders, the autoencoder, and the conditions of a sample.

    Args:
        networks: The networks on the meta device.

    Returns:
        Bytes by part.
    """
    config, folder, family = networks.config, networks.folder, networks.family
    vae, decoding = _autoencoder(config, folder, family, networks.network)
    latent, scored, flops = 0, 0, 0.0
    whole = config.video.frames
    if config.rewards or "discriminator" in config.objective.roles:
        latent = math.prod(_empty_vae(networks, whole)[1])
    if config.rewards and (frames := decoded_frames(config.rewards, whole)):
        flops = decoding_flops(*_empty_vae(networks, frames))
        short = frames < whole
        scored = decoding_bytes(*_empty_vae(networks, frames)) if short else decoding
    return Pipeline(
        text=family.spec.text_bytes(folder, config.model),
        vae=vae,
        decoding=decoding,
        at_once=family.samples_at_once(config.video, tiling=config.model.tiling),
        embedding=_embedding_bytes(networks),
        image=_image_bytes(networks),
        latent=latent,
        scored=scored,
        decoding_flops=flops,
    )


def _empty_vae(networks: Outline, frames: int) -> tuple[nn.Module, tuple[int, ...]]:
    """Return the autoencoder on the meta device, and the shape of its latents of a clip."""
    config, size = networks.config, replace(networks.config.video, frames=frames)
    with torch.device("meta"):
        return networks.family.spec.empty_vae(networks.network, networks.folder, config.model, size)


def _image_bytes(networks: Outline) -> int:
    config, spec = networks.config, networks.family.spec
    with torch.device("meta"):
        shapes = spec.image_shapes(networks.network, networks.folder, config.video)
    return sum(map(math.prod, shapes.values())) * bytes_per_value(torch_dtype(config.model))


def _embedding_bytes(networks: Outline) -> int:
    config, folder, spec = networks.config, networks.folder, networks.family.spec
    with torch.device("meta"):
        inputs = spec.example(networks.network, folder, config.video, 1, torch_dtype(config.model))
    states = [tensor for name in spec.text_arguments for tensor in _tensors(inputs[name])]
    return sum(tensor.numel() * tensor.element_size() for tensor in states)


def _tensors(argument: Any) -> list[torch.Tensor]:
    """The tensors of an argument: one of a batch, or a list with one of each sample."""
    return argument if isinstance(argument, list) else [argument]


def decoded_settings(config: RunConfig) -> tuple[object, ...]:
    """Return all settings that determine the result of `count_pipeline`.

    Args:
        config: Settings of the run.

    Returns:
        A tuple to compare with that of another run.
    """
    model = replace(config.model, quantize="none", attention="sdpa")
    frames = decoded_frames(config.rewards, config.video.frames)
    return config.video, model, bool(config.rewards), frames


def _autoencoder(
    config: RunConfig, folder: Path, family: type[Backbone], network: nn.Module
) -> tuple[int, int]:
    """Return the bytes of the autoencoder's weights and its peak bytes while it decodes one sample.
    Tiles stay in memory until they are joined, which needs two more full videos.
    """
    with torch.device("meta"):
        vae, shape = family.spec.empty_vae(network, folder, config.model, config.video)
    size, value = config.video, bytes_per_value(next(vae.parameters()).dtype)
    weights = _parameters(vae) * value
    joined = 3 * 3 * size.frames * size.height * size.width * value if config.model.tiling else 0
    return weights, decoding_bytes(vae, shape) + joined


def bytes_per_value(dtype: torch.dtype) -> int:
    """Return the number of bytes of one value of a floating-point dtype.

    Args:
        dtype: Floating-point dtype.

    Returns:
        Bytes per value.
    """
    return torch.finfo(dtype).bits // 8


def _parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())
