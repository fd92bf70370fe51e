"""Read and write a family's LoRA files, in the layout that stock diffusers loads."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
from peft import LoraConfig
from safetensors import safe_open
from torch import Tensor, nn

from .scheduler import load_scheduler

LORA_FILE = "pytorch_lora_weights.safetensors"
"""The file of every family whose pipeline has a LoRA loader."""


@dataclass(frozen=True)
class LoraFiles:
    """A LoRA of a pipeline class: its file, its keys, and the code that loads it."""

    pipeline_class: str
    part: str = "transformer"
    """The component of the pipeline that the LoRA adapts."""
    prefix: str = "transformer"
    """What the keys begin with."""
    file: str = LORA_FILE
    load_code: str = 'pipe.load_lora_weights("path/to/this/folder")'
    """How a user gives the stock pipeline `pipe` a LoRA."""
    load_imports: tuple[str, ...] = ()
    """What has to be imported for `load_code`."""

    def save(self, folder: Path, layers: dict[str, Tensor], config: LoraConfig) -> None:
        """Write a LoRA to `folder`.

        Args:
            layers: tensors by peft's names.
            config: peft's settings, so that users know the scale.
        """
        metadata = {
            key: sorted(value) if isinstance(value, set) else value
            for key, value in config.to_dict().items()
        }
        getattr(diffusers, self.pipeline_class).save_lora_weights(
            folder,
            **{
                f"{self.part}_lora_layers": layers,
                f"{self.part}_lora_adapter_metadata": metadata,
            },
        )

    def read(self, folder: Path, network: nn.Module) -> tuple[dict[str, Tensor], float | None]:
        """Return a LoRA's layers by peft's names, and its alpha, None if it is the rank.

        Raises:
            ValueError: the folder has no LoRA, or one of another network than `network`.
        """
        self.check(folder, network)
        with safe_open(folder / self.file, framework="pt") as file:
            layers = {
                key.removeprefix(f"{self.prefix}."): file.get_tensor(key)
                for key in sorted(file.keys())
            }
            return layers, self.read_alpha(folder, file.metadata() or {})

    def read_alpha(self, folder: Path, metadata: dict[str, str]) -> float | None:
        """Return what a LoRA file's metadata says of its alpha, or None."""
        settings = json.loads(metadata.get(LORA_ADAPTER_METADATA_KEY, "{}"))
        return settings.get(f"{self.prefix}.lora_alpha")

    def load(self, pipeline: Any, folder: Path) -> None:
        """Give the stock pipeline a LoRA and the scheduler beside it.

        Raises:
            ValueError: the folder has no LoRA, or one of another model.
        """
        self.check(folder, getattr(pipeline, self.part))
        try:
            self.add(pipeline, folder)
        except (RuntimeError, OSError, ValueError) as error:
            raise ValueError(
                f"{folder}: no LoRA of this {self.pipeline_class} ({str(error).splitlines()[0]})"
            ) from error
        pipeline.scheduler = load_scheduler(folder)

    def add(self, pipeline: Any, folder: Path) -> None:
        """Give the stock pipeline a LoRA that fits, as `load_code` tells users to."""
        pipeline.load_lora_weights(folder)

    def check(self, folder: Path, network: nn.Module) -> None:
        """Check a LoRA's shapes; of layers that it does not know, diffusers only warns.

        Raises:
            ValueError: the folder has no LoRA, or one that does not fit `network`.
        """
        path = folder / self.file
        if not path.is_file():
            raise ValueError(
                f"{folder} has no {self.file}: give the lora/ folder of a finished run"
            )
        with safe_open(path, framework="pt") as tensors:
            shapes = {
                key: list(tensors.get_slice(key).get_shape()) for key in sorted(tensors.keys())
            }
        layers = dict(network.named_modules())
        for key, shape in shapes.items():
            name, _, factor = key.removeprefix(f"{self.prefix}.").partition(".lora_")
            layer = list(getattr(layers.get(name), "weight", torch.empty(0)).shape)
            if _fits(shape, layer, factor):
                continue
            there = (
                f"the layer there is {layer}"
                if layer != [0]
                else f"{type(network).__name__} has no such layer"
            )
            raise ValueError(
                f"{path}: {key} is {shape}, {there}: a LoRA fits only the model it was trained on,"
                " see the card beside it"
            )


def _fits(factor_shape: list[int], layer: list[int], factor: str) -> bool:
    """Whether a factor, "A..." [rank, in] or "B..." [out, rank], belongs to a layer [out, in]."""
    if not layer or layer == [0]:
        return False
    if factor.startswith("A"):
        return factor_shape[1:] == layer[1:]
    return factor_shape[:1] == layer[:1]
