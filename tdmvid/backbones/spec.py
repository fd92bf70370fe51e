"""Describe a family's components from the configs in its folder alone. Plans are made from this.

No weights are read, so everything works on the meta device.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from ..config import ClipSize, ModelConfig
from ..config.json_files import read_object
from ..data.reading import reading
from ..diffusion.process import Process
from .dtype import torch_dtype
from .experts import Experts, Split
from .weight_files import encoder_class


@dataclass(frozen=True)
class Tokens:
    """Length of one sample's token sequence, and the blocks that process it.

    The sequence includes the text if text and image tokens share one.
    """

    count: int
    heads: int
    width: int
    blocks: int
    note: str = ""
    """Caveat about these numbers, for the plan."""

    @classmethod
    def of_transformer(cls, count: int, config: Any) -> Tokens:
        """Return `count` tokens with heads, width and depth of a diffusers transformer's config."""
        heads = config.num_attention_heads
        return cls(count, heads, heads * config.attention_head_dim, config.num_layers)


class FamilySpec(ABC):
    """A family's network, text encoders and autoencoder, described by the configs in a folder.

    The argument `network` of its methods is the family's network on any device, the meta device
    included.
    """

    network_class: ClassVar[Any]
    network_folder: ClassVar[str] = "transformer"
    vae_class: ClassVar[Any]
    text_parts: ClassVar[tuple[str, ...]] = ("text_encoder", "tokenizer")
    """Components that turn prompts into conditions. Those that a folder lacks are skipped."""

    text_arguments: ClassVar[tuple[str, ...]] = ("encoder_hidden_states",)
    """Arguments of the network that hold the embedded prompts."""
    image_parts: ClassVar[tuple[str, ...]] = ()
    """Components that encode a given image, beside the autoencoder."""

    @abstractmethod
    def read_process(self, folder: Path) -> Process:
        """Return the diffusion process of the teacher's scheduler."""

    def read_split(self, folder: Path) -> Split | None:
        """Return how two experts share the times, or None if the teacher has one network."""
        return None

    def find_obstacle(self, folder: Path) -> str:
        """Return why the family cannot use a pipeline folder of its class, and what to use instead.

        Empty if nothing prevents it.
        """
        assert folder.is_dir()
        return ""

    def components(self, folder: Path) -> tuple[str, ...]:
        """Return the pipeline's component names of the network or of both experts."""
        split = self.read_split(folder)
        return split.names if split else (self.network_folder,)

    @abstractmethod
    def tokens(self, network: nn.Module, folder: Path, size: ClipSize) -> Tokens:
        """Return the token sequence of one sample.

        Args:
            network: The family's network.
            folder: The pipeline folder.
            size: Height, width and number of frames.

        Raises:
            ValueError: The family cannot generate `size`.
        """

    @abstractmethod
    def blocks(self, network: nn.Module) -> list[nn.Module]:
        """Return the blocks that gradient checkpointing recomputes one by one."""

    @abstractmethod
    def example(
        self, network: nn.Module, folder: Path, size: ClipSize, batch: int, dtype: torch.dtype
    ) -> dict:
        """Return keyword arguments of one network call, as empty tensors; noisy latents come first.

        Args:
            network: The family's network.
            folder: The pipeline folder.
            size: Height, width and number of frames.
            batch: Number of samples B.
            dtype: Dtype of latents and embeddings.
        """

    @abstractmethod
    def vae_latents(self, network: nn.Module, folder: Path, size: ClipSize) -> tuple[int, ...]:
        """Return the shape of one sample in the autoencoder's layout: [C, H, W] or [C, F, H, W].

        Args:
            network: The family's network.
            folder: The pipeline folder.
            size: Height, width and number of frames.

        Raises:
            ValueError: The family cannot generate `size`.
        """

    def image_shapes(
        self, network: nn.Module, folder: Path, size: ClipSize
    ) -> dict[str, tuple[int, ...]]:
        """Return the shapes of one given image's conditions by name; none without images.

        Args:
            network: The family's network.
            folder: The pipeline folder.
            size: Height, width and number of frames.
        """
        return {}

    @abstractmethod
    def vae_tile(self, vae: nn.Module) -> tuple[int, int]:
        """Return height and width of a tile of latents."""

    def fuse_vae(self, vae: nn.Module) -> None:
        """Replace modules of the autoencoder in place by faster equivalents; by default none."""
        assert isinstance(vae, nn.Module)

    def vae_dtype(self, folder: Path, config: ModelConfig) -> torch.dtype:
        """Return the autoencoder's dtype: the network's, or float32 if it overflows in float16."""
        upcast = self.vae_class.load_config(folder, subfolder="vae").get("force_upcast")
        overflows = upcast and torch_dtype(config) == torch.float16
        return torch.float32 if overflows else torch_dtype(config)

    def float32_parts(self, folder: Path, config: ModelConfig) -> list[str]:
        """Return the components that stay in float32 where the network's dtype is bfloat16."""
        half = replace(config, dtype="bfloat16")
        vae = ["vae"] if self.vae_dtype(folder, half) == torch.float32 else []
        index = read_object(folder / "model_index.json")
        images = [part for part in self.image_parts if encoder_class(index.get(part)) is not None]
        return [*vae, *images]

    def empty_network(self, folder: Path) -> nn.Module:
        """Build the network from its config alone, for counting on the meta device."""
        return self.assemble(folder, self._empty_component)

    def _empty_component(self, folder: Path, name: str) -> nn.Module:
        with reading(folder / name, advice="download the model again, or check model.path"):
            config = self.network_class.load_config(folder, subfolder=name)
            network: nn.Module = self.network_class.from_config(config)
        return network

    def assemble(self, folder: Path, make: Callable[[Path, str], nn.Module]) -> nn.Module:
        """Build the network of the pipeline, or both experts as one module.

        Args:
            folder: The pipeline folder.
            make: Returns a component for the pipeline's folder and the component's name.
        """
        split = self.read_split(folder)
        if split is None:
            return make(folder, self.network_folder)
        one = torch.ones(1, device="cpu")  # on the CPU even inside `torch.device("meta")`
        scale = self.read_process(folder).timestep(one).item()
        return Experts({name: make(folder, name) for name in split.names}, split, scale)

    def named_components(self, network: nn.Module) -> dict[str, Any]:
        """Return a network, or both experts, by component name."""
        return network.networks if isinstance(network, Experts) else {self.network_folder: network}

    def empty_vae(
        self, network: nn.Module, folder: Path, config: ModelConfig, size: ClipSize
    ) -> tuple[nn.Module, tuple[int, ...]]:
        """Build the autoencoder from its config alone, in its dtype.

        Args:
            network: The family's network.
            folder: The pipeline folder.
            config: Gives dtype and tiling.
            size: Height, width and number of frames.

        Returns:
            The autoencoder, and the shape of the latents that it decodes at once: one sample, or
            one tile of it.
        """
        vae = self.vae_class.from_config(self.vae_class.load_config(folder, subfolder="vae"))
        vae = nn.Module.to(vae, self.vae_dtype(folder, config)).eval()
        self.fuse_vae(vae)
        *outer, height, width = self.vae_latents(network, folder, size)
        if config.tiling:
            tile = self.vae_tile(vae)
            height, width = min(height, tile[0]), min(width, tile[1])
        return vae, (1, *outer, height, width)

    def text_bytes(self, folder: Path, config: ModelConfig) -> int:
        """Return the bytes of the text encoders that have a config in the folder.

        Args:
            folder: The pipeline folder.
            config: Gives the dtype.
        """
        index = read_object(folder / "model_index.json")
        count = sum(_parameters(folder / part, index.get(part)) for part in self.text_parts)
        return count * torch_dtype(config).itemsize


def _parameters(folder: Path, entry: list | None) -> int:
    """Return the number of parameters of a text encoder; 0 for a tokenizer or without a config.

    Args:
        folder: The component's folder.
        entry: Its entry in model_index.json, [library, class].
    """
    kind = encoder_class(entry)
    if kind is None or not (folder / "config.json").is_file():
        return 0
    with torch.device("meta"):
        encoder = kind(kind.config_class.from_pretrained(folder))
    return sum(p.numel() for p in encoder.parameters())


def check_sides(size: ClipSize, *, height: int, width: int) -> None:
    """Check that height and width are divisible by the given units.

    Args:
        size: The size in pixels.
        height, width: Pixels per patch of the network.

    Raises:
        ValueError: One of them is not divisible.
    """
    for name, unit in (("height", height), ("width", width)):
        if getattr(size, name) % unit:
            raise ValueError(
                f"video.{name}={getattr(size, name)} is not divisible by {unit} (latent"
                " compression x patch size): use a multiple of it"
            )


def check_frames(size: ClipSize, temporal: int) -> None:
    """Check that an autoencoder decodes the number of frames.

    Args:
        size: The size in pixels.
        temporal: Frames per latent frame after the first.

    Raises:
        ValueError: The number is not 1 above a multiple of `temporal`.
    """
    if (size.frames - 1) % temporal:
        near = max(1, round((size.frames - 1) / temporal)) * temporal + 1
        raise ValueError(
            f"video.frames={size.frames}: this autoencoder decodes {temporal}n + 1 frames, use"
            f" e.g. {near}"
        )


def check_tiles(height: tuple[int, int, float], width: tuple[int, int, float]) -> tuple[int, int]:
    """Return height and width of a tile in latents.

    Args:
        height, width: (latents per tile, pixels per tile, fraction that overlaps the next tile).

    Raises:
        ValueError: diffusers would cut decoded tiles and latents at different places, so that the
            result has another size.
    """
    for name, (latents, pixels, overlap) in (("height", height), ("width", width)):
        if int(latents * (1 - overlap)) * pixels != (pixels - int(pixels * overlap)) * latents:
            raise ValueError(
                f"model.tiling=true: this autoencoder's tiles ({latents} latents, {pixels} pixels"
                f" in {name}) do not fit together: set model.tiling to false"
            )
    return height[0], width[0]
