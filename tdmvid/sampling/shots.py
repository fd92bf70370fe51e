"""Plan what to sample: one shot per video, with its noise and its file name."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from ..config import check_number, short
from ..config.ranges import SEED
from ..data.items import Item, file_digest

Naming = Literal["index", "prompt"]
NAME_BYTES = 255
"""Longest name of a file."""
_SLUG = 60


@dataclass(frozen=True)
class Shot:
    """One video to make, and the name of its file."""

    prompt: str
    seed: int
    file: str
    image: str = ""
    """File of the first frame, if the model takes one."""
    image_sha256: str = ""
    """Digest of that file's content."""

    @property
    def item(self) -> Item:
        """Prompt and image of the video."""
        return Item(self.prompt, Path(self.image) if self.image else None)


def plan_shots(
    items: Sequence[Item | str], seeds: Iterable[int], *, frames: int, naming: Naming = "index"
) -> list[Shot]:
    """Combine every item with every seed; duplicates are made once.

    Args:
        items: Prompts, or prompts with images.
        seeds: Seeds of the noise.
        frames: Number of frames; 1 makes images.
        naming: "index" gives 00012_a-red-ring-0.mp4 (index in the list, words of the prompt, seed);
            "prompt" gives `{prompt}-{seed}.mp4`, which VBench reads.

    Raises:
        ValueError: A prompt cannot be a file name, or two shots get the same one.
    """
    suffix, seeds, shots = ".png" if frames == 1 else ".mp4", list(dict.fromkeys(seeds)), []
    first: dict[tuple[str, str, str], int] = {}
    for index, item in enumerate(items):
        first.setdefault(_known(item), index)
    for (prompt, image, digest), index in first.items():
        slug = re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:_SLUG].rstrip("-")
        stem = prompt if naming == "prompt" else f"{index:05d}_{slug or 'prompt'}"
        for seed in seeds:
            name = f"{stem}-{seed}{suffix}"
            if not names_file(name):
                raise ValueError(
                    f"prompt {short(prompt)} cannot be a file name (no '/', at most {NAME_BYTES}"
                    " bytes with the seed): use --names index"
                )
            shots.append(Shot(prompt, seed, name, image, digest))
    _check_names(shots)
    return shots


def names_file(name: str, most: int = NAME_BYTES) -> bool:
    """Return whether a text can be the name of a file.

    Args:
        name: The text.
        most: Maximum number of bytes.
    """
    return "/" not in name and "\0" not in name and len(name.encode()) <= most


def _known(item: Item | str) -> tuple[str, str, str]:
    """Return prompt, image file and digest of the image's content."""
    if isinstance(item, str) or item.image is None:
        return (item if isinstance(item, str) else item.prompt), "", ""
    return item.prompt, str(item.image), file_digest(item.image)


def _check_names(shots: list[Shot]) -> None:
    """Raise ValueError if two shots have the same file name."""
    named: dict[str, Shot] = {}
    for shot in shots:
        other = named.setdefault(shot.file, shot)
        if other is not shot:
            raise ValueError(
                f"prompt {short(shot.prompt)} has two images, {short(other.image)} and"
                f" {short(shot.image)}, but gives one file name: use --names index"
            )


def noise(prompt: str, seed: int, shape: tuple[int, ...]) -> Tensor:
    """Draw the initial noise of a video, which depends on prompt and seed alone.

    Args:
        prompt: The prompt.
        seed: The seed.
        shape: Shape of one latent sample, e.g. [F, C, H, W].

    Returns:
        Noise of this shape, float32, drawn on the CPU on every machine.
    """
    digest = hashlib.sha256(f"{seed}/{prompt}".encode()).digest()
    return torch.randn(
        shape, generator=torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    )


def read_seeds(text: str) -> list[int]:
    """Parse seeds such as "0,1,2".

    Raises:
        ValueError: The text is anything else.
    """
    try:
        seeds = [int(seed) for seed in text.split(",")]
    except ValueError:
        raise ValueError(
            f"seeds={short(text)}: use whole numbers separated by commas, e.g. 0,1,2"
        ) from None
    for seed in seeds:
        check_number("seeds", seed, SEED)
    return seeds
