"""The contract of a model family: one network, its text and its autoencoder, in the method's terms.

One family is one file in this folder; registry.py finds it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from ..config import ClipSize, ModelConfig
from ..diffusion.denoiser import Cond
from ..diffusion.grid import TimeGrid
from ..diffusion.process import Process
from .experts import Experts
from .lora_files import LoraFiles
from .spec import FamilySpec
from .stock import StockPipeline
from .text_limit import CutPrompts


@dataclass(frozen=True)
class Tap:
    """A block whose output is a feature of the sample: [B, tokens, width] or [B, width, H, W]."""

    block: nn.Module
    width: int
    index: int = 0
    """Which of its outputs, where it has several."""


class TokenSharing(Protocol):
    """How the tokens of one sample lie on several ranks: `parallel.sequence.SequenceGroup`, seen
    from a model.
    """

    size: int
    rank: int

    def share(self, length: int) -> int: ...
    def shard(self, x: Tensor) -> Tensor: ...
    def gather(self, x: Tensor, length: int) -> Tensor: ...
    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        length: int,
        inner: Callable[[Tensor, Tensor, Tensor], Tensor],
    ) -> Tensor: ...


class NetworkDenoiser:
    """A network of a family behind the Denoiser contract.

    Args:
        network: the family's module, or what is called like it, such as an engine around it.
    """

    def __init__(self, backbone: Backbone, network: Any):
        self.backbone, self.network, self.process = backbone, network, backbone.process
        self.evaluated = 0
        """Samples that went through the network so far."""

    def __call__(self, x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        self.evaluated += len(x_t)
        return self.backbone.predict_x0(self.network, x_t, t, cond)


class Backbone(ABC):
    """A teacher's network behind the method's contract, with its text encoders and autoencoder.

    Planning, LoRA files and the stock pipeline are separate: `spec`, `lora` and `stock`.
    """

    pipeline_class: ClassVar[str]
    """The diffusers pipeline class of `model_index.json`."""
    spec: ClassVar[FamilySpec]
    """The family's parts, from configs alone."""
    lora: ClassVar[LoraFiles]
    """The family's LoRA files."""
    lora_targets: ClassVar[tuple[str, ...]] = ("to_q", "to_k", "to_v", "to_out.0")
    """Module names that a LoRA adapts by default: attention."""
    kernels: ClassVar[tuple[str, ...]] = ("sdpa", "xformers")
    """What `model.attention` can name."""
    dynamic_guidance: ClassVar[bool] = False
    """Whether the stock call has `use_dynamic_cfg`."""
    takes_images: ClassVar[bool] = False
    """Whether a video starts from a given image, which is a part of its condition."""
    folder: Path
    config: ModelConfig
    size: ClipSize
    device: torch.device
    process: Process
    network: Any
    """The teacher's module; a family names its class. Of two experts it is both, see experts.py."""

    @abstractmethod
    def __init__(
        self, folder: Path, config: ModelConfig, size: ClipSize, device: torch.device | str
    ): ...

    @property
    def lora_files(self) -> list[LoraFiles]:
        """The files of a student: one, or one for each of two experts."""
        if isinstance(self.network, Experts):
            return list(self.lora.of_experts(self.network.split.names).values())
        return [self.lora]

    @property
    @abstractmethod
    def stock(self) -> StockPipeline:
        """The stock diffusers pipeline of this teacher."""

    @abstractmethod
    def predict_x0(self, network: Any, x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """Call a network and convert what it predicts to x0, [B, ...] float32.

        Args:
            network: `self.network`, or what is called like it.
            x_t, t: [B, ...] and [B].
        """

    def denoiser(self, network: Any) -> NetworkDenoiser:
        """Return a network of this family (or an engine around it) as a Denoiser."""
        return NetworkDenoiser(self, network)

    @abstractmethod
    def latent_shape(self) -> tuple[int, ...]:
        """Return the shape of one latent sample, without the batch."""

    @abstractmethod
    def fresh_network(self) -> nn.Module:
        """Load the network as it lies in the folder, whole on every rank."""

    @staticmethod
    def fuse(network: Any) -> None:
        """Replace modules of `network` by ones that compute the same with fewer passes over memory,
        where the family has any; call it before anything is hooked on.
        """
        assert isinstance(network, nn.Module)

    @staticmethod
    def share_tokens(network: Any, sharing: TokenSharing) -> None:
        """Spread the tokens of every later call of `network` over ranks.

        Raises:
            ValueError: the family cannot share its tokens.
        """
        raise ValueError(
            f"parallel.sequence={sharing.size}: {type(network).__name__} cannot share its tokens"
            " yet, use 1"
        )

    @staticmethod
    def set_attention(network: Any, kernel: str) -> None:
        """Make `network` attend by a kernel of `model.attention`; call it after `share_tokens`.

        Raises:
            ValueError: the family does not have the kernel.
        """
        if kernel == "xformers":
            network.enable_xformers_memory_efficient_attention()
        elif kernel != "sdpa":
            raise ValueError(
                f"model.attention={kernel!r}: {type(network).__name__} attends in its own dtype"
                " and by PyTorch's own choice of a kernel only, use 'auto' or 'sdpa'"
            )

    @staticmethod
    @abstractmethod
    def discriminator_trunk(network: Any) -> list[Tap]:
        """Drop the second half of a network's blocks, in place.

        Returns:
            Where features of what stays can be read.
        """

    @abstractmethod
    def encode_prompts(self, prompts: list[str]) -> Cond:
        """Encode prompts as the stock pipeline does; loads the text encoder on first use."""

    def encode_images(self, images: Tensor) -> Cond:
        """Encode given first frames as the stock pipeline does; loads what it needs on first use.

        Args:
            images: [B, 3, H, W] in [-1, 1], of the clip's height and width.

        Returns:
            What stands beside the conditions of `encode_prompts`, for both branches of guidance.
        """
        raise ValueError(f"{self.pipeline_class} takes no images")

    def release_image(self) -> None:
        """Free the memory of what encodes images."""
        self.release_vae()

    def image_fingerprint(self) -> str:
        """Identify what encodes images, and for which clip: the key of cached conditions."""
        raise ValueError(f"{self.pipeline_class} takes no images")

    def encode_items(self, prompts: list[str], images: Tensor | None) -> Cond:
        """Encode prompts, each with its image where the family takes images."""
        cond = self.encode_prompts(prompts)
        if not self.takes_images:
            return cond
        assert images is not None, "this family takes images"
        return cond.replaced_by(self.encode_images(images))

    def blank_images(self, count: int) -> Tensor:
        """Return images that tell nothing, where there must be some: grey, [B, 3, H, W]."""
        return torch.zeros(count, 3, self.size.height, self.size.width)

    def find_cut_prompts(self, prompts: Sequence[str]) -> CutPrompts:
        """Find the prompts whose ends the text encoder does not read."""
        return CutPrompts(0)

    @abstractmethod
    def release_text(self) -> None:
        """Free the text encoder's memory."""

    @abstractmethod
    def text_fingerprint(self) -> str:
        """Identify the text encoder and how it is called: the key of cached embeddings."""

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """Decode latents [B, ...] to videos [B, 3, F, H, W] in [-1, 1].

        Loads the autoencoder on first use.
        """

    @abstractmethod
    def encode(self, videos: Tensor) -> Tensor:
        """Encode videos [B, 3, F, H, W] in [-1, 1] to the latents that `decode` takes.

        Returns:
            The mean of the autoencoder's distribution, [B, ...] in the network's dtype.
        """

    @abstractmethod
    def release_vae(self) -> None:
        """Free the autoencoder's memory; it is loaded again when it is needed."""

    @abstractmethod
    def video_fingerprint(self) -> str:
        """Identify the autoencoder and the size of a clip: the key of cached latents."""

    @abstractmethod
    def student_scheduler(self, grid: TimeGrid) -> Any:
        """Return a diffusers scheduler for the stock pipeline that steps over exactly this grid."""


def trunk_of(
    blocks: nn.ModuleList, width: int, *, index: int = 0
) -> tuple[nn.ModuleList, list[Tap]]:
    """Return the first half of a transformer's blocks, with taps in its middle and at its end."""
    kept = blocks[: -(-len(blocks) // 2)]
    ends = sorted({-(-len(kept) // 2), len(kept)})
    return kept, [Tap(kept[end - 1], width, index) for end in ends]
