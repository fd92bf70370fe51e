"""The interface of image metrics, and their input.

A metric of single images scores each prompt, so that student and teacher can be compared in pairs.
A metric of a set compares two whole sets.

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

from ...data.video import read_image
from ..preflight import Needed


@dataclass(frozen=True)
class ImageSet:
    """The images of one sampler, and the folder and device for computing metrics."""

    files: Sequence[Path]
    prompts: Sequence[str]
    """Prompt of each file; empty for a folder of real images."""
    side: int
    """Height and width in pixels to which set metrics resize the central square."""
    cache: Path
    """Folder of the weights."""
    device: str = "cpu"
    made: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    def once(self, name: str, make: Callable[[ImageSet], Any]) -> Any:
        """Return a result that several metrics share, computed on first use.

        Args:
            name: Name of the result.
            make: Computes it from this set.

        Returns:
            The result.
        """
        if name not in self.made:
            self.made[name] = make(self)
        return self.made[name]


@dataclass(frozen=True)
class ImageMetric:
    """A metric of single images."""

    name: str
    needs: tuple[Needed, ...]
    """Files in the cache folder and packages that it needs. It is skipped if one is missing."""
    score: Callable[[ImageSet], dict[str, float]]
    """Returns the mean over the images of each prompt. A prompt without a score is left out."""
    check: Callable[[Sequence[str], str], None] | None = None
    """Called with the prompts and their file before anything is sampled. Raises ValueError if the
    prompts cannot be scored.
    """


@dataclass(frozen=True)
class SetMetric:
    """A metric that compares one set of images with another."""

    name: str
    needs: tuple[Needed, ...]
    compare: Callable[[ImageSet, ImageSet, Sequence[str]], dict[str, float]]
    """Maps (our images, their images, names of the wanted metrics) to values. Metrics that share
    features share this function, which is then called once.
    """
    smallest: int = 1
    """Minimum number of images in each set."""


def by_prompt(images: ImageSet, values: Iterable[float | None]) -> dict[str, float]:
    """Average the values of files over the files of each prompt.

    Args:
        images: The set, which has the prompt of each file.
        values: Value of each file; None is ignored.

    Returns:
        Means by prompt.
    """
    groups: dict[str, list[float]] = {}
    for prompt, value in zip(images.prompts, values, strict=True):
        if value is not None:
            groups.setdefault(prompt, []).append(value)
    return {prompt: sum(group) / len(group) for prompt, group in groups.items()}


def load_state(path: Path) -> dict[str, Tensor]:
    """Load the tensors of a weight file without unpickling anything else.

    Args:
        path: A .safetensors file or a PyTorch checkpoint.

    Returns:
        Tensors by name.
    """
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    state = torch.load(path, map_location="cpu", weights_only=True)
    return state.get("state_dict", state)


def read_rgb(file: Path) -> Image.Image:
    """Read an image file, upright and with transparent parts on white.

    Args:
        file: The file.

    Returns:
        The image in RGB.

    Raises:
        ValueError: It is not an image with 8 bits per channel.
    """
    return Image.fromarray(read_image(file))


class Pictures(torch.utils.data.Dataset[Tensor]):
    """Dataset of image files as [3, side, side] uint8. The central square is resized, so that sets
    of different sizes are comparable.

    Args:
        files: The image files.
        side: Height and width in pixels.
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
