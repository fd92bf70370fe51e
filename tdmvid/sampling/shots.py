"""What is to be sampled: one shot a video, its noise, and the name of its file."""

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
from ..data.items import Item, image_digest

Naming = Literal["index", "prompt"]
_SLUG, _NAME_BYTES = 60, 255


@dataclass(frozen=True)
class Shot:
    """One video to make, and the name of its file."""

    prompt: str
    seed: int
    file: str
    image: str = ""
    """The file of its first frame, where the model takes one."""
    image_sha256: str = ""
    """Of the content of that file."""

    @property
    def item(self) -> Item:
        """What it is made from."""
        return Item(self.prompt, Path(self.image) if self.image else None)


def plan_shots(
    items: Sequence[Item | str], seeds: Iterable[int], *, frames: int, naming: Naming = "index"
) -> list[Shot]:
    """Return every item with every seed; one that comes twice is made once.

    items: prompts, or prompts with images. naming: "index" gives 00012_a-red-ring-0.mp4 (the item's
    place in the list, then its seed), "prompt" gives `{prompt}-{seed}.mp4`, which VBench reads.
    ValueError for a prompt that cannot name a file.
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
            if "/" in name or "\0" in name or len(name.encode()) > _NAME_BYTES:
                raise ValueError(
                    f"prompt {prompt!r} cannot name a file (no '/', at most {_NAME_BYTES} bytes"
                    " with the seed): use naming by index"
                )
            shots.append(Shot(prompt, seed, name, image, digest))
    _check_names(shots)
    return shots


def _known(item: Item | str) -> tuple[str, str, str]:
    """Prompt, image file and digest of its content of an item."""
    if isinstance(item, str) or item.image is None:
        return (item if isinstance(item, str) else item.prompt), "", ""
    return item.prompt, str(item.image), image_digest(item.image)


def _check_names(shots: list[Shot]) -> None:
    """Raise ValueError if two shots have one file name."""
    named: dict[str, Shot] = {}
    for shot in shots:
        other = named.setdefault(shot.file, shot)
        if other is not shot:
            raise ValueError(
                f"prompt {short(shot.prompt)} comes with two images, {short(other.image)} and"
                f" {short(shot.image)}, and names one file: use naming by index"
            )


def noise(prompt: str, seed: int, shape: tuple[int, ...]) -> Tensor:
    """Draw the noise of a video, a function of prompt and seed alone: `shape`, float32, on the CPU,
    whatever computes later.
    """
    digest = hashlib.sha256(f"{seed}/{prompt}".encode()).digest()
    return torch.randn(
        shape, generator=torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    )


def read_seeds(text: str) -> list[int]:
    """Return the seeds in "0,1,2"; ValueError for anything else."""
    try:
        seeds = [int(seed) for seed in text.split(",")]
    except ValueError:
        raise ValueError(
            f"seeds={short(text)}: whole numbers with commas between, e.g. 0,1,2"
        ) from None
    for seed in seeds:
        check_number("seeds", seed, SEED)
    return seeds
