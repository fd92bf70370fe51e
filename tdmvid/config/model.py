"""Which teacher, and what it generates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .ranges import ranges_of
from .rules import Rule, check_rules

QuantizeKind = Literal["none", "int8", "float8"]
"""int8: 255 even levels between an output channel's -max and max; float8: e4m3 (3 bits of
mantissa), scaled to it.
"""
MODEL_RULES = (
    Rule(
        lambda model: model.dtype not in ("float32", "bfloat16", "float16"),
        "model.dtype",
        "is not supported: choose float32, bfloat16 or float16",
    ),
)
SIZE_RULES = ranges_of("video")
ADAPTER_RULES = (
    *ranges_of("adapter"),
    Rule(
        lambda adapter: not adapter.path,
        "path",
        "names no LoRA: give a file or a folder that holds one",
    ),
    Rule(
        lambda adapter: adapter.scale == 0,
        "scale",
        "switches the LoRA off: leave it out of model.adapters, or give another scale",
    ),
)


@dataclass(frozen=True)
class AdapterSettings:
    """A LoRA of the user's that is part of the teacher."""

    path: str = ""
    """A file, or a folder that holds one; of any layout that is read, see docs/export.md."""
    scale: float = 1.0
    """As of `pipe.set_adapters`: a factor of what the file itself states."""

    def __post_init__(self) -> None:
        check_rules(self, ADAPTER_RULES)


@dataclass(frozen=True)
class ModelConfig:
    """Which teacher: a local diffusers folder or a hub id."""

    path: str = ""
    """A diffusers folder, a hub id, or the name of the embedded teacher, `shapes`."""
    revision: str | None = None
    """Branch, tag or commit of a hub id."""
    variant: str | None = None
    """Variant of the weight files, e.g. fp16."""
    adapters: tuple[AdapterSettings, ...] = ()
    """LoRAs that the teacher has, frozen and not merged: student and fake start from the base with
    them, and train their own LoRA beside them.
    """
    dtype: str = "float32"
    """Of the frozen weights: float32, bfloat16 or float16. Adapters and losses are float32."""
    attention: Literal["auto", "sdpa", "float32", "cudnn", "flash", "xformers"] = "auto"
    """The kernel: PyTorch's scaled_dot_product_attention by its own choice (sdpa), the same in
    float32 (faster on a CPU, see benchmarks/NOTES.md), or on a GPU cuDNN's, FlashAttention or
    xformers'. auto: on a GPU cuDNN's from Hopper on, else FlashAttention, then xformers', as far as
    the family and the machine have them; the start of a run names it.
    """
    quantize: QuantizeKind = "none"
    """Of the frozen weights in training: keep a run's base in eight bits a weight, see
    backbones/quantize.py. Exports and evaluations load the unquantized base.
    """
    idle_expert: Literal["device", "host"] = "device"
    """Of a teacher of two experts in one process: where the frozen weights of the one that is not
    called are. host: calls of the other side wait until its weights are on the device.
    """
    tiling: bool = False
    """Run the autoencoder tile by tile, blended where tiles overlap: less memory for large
    pictures, but slower.
    """

    def __post_init__(self) -> None:
        check_rules(self, MODEL_RULES)


@dataclass(frozen=True)
class ClipSize:
    """What is generated: frames (1 for an image) of height x width pixels, at fps frames per
    second.
    """

    frames: int = 1
    """Frames of a video; 1 for an image."""
    height: int = 512
    """Height in pixels."""
    width: int = 512
    """Width in pixels."""
    fps: int = 8
    """Frames per second of the files that are written."""

    def __post_init__(self) -> None:
        check_rules(self, SIZE_RULES)
