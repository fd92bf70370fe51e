"""The contract of an image metric, and what it is given.

A metric of single images scores prompts, so that a student and its teacher are compared pair by
pair. A metric of a set compares two sets as a whole.

Shapes: N images, D feature channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..preflight import Needed


@dataclass(frozen=True)
class ImageSet:
    """The images of one sampler, and the place and device where a metric computes."""

    files: Sequence[Path]
    prompts: Sequence[str]
    """Of each file; empty for a folder of real images."""
    side: int
    """Pixels to which measures of sets resize the middle square."""
    cache: Path
    """Where the weights lie."""
    device: str = "cpu"
    made: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    def once(self, name: str, make: Callable[[ImageSet], Any]) -> Any:
        """Return what several metrics share, made for the first one that asks."""
        if name not in self.made:
            self.made[name] = make(self)
        return self.made[name]


@dataclass(frozen=True)
class ImageMetric:
    """A measure of single images."""

    name: str
    needs: tuple[Needed, ...]
    """Files under the cache folder and packages that it reads; without them it is left out."""
    score: Callable[[ImageSet], dict[str, float]]
    """Prompt -> mean over the prompt's images; a prompt that has no score is left out."""
    check: Callable[[Sequence[str], str], None] | None = None
    """Raise ValueError, before anything is sampled, if the prompts (of the file `source`) cannot be
    scored.
    """


@dataclass(frozen=True)
class SetMetric:
    """A measure of one set of images against another."""

    name: str
    needs: tuple[Needed, ...]
    compare: Callable[[ImageSet, ImageSet, Sequence[str]], dict[str, float]]
    """(ours, theirs, names of the metrics that are wanted) -> figures. Metrics that share features
    share this function, which is then called once.
    """
    smallest: int = 1
    """Images that each set must have."""


def by_prompt(images: ImageSet, values: Iterable[float | None]) -> dict[str, float]:
    """Average the values of the files over each prompt's; None counts for nothing."""
    groups: dict[str, list[float]] = {}
    for prompt, value in zip(images.prompts, values, strict=True):
        if value is not None:
            groups.setdefault(prompt, []).append(value)
    return {prompt: sum(group) / len(group) for prompt, group in groups.items()}


def load_state(path: Path) -> dict[str, Tensor]:
    """Load the tensors of a weight file, without unpickling anything else."""
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    state = torch.load(path, map_location="cpu", weights_only=True)
    return state.get("state_dict", state)


def read_rgb(file: Path) -> Image.Image:
    """Read an image file."""
    with Image.open(file) as image:
        return image.convert("RGB")


class Pictures(torch.utils.data.Dataset[Tensor]):
    """Image files as [3, side, side] uint8, their middle square resized, so that sets of different
    sizes become comparable.
    """

    def __init__(self, files: Sequence[Path], side: int):
        self.files, self.side = list(files), side

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Tensor:
        image = read_rgb(self.files[index])
        edge = min(image.size)
        left, top = (image.width - edge) // 2, (image.height - edge) // 2
        image = image.crop((left, top, left + edge, top + edge)).resize(
            (self.side, self.side), Image.Resampling.BICUBIC
        )
        return (
            torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
            .view(self.side, self.side, 3)
            .permute(2, 0, 1)
            .contiguous()
        )
