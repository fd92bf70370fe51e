"""Diversity: mean LPIPS (arXiv 1801.03924) between the images of a prompt."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..preflight import Needed
from .base import ImageMetric, ImageSet, Pictures

WEIGHTS = Needed(
    "torch/hub/checkpoints/alexnet-owt-7be5be79.pth",
    "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
)
LPIPS = Needed("lpips", "pip install '.[image-metrics]' in the clone", package=True)


def lpips_distance(
    cache: Path, device: torch.device | str = "cpu"
) -> Callable[[Tensor, Tensor], float]:
    """Load LPIPS (AlexNet).

    Args:
        cache: Folder of the weights.
        device: Device to compute on.

    Returns:
        Function that returns the distance between two images [3, H, W] in [-1, 1].
    """
    import lpips

    torch.hub.set_dir(str(cache / "torch" / "hub"))
    network = lpips.LPIPS(net="alex", verbose=False).to(device).eval()

    @torch.no_grad()
    def distance(a: Tensor, b: Tensor) -> float:
        return network(a[None].to(device), b[None].to(device)).item()

    return distance


def diversity(
    groups: Mapping[str, Sequence[Path]], distance: Callable[[Tensor, Tensor], float], *, side: int
) -> dict[str, float]:
    """Compute the mean distance between the images of each prompt, over all pairs of seeds.

    Args:
        groups: Image files by prompt. Prompts with one image are left out.
        distance: Distance between two images [3, H, W] in [-1, 1].
        side: Height and width in pixels to resize images to.

    Returns:
        Means by prompt.

    Raises:
        ValueError: No prompt has two images.
    """
    out = {}
    for prompt, files in groups.items():
        pictures = Pictures(files, side)
        images = [pictures[index].float().div(127.5).sub(1) for index in range(len(files))]
        pairs = list(itertools.combinations(images, 2))
        if pairs:
            out[prompt] = sum(distance(a, b) for a, b in pairs) / len(pairs)
    if not out:
        raise ValueError("diversity needs two images per prompt: set seeds to at least 2")
    return out


def score_diversity(images: ImageSet) -> dict[str, float]:
    """Return the diversity of each prompt.

    Args:
        images: The images to score.

    Returns:
        Scores by prompt.
    """
    groups: dict[str, list[Path]] = {}
    for prompt, file in zip(images.prompts, images.files, strict=True):
        groups.setdefault(prompt, []).append(file)
    return diversity(groups, lpips_distance(images.cache, images.device), side=images.side)


DIVERSITY = ImageMetric("diversity", (WEIGHTS, LPIPS), score_diversity)
