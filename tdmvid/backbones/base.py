"""Interface of a model family: its network, text encoders and autoencoder.

Each family is one file in this folder. `registry.py` finds it by its diffusers pipeline class.

Shapes: B batch, C channels, F frames, H W height and width. Latents are written [B, ...] because
each family has its own layout, see `Backbone.latent_shape`. A time t is in [0, 1]; 0 is clean data.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from ..config import ClipSize, ModelConfig
from ..diffusion.denoiser import Cond
from ..diffusion.grid import TimeGrid
from ..diffusion.guidance import extrapolate
from ..diffusion.process import Process
from .experts import Experts
from .lora_files import LoraFiles
from .spec import FamilySpec
from .stock import StockPipeline
from .taps import Tap
from .text_limit import CutPrompts

PIXELS_AT_ONCE = 2**18
"""Number of pixels, those of an image of 512 x 512, up to which samples are decoded together."""

JOINT_ATTENTION = (
    "to_q",
    "to_k",
    "to_v",
    "to_out.0",
    "add_q_proj",
    "add_k_proj",
    "add_v_proj",
    "to_add_out",
)
"""Attention projections of blocks that attend over image and text tokens together."""


class TokenSharing(Protocol):
    """Interface that a model needs to split the tokens of one sample over ranks.

    `parallel.sequence.SequenceGroup` implements it.

    Shapes: B batch, L tokens of the whole sequence, n tokens per rank, H heads, D channels.

    Attributes:
        size: Number of ranks that share one sequence.
        rank: This process's rank in that group.
    """

    size: int
    rank: int

    def share(self, length: int) -> int:
        """Return the number of tokens per rank, padding included, for a sequence of `length`."""
        ...

    def shard(self, x: Tensor) -> Tensor:
        """Return this rank's tokens [B, n, D] of x [B, L, D]."""
        ...

    def gather(self, x: Tensor, length: int) -> Tensor:
        """Return all tokens [B, length, D] from every rank's x [B, n, D]."""
        ...

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        length: int,
        inner: Callable[[Tensor, Tensor, Tensor], Tensor],
    ) -> Tensor:
        """Compute exact attention over the tokens of all ranks.

        Args:
            query, key, value: This rank's tokens, [B, n, H, D].
            length: Number of tokens in the whole sequence.
            inner: Computes attention of whole sequences, [B, length, h, D] each, for some of the
                heads.

        Returns:
            The output for this rank's tokens, [B, n, H, D].
        """
        ...


class NetworkDenoiser:
    """A family's network wrapped as a Denoiser, i.e. a function (x_t, t, cond) -> x0.

    Args:
        backbone: The family.
        network: The family's module, or an object with the same call signature, such as an engine.
    """

    def __init__(self, backbone: Backbone, network: Any):
        self.backbone, self.network, self.process = backbone, network, backbone.process
        self.evaluated = 0
        """Number of samples evaluated so far."""

    def __call__(self, x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """Return the predicted x0, [B, ...] float32, for x_t [B, ...] at times t [B]."""
        self.evaluated += len(x_t)
        return self.backbone.predict_x0(self.network, x_t, t, cond)


class Backbone(ABC):
    """A teacher's network behind the Denoiser interface, with its text encoders and autoencoder.

    Planning, LoRA files and the stock pipeline are separate objects: `spec`, `lora` and `stock`.
    """

    pipeline_class: ClassVar[str]
    """The diffusers pipeline class named in `model_index.json`."""
    spec: ClassVar[FamilySpec]
    """Describes the family's components from configs alone, without weights."""
    stock_class: ClassVar[type[StockPipeline]]
    """Class of `stock`."""
    lora: ClassVar[LoraFiles]
    """Names and layout of the family's LoRA files."""
    lora_targets: ClassVar[tuple[str, ...]] = ("to_q", "to_k", "to_v", "to_out.0")
    """Names of the modules that a LoRA adapts by default: the attention projections."""
    kernels: ClassVar[tuple[str, ...]] = ("sdpa", "xformers")
    """Values of `model.attention` that the family supports."""
    dynamic_guidance: ClassVar[bool] = False
    """Whether the stock pipeline accepts `use_dynamic_cfg`."""
    also_opens: ClassVar[tuple[str, ...]] = ()
    """Other pipeline classes whose folders the family loads if `model.pipeline` names its own."""
    takes_images: ClassVar[bool] = False
    """Whether the family is image to video: each sample is conditioned on a given first frame."""
    embedded_guidance: ClassVar[float | None] = None
    """Guidance scale that the network reads if `model.guidance` names none; None if it reads none.
    """
    combine = staticmethod(extrapolate)
    """Combines the two branches of guidance as the stock pipeline does."""
    folder: Path
    config: ModelConfig
    size: ClipSize
    device: torch.device
    process: Process
    text_lora: dict[str, Tensor]
    """LoRA of the text encoders, applied when prompts are encoded: tensors at scale 1, by the keys
    of diffusers' files. Empty for none.
    """
    network: Any
    """The teacher's module. If the teacher has two experts, an `Experts` module that holds both."""

    @abstractmethod
    def __init__(
        self, folder: Path, config: ModelConfig, size: ClipSize, device: torch.device | str
    ): ...

    @property
    def lora_files(self) -> list[LoraFiles]:
        """LoRA files of a student: one, or two if the teacher has two experts."""
        if isinstance(self.network, Experts):
            return list(self.lora.of_experts(self.network.split.names).values())
        return [self.lora]

    @property
    @abstractmethod
    def stock(self) -> StockPipeline:
        """The stock diffusers pipeline of this teacher."""

    @abstractmethod
    def predict_x0(self, network: Any, x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """Call a network and convert its prediction to x0.

        Args:
            network: `self.network`, or an object with the same call signature.
            x_t: Noisy latents, [B, ...].
            t: Times, [B].
            cond: Conditions of the samples.

        Returns:
            The predicted clean latents x0, [B, ...] float32.
        """

    def denoiser(self, network: Any) -> NetworkDenoiser:
        """Wrap a network of this family (or an engine around it) as a Denoiser."""
        return NetworkDenoiser(self, network)

    @property
    def guidance(self) -> float | None:
        """Guidance scale that the network reads; None if it reads none."""
        given = self.config.guidance
        return self.embedded_guidance if given is None else given

    @abstractmethod
    def latent_shape(self) -> tuple[int, ...]:
        """Return the shape of one latent sample, without the batch dimension."""

    @abstractmethod
    def fresh_network(self) -> nn.Module:
        """Load the network from the model folder, unsharded on every rank."""

    @staticmethod
    def fuse(network: Any) -> None:
        """Replace modules of `network` in place by equivalents that make fewer passes over memory.

        Does nothing if the family has none. Call it before any hooks are registered.
        """
        assert isinstance(network, nn.Module)

    @staticmethod
    def share_tokens(network: Any, sharing: TokenSharing) -> None:
        """Make every later call of `network` split its tokens over the ranks of `sharing`.

        Raises:
            ValueError: The family does not support sequence parallelism.
        """
        raise ValueError(
            f"parallel.sequence={sharing.size}: {type(network).__name__} does not support sequence"
            " parallelism yet, use 1"
        )

    @staticmethod
    def set_attention(network: Any, kernel: str) -> None:
        """Select the attention kernel of `network`. Call it after `share_tokens`.

        Args:
            network: A network of this family, modified in place.
            kernel: A value of `model.attention` other than "auto".

        Raises:
            ValueError: The family does not support the kernel.
        """
        if kernel == "xformers":
            network.enable_xformers_memory_efficient_attention()
        elif kernel != "sdpa":
            raise ValueError(
                f"model.attention={kernel!r}: {type(network).__name__} does not support this"
                " kernel, use 'auto' or 'sdpa'"
            )

    @staticmethod
    @abstractmethod
    def discriminator_trunk(network: Any) -> list[Tap]:
        """Drop the second half of a network's blocks, in place.

        Returns:
            The blocks of the remaining half whose outputs serve as features.
        """

    @abstractmethod
    def encode_prompts(self, prompts: list[str]) -> Cond:
        """Encode prompts as the stock pipeline does. Loads the text encoders on first use.

        Args:
            prompts: B prompts.

        Returns:
            The conditions, B rows each, named as the arguments of the stock pipeline.
        """

    def encode_images(self, images: Tensor) -> Cond:
        """Encode first frames as the stock pipeline does. Loads the encoders on first use.

        Args:
            images: [B, 3, H, W] in [-1, 1], with the clip's height and width.

        Returns:
            Conditions to add to those of `encode_prompts`, for both branches of guidance.

        Raises:
            ValueError: The family takes no images.
        """
        raise ValueError(f"{self.pipeline_class} takes no images")

    def release_image(self) -> None:
        """Free the memory of the image encoders."""
        self.release_vae()

    def image_fingerprint(self) -> str:
        """Return a digest of the image encoders and the clip size: the key of cached conditions.

        Raises:
            ValueError: The family takes no images.
        """
        raise ValueError(f"{self.pipeline_class} takes no images")

    def encode_items(self, prompts: list[str], images: Tensor | None) -> Cond:
        """Encode prompts and, if the family takes images, the image of each.

        Args:
            prompts: B prompts.
            images: First frames [B, 3, H, W] in [-1, 1]; ignored by families without images.

        Returns:
            The conditions of the samples, B rows each.
        """
        cond = self.encode_prompts(prompts)
        if not self.takes_images:
            return cond
        assert images is not None, "this family takes images"
        return cond.replaced_by(self.encode_images(images))

    def blank_images(self, count: int) -> Tensor:
        """Return `count` grey images, [count, 3, H, W], for places where an image is required."""
        return torch.zeros(count, 3, self.size.height, self.size.width)

    def find_cut_prompts(self, prompts: Sequence[str]) -> CutPrompts:
        """Return which prompts exceed the text encoder's token limit and are truncated."""
        return CutPrompts(0)

    @abstractmethod
    def release_text(self) -> None:
        """Free the memory of the text encoders. They are loaded again on next use."""

    @abstractmethod
    def text_fingerprint(self) -> str:
        """Return a digest of the text encoders and their settings: the key of cached embeddings."""

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """Decode latents to videos. Loads the autoencoder on first use.

        Args:
            latents: [B, ...].

        Returns:
            Videos [B, 3, F, H, W] in [-1, 1]; F is 1 for images.
        """

    def leading(self, latents: Tensor, frames: int) -> Tensor:
        """Return the part of latents from which the first frames are decoded.

        Autoencoders of videos are causal: a frame does not depend on later ones.

        Args:
            latents: [B, ...].
            frames: Number of frames, 1 or 8n + 1.

        Returns:
            Latents that `decode` takes, and decodes to at least these frames. Those of images are
            returned as they are.
        """
        return latents

    @classmethod
    def samples_at_once(cls, size: ClipSize, *, tiling: bool) -> int:
        """Return how many samples the autoencoder takes together: several small ones, untiled."""
        return 1 if tiling else max(1, PIXELS_AT_ONCE // (size.frames * size.height * size.width))

    @property
    def at_once(self) -> int:
        """Number of samples that the autoencoder takes together."""
        return self.samples_at_once(self.size, tiling=self.config.tiling)

    @abstractmethod
    def encode(self, videos: Tensor) -> Tensor:
        """Encode videos to the latents that `decode` takes.

        Args:
            videos: [B, 3, F, H, W] in [-1, 1].

        Returns:
            The mean of the autoencoder's distribution, [B, ...] in the network's dtype.
        """

    @abstractmethod
    def release_vae(self) -> None:
        """Free the autoencoder's memory. It is loaded again on next use."""

    @abstractmethod
    def video_fingerprint(self) -> str:
        """Return a digest of the autoencoder and the clip size: the key of cached latents."""

    @abstractmethod
    def student_scheduler(self, grid: TimeGrid) -> Any:
        """Return a diffusers scheduler with which the stock pipeline steps over exactly `grid`."""
