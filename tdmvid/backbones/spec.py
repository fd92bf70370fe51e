"""Describe a family's parts from the configs in its folder alone: what a plan is made of.

No weights are read, so everything works on the meta device.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from ..config import ClipSize, ModelConfig
from ..config.json_files import read_object
from ..diffusion.process import Process
from .dtype import torch_dtype
from .experts import Experts, Split
from .weight_files import encoder_class


@dataclass(frozen=True)
class Tokens:
    """The sequence of one sample (with its text, where they share one), and the blocks it runs
    through.
    """

    count: int
    heads: int
    width: int
    blocks: int
    note: str = ""
    """What these numbers do not say."""

    @classmethod
    def of_transformer(cls, count: int, config: Any) -> Tokens:
        """Return `count` tokens in the heads and layers of a diffusers transformer's config."""
        heads = config.num_attention_heads
        return cls(count, heads, heads * config.attention_head_dim, config.num_layers)


class FamilySpec(ABC):
    """A family's network, text encoders and autoencoder, as the configs in a folder describe them.

    `network` is the family's network on any device, the meta device included.
    """

    network_class: ClassVar[Any]
    network_folder: ClassVar[str] = "transformer"
    vae_class: ClassVar[Any]
    text_parts: ClassVar[tuple[str, ...]] = ("text_encoder", "tokenizer")
    """Components that turn prompts into conditions; one that a folder lacks is passed over."""

    image_parts: ClassVar[tuple[str, ...]] = ()
    """Components that encode a given image, beside the autoencoder."""

    @abstractmethod
    def read_process(self, folder: Path) -> Process:
        """Return the process of the teacher's scheduler."""

    def read_split(self, folder: Path) -> Split | None:
        """Return how two experts share the times; None of a teacher of one network."""
        return None

    def find_obstacle(self, folder: Path) -> str:
        """Return why the family cannot run a pipeline folder of its class, and what it can; empty
        if nothing is in the way.
        """
        assert folder.is_dir()
        return ""

    def components(self, folder: Path) -> tuple[str, ...]:
        """Return what the pipeline calls its networks."""
        split = self.read_split(folder)
        return split.names if split else (self.network_folder,)

    @abstractmethod
    def tokens(self, network: nn.Module, folder: Path, size: ClipSize) -> Tokens:
        """Return the sequence of one sample.

        Raises:
            ValueError: the family cannot generate `size`.
        """

    @abstractmethod
    def blocks(self, network: nn.Module) -> list[nn.Module]:
        """Return the blocks that gradient checkpointing recomputes one by one."""

    @abstractmethod
    def example(
        self, network: nn.Module, folder: Path, size: ClipSize, batch: int, dtype: torch.dtype
    ) -> dict:
        """Return keyword arguments of one call, as empty tensors; noisy latents come first."""

    @abstractmethod
    def vae_latents(self, network: nn.Module, folder: Path, size: ClipSize) -> tuple[int, ...]:
        """Return the shape of one sample in the autoencoder's layout, [C, H, W] or [C, F, H, W]."""

    @abstractmethod
    def vae_tile(self, vae: nn.Module) -> tuple[int, int]:
        """Return height and width of a tile of latents."""

    def vae_dtype(self, folder: Path, config: ModelConfig) -> torch.dtype:
        """Return the autoencoder's dtype: the network's, or float32 if it overflows in float16."""
        upcast = self.vae_class.load_config(folder, subfolder="vae").get("force_upcast")
        overflows = upcast and torch_dtype(config) == torch.float16
        return torch.float32 if overflows else torch_dtype(config)

    def empty_network(self, folder: Path) -> nn.Module:
        """Build the network from its config alone: for counting, on the meta device."""
        return self.assemble(folder, self._empty_component)

    def _empty_component(self, folder: Path, name: str) -> nn.Module:
        config = self.network_class.load_config(folder, subfolder=name)
        network: nn.Module = self.network_class.from_config(config)
        return network

    def assemble(self, folder: Path, make: Callable[[Path, str], nn.Module]) -> nn.Module:
        """Return the network of the pipeline's component, or both experts as one.

        Args:
            make: returns a component by the pipeline's folder and its name.
        """
        split = self.read_split(folder)
        if split is None:
            return make(folder, self.network_folder)
        one = torch.ones(1, device="cpu")  # also where all else is on the meta device
        scale = self.read_process(folder).timestep(one).item()
        return Experts({name: make(folder, name) for name in split.names}, split, scale)

    def named_components(self, network: nn.Module) -> dict[str, Any]:
        """Return a network, or both experts, by the names of the pipeline's components."""
        return network.networks if isinstance(network, Experts) else {self.network_folder: network}

    def empty_vae(
        self, network: nn.Module, folder: Path, config: ModelConfig, size: ClipSize
    ) -> tuple[nn.Module, tuple[int, ...]]:
        """Build the autoencoder from its config alone, in its dtype.

        Returns:
            The autoencoder, and the shape of what it decodes at once: one sample's latents, or a
            tile of them.
        """
        vae = self.vae_class.from_config(self.vae_class.load_config(folder, subfolder="vae"))
        vae = nn.Module.to(vae, self.vae_dtype(folder, config)).eval()
        *outer, height, width = self.vae_latents(network, folder, size)
        if config.tiling:
            tile = self.vae_tile(vae)
            height, width = min(height, tile[0]), min(width, tile[1])
        return vae, (1, *outer, height, width)

    def text_bytes(self, folder: Path, config: ModelConfig) -> int:
        """Return the bytes of the text encoders whose configs the folder has."""
        index = read_object(folder / "model_index.json")
        count = sum(_parameters(folder / part, index.get(part)) for part in self.text_parts)
        return count * torch_dtype(config).itemsize


def _parameters(folder: Path, entry: list | None) -> int:
    """Parameters of a text encoder; 0 for a tokenizer, or a part without a config.

    entry: of the part in model_index.json, [library, class].
    """
    kind = encoder_class(entry)
    if kind is None or not (folder / "config.json").is_file():
        return 0
    with torch.device("meta"):
        encoder = kind(kind.config_class.from_pretrained(folder))
    return sum(p.numel() for p in encoder.parameters())


def check_sides(size: ClipSize, *, height: int, width: int) -> None:
    """Raise ValueError for a size whose height or width does not divide by that of a patch."""
    for name, unit in (("height", height), ("width", width)):
        if getattr(size, name) % unit:
            raise ValueError(
                f"video.{name}={getattr(size, name)} does not divide by {unit} (latent"
                " compression x patch)"
            )


def check_tiles(height: tuple[int, int, float], width: tuple[int, int, float]) -> tuple[int, int]:
    """Return the sides of a tile in latents.

    Args:
        height, width: a tile's latents, its pixels, and the share of both that overlaps the next
            tile.

    Raises:
        ValueError: the library would cut the decoded tiles elsewhere than it cut the latents,
            which gives pictures of another size.
    """
    for name, (latents, pixels, overlap) in (("height", height), ("width", width)):
        if int(latents * (1 - overlap)) * pixels != (pixels - int(pixels * overlap)) * latents:
            raise ValueError(
                f"model.tiling=true: this autoencoder's tiles, {latents} latents or {pixels} pixels"
                f" in {name}, do not fit together: set it to false"
            )
    return height[0], width[0]
