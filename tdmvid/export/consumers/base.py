"""The contract of a consumer, and where consumers are found."""

from __future__ import annotations

import importlib
import pkgutil
from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar

from ...adapters.layouts import KeyLayout
from ...backbones.base import Backbone
from ..student import Student


class Consumer(ABC):
    """A program that loads a LoRA file of its own key layout."""

    layout: ClassVar[KeyLayout]
    """Names of its keys; its name is the format's."""

    @abstractmethod
    def card_text(self, facts: dict) -> str:
        """Return what the card says of the file, after "for "; facts: of export.json."""

    def write_extras(self, loras: list[Path], student: Student) -> dict:
        """Write what the program needs beside its file, or its files of both experts.

        Returns:
            Facts for export.json.
        """
        return {}


_REGISTRY: dict[str, Consumer] = {}


def register(cls: type[Consumer]) -> type[Consumer]:
    """Make a consumer known by the name of its layout; a class decorator."""
    _REGISTRY[cls.layout.name] = cls()
    return cls


def consumers() -> dict[str, Consumer]:
    """Return all consumers by name; imports every file of this folder."""
    for module in pkgutil.iter_modules([str(Path(__file__).parent)]):
        importlib.import_module(f"{__package__}.{module.name}")
    return _REGISTRY


def check_formats(formats: tuple[str, ...], backbone: Backbone) -> None:
    """Check that each format exists, and that a program loads it for the backbone's family.

    Raises:
        ValueError: one does not; the message lists those that can be chosen.
    """
    if set(formats) <= {"diffusers"}:
        return
    found = consumers()
    known = [name for name, it in found.items() if backbone.pipeline_class in it.layout.stems]
    for name in formats:
        if name != "diffusers" and name not in found:
            raise ValueError(f"format {name!r}: choose from {', '.join(('diffusers', *found))}")
        if name != "diffusers" and name not in known:
            raise ValueError(
                f"format {name!r}: no program that reads it knows {backbone.pipeline_class}: choose"
                f" from {', '.join(('diffusers', *known))}"
            )
