"""Names and loading code of a family's LoRA files, in the layout that stock diffusers loads.

LoRA files in any other layout are read by adapters/read.py.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import diffusers
from peft import LoraConfig
from torch import Tensor

from ..data.files import sort_metadata
from .experts import Split

LORA_FILE = "pytorch_lora_weights.safetensors"
"""File name for every family whose pipeline has a LoRA loader."""
SECOND_FILE = "pytorch_lora_weights_2.safetensors"
"""File name of the second expert's LoRA, in the same folder."""


@dataclass(frozen=True)
class LoraFiles:
    """The LoRA files of a pipeline class: file name, key prefix, and the code that loads them."""

    pipeline_class: str
    part: str = "transformer"
    """Component of the pipeline that the LoRA adapts."""
    prefix: str = "transformer"
    """Prefix of the keys."""
    file: str = LORA_FILE
    load_code: str = 'pipe.load_lora_weights("path/to/this/folder")'
    """Python code that loads the LoRA into the stock pipeline `pipe`."""
    load_imports: tuple[str, ...] = ()
    """Imports that `load_code` needs."""
    any_name: bool = True
    """Whether the stock loader takes a file of another name, by `weight_name`."""
    second: str = ""
    """Component that the LoRA adapts if it is the second of two experts, else empty.

    The file's keys name the first expert nevertheless, as the stock loader requires.
    """

    noise: str = ""
    """Noise level of the expert, "high" or "low", as programs name the files of a pair; else empty.
    """

    @property
    def component(self) -> str:
        """Component of the pipeline that the LoRA adapts, second experts included."""
        return self.second or self.part

    def of_experts(self, names: tuple[str, ...]) -> dict[str, LoraFiles]:
        """Return the LoRA files of a pair of experts, by component name."""
        first, second = names
        file = SECOND_FILE
        code = (
            f'pipe.load_lora_weights("path/to/this/folder", weight_name="{file}",'
            " load_into_transformer_2=True)"
        )
        return {
            first: replace(self, noise="high"),
            second: replace(self, second=second, file=file, load_code=code, noise="low"),
        }

    def of_pipeline(self, pipeline: Any) -> list[LoraFiles]:
        """Return the LoRA files of a stock pipeline, one for each expert that it has."""
        if getattr(pipeline, Split.names[1], None) is None:
            return [self]
        return list(self.of_experts(Split.names).values())

    def save(
        self,
        folder: Path,
        layers: dict[str, Tensor],
        config: LoraConfig,
        text: Mapping[str, tuple[dict[str, Tensor], LoraConfig]] = MappingProxyType({}),
    ) -> None:
        """Write a LoRA to `folder`, as the family's own loader reads it.

        Args:
            folder: Created if missing.
            layers: Tensors by peft's names: `lora_A.weight` [r, in], `lora_B.weight` [out, r] and,
                if there are biases, `lora_B.bias` [out].
            config: Settings for peft. They are written too, because they define the scale.
            text: Tensors and settings of text encoders by component.
        """
        parts: dict[str, Any] = {}
        for part, (own, settings) in {self.part: (layers, config), **text}.items():
            parts[f"{part}_lora_layers"] = own
            parts[f"{part}_lora_adapter_metadata"] = metadata_of(settings)
        getattr(diffusers, self.pipeline_class).save_lora_weights(
            folder,
            **parts,
            **({"weight_name": self.file} if self.second else {}),
        )
        sort_metadata(folder / self.file)

    def add(self, pipeline: Any, folder: Path, name: str | None = None, *, file: str = "") -> None:
        """Load a LoRA into the stock pipeline, as `load_code` does.

        Args:
            pipeline: A stock pipeline of `pipeline_class`.
            folder: Holds the LoRA file.
            name: Name of the adapter, if there are several.
            file: Name of the LoRA file; empty means the usual one. Only if `any_name`.
        """
        options: dict[str, Any] = {"adapter_name": name} if name else {}
        if file not in ("", self.file):
            options["weight_name"] = file
        if self.second:
            options |= {"weight_name": file or self.file, "load_into_transformer_2": True}
        pipeline.load_lora_weights(folder, **options)

    def use(self, pipeline: Any, scales: Mapping[str, float]) -> None:
        """Activate adapters that were added by name.

        Args:
            pipeline: A stock pipeline with these adapters.
            scales: Name -> scale.
        """
        pipeline.set_adapters(list(scales), list(scales.values()))

    def stack_code(self, adapters: Sequence[Beside], own: Sequence[LoraFiles]) -> list[str]:
        """Return lines of Python that load several LoRAs and a student into `pipe`.

        Args:
            adapters: The LoRAs, without the student.
            own: The student's LoRA files: one, or one for each expert.
        """
        names = [f"adapter_{i}" for i in range(len(adapters))]
        return [
            *(
                one.files._load_line(one.folder, one.file, name)
                for name, one in zip(names, adapters, strict=True)
            ),
            *(files._load_line("path/to/this/folder", files.file, "student") for files in own),
            f"pipe.set_adapters({json.dumps([*names, 'student'])},"
            f" {[*(one.scale for one in adapters), 1.0]})",
        ]

    def _load_line(self, folder: str, file: str, name: str) -> str:
        """Return the line of Python that loads one LoRA under a name."""
        arguments = [json.dumps(folder, ensure_ascii=False)]
        if file != LORA_FILE:
            arguments.append(f"weight_name={json.dumps(file, ensure_ascii=False)}")
        if self.second:
            arguments.append("load_into_transformer_2=True")
        return f'pipe.load_lora_weights({", ".join(arguments)}, adapter_name="{name}")'


def metadata_of(config: LoraConfig) -> dict[str, Any]:
    """Return settings as diffusers stores them in a file's metadata, in a fixed order."""
    return {
        key: sorted(value) if isinstance(value, set) else value
        for key, value in config.to_dict().items()
    }


@dataclass(frozen=True)
class Beside:
    """A LoRA of the user in code that loads it beside a student."""

    folder: str
    file: str
    scale: float
    files: LoraFiles
    """LoRA files of the component that it adapts."""
