"""What is to be sampled: one shot a video, its noise, and the name of its file."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..config import check_number, short
from ..config.ranges import SEED

Naming = Literal["index", "prompt"]
_SLUG, _NAME_BYTES = 60, 255


@dataclass(frozen=True)
class Shot:
    """One video to make, and the name of its file."""

    prompt: str
    seed: int
    file: str


def plan_shots(
    prompts: list[str], seeds: Iterable[int], *, frames: int, naming: Naming = "index"
) -> list[Shot]:
    """Return every prompt with every seed; a prompt that comes twice is made once.

    naming: "index" gives 00012_a-red-ring-0.mp4 (the prompt's place in the list, then its seed),
    "prompt" gives `{prompt}-{seed}.mp4`, which VBench reads. ValueError for a prompt that cannot
    name a file.
    """
    suffix, seeds, shots = ".png" if frames == 1 else ".mp4", list(dict.fromkeys(seeds)), []
    first = {prompt: index for index, prompt in reversed(list(enumerate(prompts)))}
    for prompt, index in sorted(first.items(), key=lambda item: item[1]):
        slug = re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:_SLUG].rstrip("-")
        stem = prompt if naming == "prompt" else f"{index:05d}_{slug or 'prompt'}"
        for seed in seeds:
            name = f"{stem}-{seed}{suffix}"
            if "/" in name or "\0" in name or len(name.encode()) > _NAME_BYTES:
                raise ValueError(
                    f"prompt {prompt!r} cannot name a file (no '/', at most {_NAME_BYTES} bytes"
                    " with the seed): use naming by index"
                )
            shots.append(Shot(prompt, seed, name))
    return shots


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
