"""A student to export: its weights, its times, and the samples that its export must reproduce.

Shapes: B samples, one per prompt. Latents are [B, ...].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from ..adapters.extract import adapt, extract
from ..adapters.step_condition import NAME, conditions_of, with_step_count
from ..adapters.weights import LoraWeights, weights_of_state
from ..backbones.base import Backbone
from ..config import LoraSettings, ObjectiveSettings
from ..data.items import Item, read_images
from ..data.progress import progress
from ..diffusion.denoiser import Cond
from ..diffusion.grid import TimeGrid
from ..diffusion.sampler import ddim
from ..roles.rounding import difference
from ..sampling.shots import noise


@dataclass(frozen=True)
class Provenance:
    """Origin of a student, as far as it is known."""

    config: dict = field(default_factory=dict)
    """The run's resolved config."""
    scores: dict = field(default_factory=dict)
    """The run's scores.json, if it is of these weights."""
    results: tuple[str, ...] = ()
    """The results.md of evaluations of these weights."""
    origin: str = ""
    """Where it comes from, in sentences."""


def describe_method(objective: ObjectiveSettings) -> str:
    """Return the sentence of a model card that names the method of a run.

    Args:
        objective: Settings of the method.

    Returns:
        The sentence.
    """
    return f"Distilled with tdmvid by {objective.title or f'the method {objective.kind!r}'}."


@dataclass(frozen=True)
class Reference:
    """Inputs of the samples that a check compares."""

    z: Tensor
    """Noise, [B, ...]."""
    cond: Cond
    items: tuple[Item, ...] = ()
    """Prompts and images. If given, the bundle includes videos of the samples."""

    @property
    def prompts(self) -> tuple[str, ...]:
        """The items' prompts."""
        return tuple(item.prompt for item in self.items)


@dataclass(frozen=True)
class Adapter:
    """A network with a LoRA attached, and the LoRA's settings."""

    module: nn.Module
    settings: LoraSettings


@dataclass(frozen=True)
class Student:
    """A student with its reference samples. `adapter` is None for a whole network."""

    backbone: Backbone
    grid: TimeGrid
    weights: dict[str, Tensor]
    """Trained tensors by parameter name: of the adapter, or of the whole network."""
    reference: Reference
    latents: Tensor
    """Its samples for the reference, computed with DDIM, [B, ...]."""
    adapter: Adapter | None = None
    provenance: Provenance = Provenance()
    extraction: dict | None = None
    """Errors of a LoRA that was extracted from a fine-tune."""
    original: dict | None = None
    """For a published LoRA: the comparison with stock code that loads its file."""
    adapters: tuple[LoraWeights, ...] = ()
    """The user's LoRAs that its base has."""
    merged: bool = False
    """Whether its own LoRA file includes them and is loaded on the plain base."""

    @property
    def network(self) -> nn.Module:
        """The network on the device: the adapted one, or the backbone's."""
        return self.adapter.module if self.adapter else self.backbone.network

    @property
    def conditioned_on_steps(self) -> bool:
        """Whether K is a condition of the network, see adapters/step_condition.py."""
        return any(NAME in key.split(".") for key in self.weights)

    @property
    def timesteps(self) -> list[float]:
        """Its times in the network's units, from noise to data."""
        return list_timesteps(self.backbone, self.grid)


def with_merged(students: Mapping[Path, Student]) -> dict[Path, Student]:
    """Add a merged variant of each student whose base has LoRAs of the user.

    Args:
        students: Student by folder.

    Returns:
        The students by folder: e.g. `lora`, to load beside the user's LoRAs, and `lora_merged`,
        which includes them.
    """
    merged = {
        folder.with_name(f"{folder.name}_merged"): replace(student, merged=True)
        for folder, student in students.items()
        if student.adapters
    }
    return {**students, **merged}


def list_timesteps(backbone: Backbone, grid: TimeGrid) -> list[float]:
    """Return the K times of a grid in the network's units, from noise to data."""
    return backbone.process.timestep(torch.tensor(grid.descending())).tolist()


def draw_reference(backbone: Backbone, items: Sequence[Item], seed: int) -> Reference:
    """Encode prompts and images, draw the noise of each, and release the encoders.

    Args:
        backbone: The base.
        items: Prompts, with images if the family takes them.
        seed: Seed of the noise.

    Raises:
        ValueError: There are no items.
    """
    if not items:
        raise ValueError(
            "prompts is empty, but the export is checked on samples: give at least one prompt"
        )
    prompts = [item.prompt for item in items]
    files = [item.image for item in items if item.image is not None]
    images = read_images(files, backbone.size) if files else None
    cond = backbone.encode_items(prompts, images).to(backbone.device)
    backbone.release_text()
    z = torch.stack([noise(prompt, seed, backbone.latent_shape()) for prompt in prompts])
    return Reference(z.to(backbone.device), cond, tuple(items))


def sample_reference(
    backbone: Backbone, network: nn.Module, reference: Reference, grid: TimeGrid
) -> Tensor:
    """Sample a network from the reference with DDIM.

    A network with a step condition gets the grid's number of steps.

    Args:
        backbone: The base.
        network: The student's network.
        reference: Noise and conditions.
        grid: The student's times.

    Returns:
        Latents, [B, ...].
    """
    z, cond = reference.z, reference.cond
    if conditions_of(network):
        cond = cond.with_step_count(grid.steps, len(z), z.device)
    denoiser = with_step_count(backbone.denoiser(network), network)
    with progress("sampling the student", total=grid.steps) as bar:
        return ddim(denoiser, z, cond, grid, on_step=lambda k, x0: bar.update())


def extract_lora(student: Student, rank: int) -> Student:
    """Extract a LoRA from a student that is a whole network.

    Args:
        student: The full fine-tune.
        rank: Rank of the LoRA.

    Returns:
        The LoRA as a new student. Its `extraction` has the errors of the weights, and the relative
        difference between its samples and the network's.
    """
    backbone = student.backbone
    state, errors = extract(backbone.network, student.weights, rank)
    module, weights, settings = adapt(backbone, weights_of_state(state))
    latents = sample_reference(backbone, module, student.reference, student.grid)
    return replace(
        student,
        weights=weights,
        latents=latents,
        adapter=Adapter(module, settings),
        extraction=errors | {"latents_error": difference(latents, student.latents)},
    )
