"""What samples look like, measured without network weights: motion, colour, sharpness, diversity.

All measures take images (F = 1) and videos of any family. What a measure cannot say of the samples
at hand, such as the motion of images, is left out.

Shapes: B samples [B, 3, F, H, W] in [-1, 1]; latents [B, ..., H, W], with channels and frames in
either order.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

LUMA = (0.299, 0.587, 0.114)
"""BT.601, as video files are written."""
CLIPPED = 0.98
"""Magnitude from which a pixel's colour counts as clipped: the last two grey levels."""
STILL = 0.005
"""Change between frames that counts as none beside flicker: half a grey level."""
THUMBNAIL, THUMBNAIL_FRAMES = 16, 8
"""Side and frames of the thumbnails that are compared between samples."""


def measure(videos: Tensor, prompts: Sequence[Hashable]) -> dict[str, float]:
    """Return every measure that the samples allow, by name; means over samples and pairs.

    Args:
        videos: The samples, each from noise of its own.
        prompts: What each was sampled of.
    """
    each = {name: float(values.mean()) for name, values in appearance(videos).items()}
    pairs = diversity(thumbnails(videos), prompts)
    return each | {name: float(values.mean()) for name, values in pairs.items()}


def appearance(videos: Tensor) -> dict[str, Tensor]:
    """Return the measures of each sample that its number of frames allows, by name: [B] each."""
    found = {
        "contrast": contrast(videos),
        "saturation": saturation(videos),
        "clipped": clipped(videos),
        "sharpness": sharpness(videos),
    }
    if videos.shape[2] > 1:
        found["motion"] = motion(videos)
    if videos.shape[2] > 2:
        found["flicker"] = flicker(videos)
    return found


def motion(videos: Tensor) -> Tensor:
    """Return the mean absolute difference of successive frames: [B]."""
    return videos.diff(dim=2).abs().flatten(1).mean(1)


def flicker(videos: Tensor) -> Tensor:
    """Return how much changes go to and fro instead of on: [B].

    The mean absolute second difference over time, as a share of the first: 0 for a steady change
    and for a still video, sqrt(3) for noise, 2 for frames that alternate.
    """
    second = videos.diff(n=2, dim=2).abs().flatten(1).mean(1)
    return second / (motion(videos) + STILL)


def contrast(videos: Tensor) -> Tensor:
    """Return the standard deviation of the brightness within a frame: [B]."""
    return _luma(videos).flatten(2).std(2, correction=0).mean(1)


def saturation(videos: Tensor) -> Tensor:
    """Return the mean chroma, the largest less the smallest of a pixel's colours: [B]."""
    return (videos.amax(1) - videos.amin(1)).flatten(1).mean(1)


def clipped(videos: Tensor) -> Tensor:
    """Return the share of colour values at the end of their range: [B]."""
    return (videos.abs() >= CLIPPED).float().flatten(1).mean(1)


def sharpness(videos: Tensor) -> Tensor:
    """Return the mean absolute Laplacian of the brightness: [B]."""
    luma = _luma(videos)
    kernel = luma.new_tensor([[0, 1, 0], [1, -4, 1], [0, 1, 0]])[None, None]
    return (
        functional.conv2d(luma.flatten(0, 1)[:, None], kernel)
        .abs()
        .unflatten(0, luma.shape[:2])
        .flatten(1)
        .mean(1)
    )


def thumbnails(videos: Tensor) -> Tensor:
    """Return the samples without texture and noise, to be compared with each other: [B, D]."""
    frames = min(videos.shape[2], THUMBNAIL_FRAMES)
    height, width = (min(side, THUMBNAIL) for side in videos.shape[-2:])
    return functional.adaptive_avg_pool3d(videos, (frames, height, width)).flatten(1)


def diversity(small: Tensor, prompts: Sequence[Hashable]) -> dict[str, Tensor]:
    """Return the root mean square distance of each pair of thumbnails [B, D]: "seeds" of one
    prompt, and of different "prompts", [pairs] each; what has no pair is left out.
    """
    numbers = {prompt: number for number, prompt in enumerate(dict.fromkeys(prompts))}
    group = torch.tensor([numbers[prompt] for prompt in prompts])
    exact = "donot_use_mm_for_euclid_dist"
    apart = torch.cdist(small, small, compute_mode=exact).cpu() / small.shape[1] ** 0.5
    same, once = group[:, None] == group, torch.ones(len(group), len(group)).triu(1).bool()
    found = {"seeds": apart[same & once], "prompts": apart[~same & once]}
    return {name: distances for name, distances in found.items() if len(distances)}


def latent_distance(latents: Tensor, reference: Tensor) -> float:
    """Return how far means and deviations are from those of other latents, in deviations of the
    latter.

    The Wasserstein-2 distance of Gaussians fitted to each channel of each frame, root mean square
    over these.
    """
    (mean, std), (mean_r, std_r) = _moments(latents), _moments(reference)
    square = ((mean - mean_r).square() + (std - std_r).square()) / std_r.square().clamp(min=1e-8)
    return float(square.mean().sqrt())


def _moments(latents: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation over samples and pixels."""
    latents = latents.float()
    return latents.mean((0, -2, -1)), latents.std((0, -2, -1), correction=0)


def _luma(videos: Tensor) -> Tensor:
    """[B, F, H, W]."""
    return torch.einsum("bcfhw,c->bfhw", videos, videos.new_tensor(LUMA))
