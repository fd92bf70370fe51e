"""Human Preference Score v2.1 (arXiv 2306.09341): fine-tuned weights of CLIP ViT-H/14."""

from __future__ import annotations

from pathlib import Path

import torch

from ..preflight import Needed
from .base import ImageMetric, ImageSet, by_prompt
from .clip import OPEN_CLIP, Clip

WEIGHTS = Needed(
    "hps/HPS_v2.1_compressed.pt", "https://huggingface.co/xswu/HPSv2, HPS_v2.1_compressed.pt"
)


def load_hps(cache: Path, device: torch.device | str = "cpu") -> Clip:
    """Load HPS v2.1.

    Args:
        cache: Folder of the weights.
        device: Device to compute on.

    Returns:
        The model.
    """
    # It was trained on whole images: image_transform in github.com/tgxs002/HPSv2.
    return Clip("ViT-H-14", cache / WEIGHTS.path, device=device, whole=True)


def score_hps(images: ImageSet) -> dict[str, float]:
    """Return the HPS v2.1 score of each prompt.

    Args:
        images: The images to score.

    Returns:
        Scores by prompt.
    """
    hps = load_hps(images.cache, images.device)
    return by_prompt(images, hps.similarity(images.files, images.prompts).tolist())


HPS = ImageMetric("hps", (WEIGHTS, OPEN_CLIP), score_hps)
