"""The contract of a model family: one network, its text and its autoencoder, in the method's terms.

One family is one file in this folder; registry.py finds it.
"""

from __future__ import annotations

import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from ..diffusion.denoiser import Cond
from ..diffusion.grid import TimeGrid
from ..diffusion.process import Process
from .quantize import Kind

if TYPE_CHECKING:
    from .spec import FamilySpec


@dataclass(frozen=True)
class ModelConfig:
    """Which teacher: a local diffusers folder or a hub id."""

    path: str = ""
    revision: str | None = None
    variant: str | None = None
    dtype: str = "float32"
    """Of the frozen weights: float32, bfloat16 or float16. Adapters and losses are float32."""
    attention: Literal["sdpa", "float32", "xformers"] = "sdpa"
    """The kernel: PyTorch's scaled_dot_product_attention, the same in float32 (quicker on a CPU,
    see benchmarks/NOTES.md), or xformers' on a GPU.
    """
    quantize: Kind = "none"
    """Of the frozen weights in training, see quantize.py: a run's base in eight bits a weight.
    Exports and evaluations load the whole one.
    """
    tiling: bool = False
    """The autoencoder works tile by tile, blended where they overlap: less memory for large
    pictures, at the price of time.
    """

    def __post_init__(self):
        if self.dtype not in ("float32", "bfloat16", "float16"):
            raise ValueError(f"model.dtype={self.dtype!r}: choose float32, bfloat16 or float16")

    @property
    def torch_dtype(self) -> torch.dtype:
        return getattr(torch, self.dtype)


@dataclass(frozen=True)
class ClipSize:
    """What is generated: frames (1 for an image) of height x width pixels, at fps frames per
    second.
    """

    frames: int = 1
    height: int = 512
    width: int = 512
    fps: int = 8

    def __post_init__(self):
        if min(self.frames, self.height, self.width, self.fps) < 1:
            raise ValueError(f"video={self}: frames, height, width and fps are at least 1")


class Tap(NamedTuple):
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
    """A network of a family behind the Denoiser contract; `network` is anything called like the
    module.
    """

    def __init__(self, backbone: Backbone, network):
        self.backbone, self.network, self.process = backbone, network, backbone.process
        self.evaluated = 0
        """Samples that went through the network so far."""

    def __call__(self, x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        self.evaluated += len(x_t)
        return self.backbone.predict_x0(self.network, x_t, t, cond)


class Backbone(ABC):
    """A teacher and all that its family needs: time units, x0, prompts, decoding, LoRA targets."""

    pipeline_class: ClassVar[str]
    """The diffusers pipeline class of `model_index.json`."""
    spec: ClassVar[FamilySpec]
    """The family's parts from configs alone."""
    lora_targets: ClassVar[tuple[str, ...]]
    """Module names that a LoRA adapts by default."""
    lora_file: ClassVar[str] = "pytorch_lora_weights.safetensors"
    lora_prefix: ClassVar[str] = "transformer"
    """What the keys of a LoRA file begin with."""
    load_imports: ClassVar[tuple[str, ...]] = ()
    load_code: ClassVar[str] = 'pipe.load_lora_weights("path/to/this/folder")'
    """How a user gives the stock pipeline `pipe` a LoRA, and what has to be imported for it."""
    output: ClassVar[str] = "frames"
    """The field of a stock pipeline's result."""
    process: Process
    network: nn.Module

    @abstractmethod
    def __init__(
        self, folder: Path, config: ModelConfig, size: ClipSize, device: torch.device | str
    ): ...

    @abstractmethod
    def predict_x0(self, network, x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """Call the network and convert what it predicts: [B, ...] -> [B, ...], float32."""

    @abstractmethod
    def latent_shape(self) -> tuple[int, ...]:
        """Shape of one latent sample, without the batch."""

    @abstractmethod
    def fresh_network(self) -> nn.Module:
        """The network as it lies in the folder, whole on every rank, whatever became of `network`."""

    @staticmethod
    def share_tokens(network: nn.Module, sharing: TokenSharing) -> None:
        """Spread the tokens of every later call of `network` over ranks; ValueError where the
        family cannot.
        """
        raise ValueError(
            f"parallel.sequence={sharing.size}: {type(network).__name__} cannot share its tokens"
            " yet, use 1"
        )

    @staticmethod
    def use_xformers(network: nn.Module) -> None:
        """Make `network` attend by xformers' kernel; called behind `share_tokens`."""
        network.enable_xformers_memory_efficient_attention()

    @staticmethod
    def use_float32_attention(network: nn.Module) -> None:
        """Make `network` attend in float32, whatever its dtype; ValueError where the family cannot.
        Called behind `share_tokens`.
        """
        raise ValueError(
            f"model.attention='float32': {type(network).__name__} attends in its own dtype only,"
            " use 'sdpa'"
        )

    @abstractmethod
    def encode_prompts(self, prompts: list[str]) -> Cond:
        """Text embeddings as the stock pipeline makes them; loads the text encoder on first use."""

    @abstractmethod
    def release_text(self) -> None:
        """Let go of the text encoder's memory."""

    @abstractmethod
    def release_vae(self) -> None:
        """Let go of the autoencoder's memory; it is loaded again when it is needed."""

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """Latents to videos [B, 3, F, H, W] in [-1, 1]; loads the autoencoder on first use."""

    @abstractmethod
    def encode(self, videos: Tensor) -> Tensor:
        """Videos [B, 3, F, H, W] in [-1, 1] to the latents that `decode` takes, in the network's
        dtype; the mean of the autoencoder's law.
        """

    @abstractmethod
    def video_fingerprint(self) -> str:
        """Identifies the autoencoder and the size of a clip: the key of cached latents."""

    @staticmethod
    @abstractmethod
    def halve(network: nn.Module) -> list[Tap]:
        """Drop the second half of a network's blocks, and say where features of what stays can be
        read: for a discriminator.
        """

    @abstractmethod
    def text_fingerprint(self) -> str:
        """Identifies the text encoder and how it is called: the key of cached embeddings."""

    @abstractmethod
    def student_scheduler(self, grid: TimeGrid):
        """A diffusers scheduler that makes the stock pipeline step over exactly this grid."""

    @abstractmethod
    def stock_pipeline(self, network: nn.Module | None = None):
        """The stock diffusers pipeline of this teacher, without text encoder and autoencoder;
        around `network`, or one more that it loads.
        """

    @abstractmethod
    def whole_pipeline(self):
        """The stock pipeline with all its parts, around `network`."""

    @abstractmethod
    def save_lora(self, folder: Path, layers: dict[str, Tensor], config) -> None:
        """Write `lora_file`: `layers` by peft's names, and peft's LoraConfig, so that users know
        its scale.
        """

    @classmethod
    @abstractmethod
    def read_lora(cls, folder: Path, network: nn.Module) -> tuple[dict[str, Tensor], float | None]:
        """The layers of a LoRA by peft's names, and its alpha, None if it is the rank; ValueError
        if it is not of a network like this one.
        """

    @abstractmethod
    def load_lora(self, pipeline, folder: Path) -> None:
        """Give the stock pipeline a LoRA and the scheduler beside it; ValueError if it is of
        another model.
        """

    @abstractmethod
    def stock_latents(
        self,
        pipeline,
        z: Tensor,
        cond: Cond,
        *,
        steps: int,
        cfg: float = 1.0,
        null: Cond | None = None,
    ) -> Tensor:
        """Final latents of the stock pipeline from noise z: [B, ...]; cfg = 1 is no guidance."""

    @abstractmethod
    def stock_videos(self, pipeline, prompts: list[str], *, steps: int, cfg: float):
        """What a user gets from one call of a whole pipeline: its own kind of videos or images, one
        a prompt.
        """

    @abstractmethod
    def stock_call(self) -> str:
        """The arguments of a stock call beyond prompt, steps and guidance, as Python source."""

    def denoiser(self, network) -> NetworkDenoiser:
        """A network of this family (or an engine around it) as a Denoiser."""
        return NetworkDenoiser(self, network)


LORA_FILE = Backbone.lora_file


def check_attention(kernel: str, device: torch.device) -> None:
    """ValueError if this machine has not what the attention kernel needs."""
    if kernel == "xformers" and (device.type != "cuda" or not importlib.util.find_spec("xformers")):
        raise ValueError(
            f"model.attention='xformers' needs a CUDA device (this is {device.type}) and the"
            " package: pip install -e '.[xformers]' in the clone, or choose 'sdpa'"
        )


def half_of(
    blocks: nn.ModuleList, width: int, *, index: int = 0
) -> tuple[nn.ModuleList, list[Tap]]:
    """The first half of a transformer's blocks, and taps behind half of those and behind all."""
    kept = blocks[: -(-len(blocks) // 2)]
    ends = sorted({-(-len(kept) // 2), len(kept)})
    return kept, [Tap(kept[end - 1], width, index) for end in ends]
