"""Interface of a consumer (a program that loads LoRA files), and the registry of consumers."""

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
    """A program that loads LoRA files in its own key layout."""

    layout: ClassVar[KeyLayout]
    """Its key layout. The layout's name is also the name of the format."""

    @abstractmethod
    def card_text(self, facts: dict) -> str:
        """Return the model card's text about the file, after "for ".

        Args:
            facts: Contents of export.json.
        """

    def write_extras(self, loras: list[Path], student: Student) -> dict:
        """Write further files that the program needs beside the LoRA.

        Args:
            loras: The written LoRA file, or those of both experts.
            student: The exported student.

        Returns:
            Entries for export.json.
        """
        return {}


_REGISTRY: dict[str, Consumer] = {}


def register(cls: type[Consumer]) -> type[Consumer]:
    """Register a consumer under the name of its layout. Used as a class decorator."""
    _REGISTRY[cls.layout.name] = cls()
    return cls


def consumers() -> dict[str, Consumer]:
    """Import every file of this folder and return all consumers by name."""
    for module in pkgutil.iter_modules([str(Path(__file__).parent)]):
        importlib.import_module(f"{__package__}.{module.name}")
    return _REGISTRY


def check_known(formats: tuple[str, ...]) -> None:
    """Check that each format exists.

    Args:
        formats: "diffusers" or names of consumers.

    Raises:
        ValueError: One does not; the message lists all.
    """
    known = ("diffusers", *consumers()) if set(formats) - {"diffusers"} else formats
    for name in formats:
        if name not in known:
            raise ValueError(f"format {name!r} is unknown: choose from {', '.join(known)}")


def check_formats(formats: tuple[str, ...], backbone: Backbone) -> None:
    """Check that each format exists and supports the backbone's family.

    Args:
        formats: "diffusers" or names of consumers.
        backbone: The student's base.

    Raises:
        ValueError: A format does not; the message lists those that can be chosen.
    """
    if set(formats) <= {"diffusers"}:
        return
    check_known(formats)
    found = consumers()
    known = [name for name, it in found.items() if backbone.pipeline_class in it.layout.stems]
    for name in formats:
        if name != "diffusers" and name not in known:
            raise ValueError(
                f"format {name!r} does not support {backbone.pipeline_class}: choose from"
                f" {', '.join(('diffusers', *known))}"
            )
