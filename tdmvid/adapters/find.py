"""Find the LoRA files that a path names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from ..backbones.lora_files import LORA_FILE, SECOND_FILE, LoraFiles
from .settings import PEFT_FILE
from .tensors import SUFFIXES

PAIR_NAMES = f"{LORA_FILE} and {SECOND_FILE}, or one name with 'high' and one with 'low'"
"""Names of the LoRA files of two experts, for messages."""


def check_pair(path: Path, experts: Sequence[LoraFiles]) -> None:
    """Check that a path is a folder with one LoRA file for each of two experts.

    Args:
        path: The folder.
        experts: The LoRA files of both.

    Raises:
        ValueError: It is something else, lacks a file, or has one file for both.
    """
    advice = f"use a folder with the LoRAs of both experts ({PAIR_NAMES})"
    if not path.is_dir():
        raise ValueError(f"{path} is {'one file' if path.is_file() else 'no folder'}: {advice}")
    first, second = (find_lora(path, one) for one in experts)
    if first.samefile(second):
        raise ValueError(f"{first} is the only LoRA file for two experts: {advice}")


def find_lora(path: Path, files: LoraFiles) -> Path:
    """Return the LoRA file that a path names: the path itself, or a file in the folder.

    The file of one of two experts may have any name with the word "high" or "low" in it.

    Args:
        path: A file or a folder.
        files: The family's LoRA files, with the name to look for first.

    Raises:
        ValueError: There is no such folder, or it has no file with one of the usual names.
        FileNotFoundError: There is no such file.
    """
    if path.is_file():
        return path
    if not path.exists():
        kind = "LoRA file" if path.suffix in SUFFIXES else "LoRA file or folder"
        raise FileNotFoundError(f"{path}: no such {kind}, check the path")
    usual = [files.file, *(PEFT_FILE + suffix for suffix in SUFFIXES), "pytorch_lora_weights.bin"]
    for name in usual:
        if (path / name).is_file():
            return path / name
    present = sorted(path.glob("*.safetensors"))
    others = ", ".join(found.name for found in present)
    if files.noise:
        level = files.noise  # as a word of its own: `slow` and `highres` say nothing about it
        word = rf"(?i:{level}[ _-]?noise|(?<![a-z]){level}(?![a-z]))|{level.title()}(?![a-z])"
        named = [found for found in present if re.search(word, found.name)]
        if len(named) == 1:
            return named[0]
        raise ValueError(
            f"{path} has no {files.file} and {len(named) or 'no'} files with {files.noise!r} in"
            f" their names{f' (found: {others})' if others else ''}: use a folder with the LoRAs of"
            f" both experts ({PAIR_NAMES})"
        )
    raise ValueError(
        f"{path} has no {files.file}: use"
        + (
            f" the LoRA file in it ({others})"
            if others
            else " a LoRA file, or a folder with one, such as the lora/ folder of a finished run"
        )
    )
