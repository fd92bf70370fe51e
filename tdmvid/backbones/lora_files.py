"""A family's own LoRA files, in the layout that stock diffusers loads: their names and their code.

Files of any layout are read by adapters/read.py.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import diffusers
from peft import LoraConfig
from torch import Tensor

from ..data.files import sort_metadata
from .experts import Split

LORA_FILE = "pytorch_lora_weights.safetensors"
"""The file of every family whose pipeline has a LoRA loader."""
SECOND_FILE = "pytorch_lora_weights_2.safetensors"
"""Beside it, of a second expert."""


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
    second: str = ""
    """The component that it adapts where that is the second of two experts; its keys name the
    first, as the stock loader wants them.
    """

    @property
    def component(self) -> str:
        """The component of the pipeline that the LoRA adapts."""
        return self.second or self.part

    def of_experts(self, names: tuple[str, ...]) -> dict[str, LoraFiles]:
        """Return the files of a pair's LoRAs, by the components that they adapt."""
        first, second = names
        file = SECOND_FILE
        code = (
            f'pipe.load_lora_weights("path/to/this/folder", weight_name="{file}",'
            " load_into_transformer_2=True)"
        )
        return {first: self, second: replace(self, second=second, file=file, load_code=code)}

    def of_pipeline(self, pipeline: Any) -> list[LoraFiles]:
        """Return the files of the LoRAs of a stock pipeline, one for each of its experts."""
        if getattr(pipeline, Split.names[1], None) is None:
            return [self]
        return list(self.of_experts(Split.names).values())

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
            **({"weight_name": self.file} if self.second else {}),
        )
        sort_metadata(folder / self.file)

    def add(self, pipeline: Any, folder: Path, name: str | None = None) -> None:
        """Give the stock pipeline a LoRA that fits, as `load_code` tells users to.

        Args:
            name: of the adapter, where there are several.
        """
        options: dict[str, Any] = {"adapter_name": name} if name else {}
        if self.second:
            options |= {"weight_name": self.file, "load_into_transformer_2": True}
        pipeline.load_lora_weights(folder, **options)

    def use(self, pipeline: Any, scales: Mapping[str, float]) -> None:
        """Switch on adapters that were added by their names, each at its scale."""
        pipeline.set_adapters(list(scales), list(scales.values()))

    def stack_code(self, adapters: Sequence[tuple[str, float]]) -> list[str]:
        """Return the lines that give the stock pipeline `pipe` LoRAs and, last, a student beside
        them.

        Args:
            adapters: folder and scale of each.
        """
        names = [f"adapter_{i}" for i in range(len(adapters))]
        return [
            *(
                f"pipe.load_lora_weights({json.dumps(path, ensure_ascii=False)},"
                f' adapter_name="{name}")'
                for name, (path, _) in zip(names, adapters, strict=True)
            ),
            'pipe.load_lora_weights("path/to/this/folder", adapter_name="student")',
            f"pipe.set_adapters({json.dumps([*names, 'student'])},"
            f" {[*(scale for _, scale in adapters), 1.0]})",
        ]
