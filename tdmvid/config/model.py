"""Settings of the teacher model and of the size of its samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .paths import PathText
from .ranges import ranges_of
from .rules import Rule, check_rules

QuantizeKind = Literal["none", "int8", "float8"]
"""Format of quantized weights, with one scale per output channel.

int8 has 255 even levels between -max and max of the channel. float8 is e4m3 (3 mantissa bits).
"""
MODEL_RULES = (
    *ranges_of("model"),
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
        lambda adapter: not (adapter.path or adapter.path_2),
        "path",
        "is empty: set it to a LoRA file, or to a folder that holds one",
    ),
    Rule(
        lambda adapter: adapter.scale == 0,
        "scale",
        "turns the LoRA off: remove it from model.adapters, or choose another scale",
    ),
    Rule(
        lambda adapter: adapter.scale_2 is not None and not adapter.path_2,
        "scale_2",
        "is the scale of path_2, which is empty: set path_2, or remove scale_2",
    ),
    Rule(
        lambda adapter: adapter.scale_2 == 0,
        "scale_2",
        "turns the LoRA of the second expert off: remove path_2, or choose another scale",
    ),
)


@dataclass(frozen=True)
class AdapterSettings:
    """Your own LoRA, used as part of the teacher."""

    path: PathText = ""
    """LoRA file, or folder that holds one. docs/export.md lists the supported layouts. If the
    teacher has two experts (Wan 2.2 A14B), the LoRA of the first, for high noise, as loaded with
    `pipe.load_lora_weights`; empty leaves that expert unchanged.
    """
    path_2: PathText = ""
    """LoRA of the second expert, for low noise, as loaded with `load_into_transformer_2=True`;
    empty leaves that expert unchanged. Only for teachers with two experts.
    """
    scale: float = 1.0
    """Scale of the LoRA, as in `pipe.set_adapters`: a factor on top of the scale in the file.
    -1000 to 1000, not 0.
    """
    scale_2: float | None = None
    """Scale of `path_2`. -1000 to 1000, not 0. `null` uses `scale`."""

    def __post_init__(self) -> None:
        check_rules(self, ADAPTER_RULES)

    @property
    def second_scale(self) -> float:
        """Scale of `path_2`."""
        return self.scale if self.scale_2 is None else self.scale_2


@dataclass(frozen=True)
class ModelConfig:
    """Teacher model."""

    path: PathText = ""
    """Local diffusers folder, hub id, or the name of an embedded teacher: `shapes`, or
    `shapes_i2v`, which starts from an image and is made by examples/shapes.
    """
    revision: str | None = None
    """Branch, tag or commit of a model on the hub. `null` uses the default branch."""
    variant: str | None = None
    """Variant of the weight files, e.g. `fp16`. `null` uses the files without a variant."""
    pipeline: str | None = None
    """Pipeline class to use instead of the one in the model's `model_index.json`, if the model can
    be used in both: `WanImageToVideoPipeline` for Wan 2.2 TI2V-5B with images. `null` uses its own.
    """
    adapters: tuple[AdapterSettings, ...] = ()
    """LoRAs of the teacher, frozen and not merged. Student and fake start from the base with these
    LoRAs, and train their own LoRA in addition.
    """
    dtype: str = "float32"
    """Data type of the frozen weights: `float32`, `bfloat16` or `float16`. Adapters and losses are
    always float32.
    """
    attention: Literal["auto", "sdpa", "float32", "cudnn", "flash", "xformers"] = "auto"
    """Attention kernel. `sdpa`: PyTorch's scaled_dot_product_attention with its own choice.
    `float32`: the same in float32, which is faster on a CPU (benchmarks/NOTES.md). `cudnn`,
    `flash`, `xformers`: these kernels, on a GPU. `auto`: on a GPU, cuDNN from Hopper on, otherwise
    FlashAttention, then xformers, if the model family and the machine support them. The choice is
    logged at the start of a run.
    """
    quantize: QuantizeKind = "none"
    """8-bit format of the frozen weights in training: `none`, `int8` or `float8`; see
    backbones/quantize.py. Exports and evaluations load the unquantized base.
    """
    idle_expert: Literal["device", "host"] = "device"
    """Location of the frozen weights of the expert that is not in use, for a teacher with two
    experts in one process. `host` offloads them to CPU memory; a call of that expert waits until
    its weights are on the device.
    """
    guidance: float | None = None
    """Guidance scale that the network itself reads, for a teacher whose guidance is an embedding
    (FLUX.1 dev), 0 to 1000. Student and fake read the same scale. `null` uses the default of the
    stock call. `objective.cfg` is guidance with a second call, in addition; 1 is none.
    """
    tiling: bool = False
    """Run the autoencoder in tiles that are blended where they overlap. Needs less memory for large
    frames, but is slower.
    """

    def __post_init__(self) -> None:
        check_rules(self, MODEL_RULES)


@dataclass(frozen=True)
class ClipSize:
    """Size of the samples."""

    frames: int = 1
    """Frames per sample, 1 to 10,000. 1 is an image."""
    height: int = 512
    """Height in pixels, 1 to 16,384."""
    width: int = 512
    """Width in pixels, 1 to 16,384."""
    fps: int = 8
    """Frames per second of the video files, 1 to 1000."""

    def __post_init__(self) -> None:
        check_rules(self, SIZE_RULES)
