"""CLIP score (arXiv 2104.08718) and LAION's aesthetic score, on the features of one CLIP ViT-L/14.

Shapes: N images, D feature channels.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..preflight import Needed
from .base import ImageMetric, ImageSet, by_prompt, load_state, read_rgb

OPEN_CLIP = Needed("open_clip", "pip install '.[image-metrics]' in the clone", package=True)
WEIGHTS = Needed(
    "clip/open_clip_model.safetensors",
    "https://huggingface.co/timm/vit_large_patch14_clip_224.openai",
)
HEAD = Needed(
    "aesthetic/sa_0_4_vit_l_14_linear.pth",
    "https://github.com/LAION-AI/aesthetic-predictor, sa_0_4_vit_l_14_linear.pth",
)


class Clip:
    """An open_clip model that computes unit-length features of images and texts.

    Args:
        name: Architecture in open_clip.
        weights: Weight file; None leaves the weights random.
        device: Device to compute on.
        batch: Images or texts per batch.
        whole: Whether the model sees whole images, with black bars, or their central squares.
    """

    def __init__(
        self,
        name: str,
        weights: Path | None,
        *,
        device: torch.device | str = "cpu",
        batch: int = 32,
        whole: bool = False,
    ):
        import open_clip

        # The weights are loaded below, because open_clip would unpickle arbitrary objects. Without
        # weights it logs a warning, which is suppressed here.
        disabled = logging.root.manager.disable
        logging.disable(logging.WARNING)
        try:
            self.model, _, self.transform = open_clip.create_model_and_transforms(
                name,
                pretrained=None,
                device=device,
                image_resize_mode="longest" if whole else None,
            )
        finally:
            logging.disable(disabled)
        if weights is not None:
            self.model.load_state_dict(load_state(weights))
        self.model.eval()
        self.tokenize, self.device, self.batch = open_clip.get_tokenizer(name), device, batch

    @torch.no_grad()
    def images(self, files: Sequence[Path]) -> Tensor:
        """Encode image files.

        Args:
            files: N image files.

        Returns:
            Unit-length features [N, D], float32 on the CPU.
        """
        parts = (
            torch.stack([self.transform(read_rgb(file)) for file in some])
            for some in _batches(files, self.batch)
        )  # a generator, because one image takes 600 kB
        return torch.cat(
            [
                self.model.encode_image(part.to(self.device), normalize=True).float().cpu()
                for part in parts
            ]
        )

    @torch.no_grad()
    def texts(self, prompts: Sequence[str]) -> Tensor:
        """Encode prompts.

        Args:
            prompts: N prompts.

        Returns:
            Unit-length features [N, D], float32 on the CPU.
        """
        parts = (
            self.tokenize(list(some)).to(self.device) for some in _batches(prompts, self.batch)
        )
        return torch.cat(
            [self.model.encode_text(part, normalize=True).float().cpu() for part in parts]
        )

    def similarity(self, files: Sequence[Path], prompts: Sequence[str]) -> Tensor:
        """Return 100 times the cosine similarity between image i and prompt i.

        With the weights of HPS v2.1 this is the HPS score.

        Args:
            files: N image files.
            prompts: N prompts.

        Returns:
            Scores [N].
        """
        return 100 * (self.images(files) * self.texts(prompts)).sum(1)


def load_clip(cache: Path, device: torch.device | str = "cpu") -> Clip:
    """Load OpenAI's CLIP ViT-L/14.

    Args:
        cache: Folder of the weights.
        device: Device to compute on.

    Returns:
        The model.
    """
    return Clip("ViT-L-14-quickgelu", cache / WEIGHTS.path, device=device)


def _encode(images: ImageSet) -> tuple[Clip, Tensor]:
    """Return the network and the features [N, D] of the images."""
    clip = load_clip(images.cache, images.device)
    return clip, clip.images(images.files)


def score_clip(images: ImageSet) -> dict[str, float]:
    """Return 100 times the cosine similarity between image and prompt.

    Args:
        images: The images to score.

    Returns:
        Scores by prompt.
    """
    clip, features = images.once("clip", _encode)
    return by_prompt(images, (100 * (features * clip.texts(images.prompts)).sum(1)).tolist())


def score_aesthetic(images: ImageSet) -> dict[str, float]:
    """Return LAION's aesthetic score.

    Args:
        images: The images to score.

    Returns:
        Scores by prompt.
    """
    _, features = images.once("clip", _encode)
    return by_prompt(images, aesthetic(features, images.cache / HEAD.path).tolist())


def aesthetic(features: Tensor, head: Path) -> Tensor:
    """Apply LAION's linear head to features of CLIP ViT-L/14.

    Args:
        features: Unit-length features [N, 768].
        head: Weight file of the head.

    Returns:
        Scores [N], about 1 to 10.
    """
    state = load_state(head)
    return (features @ state["weight"].float().T + state["bias"].float())[:, 0]


def _batches(items: Sequence, size: int) -> list[Sequence]:
    return [items[start : start + size] for start in range(0, len(items), size)]


CLIP = ImageMetric("clip", (WEIGHTS, OPEN_CLIP), score_clip)
AESTHETIC = ImageMetric("aesthetic", (HEAD, WEIGHTS, OPEN_CLIP), score_aesthetic)
