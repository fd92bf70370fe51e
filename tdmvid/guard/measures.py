"""Measure samples without network weights: motion, colour, sharpness and diversity.

All measures accept images (F = 1) and videos of any model family. Measures that do not apply to the
samples, such as the motion of images, are left out.

Shapes: B samples [B, 3, F, H, W] in [-1, 1]; latents [B, ..., H, W] with channels and frames in
either order.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in BT.601 luma, which video files use."""
CLIPPED = 0.98
"""Magnitude from which a colour value counts as clipped: the last two of 256 levels."""
STILL = 0.005
"""Change between frames that is negligible when measuring flicker: half of one of 256 levels."""
THUMBNAIL, THUMBNAIL_FRAMES = 16, 8
"""Height and width, and number of frames, of the thumbnails that samples are compared by."""


def measure(videos: Tensor, prompts: Sequence[Hashable]) -> dict[str, float]:
    """Compute every measure that the samples allow, averaged over samples or pairs.

    Args:
        videos: Samples [B, 3, F, H, W] in [-1, 1], each from different noise.
        prompts: Prompt of each sample.

    Returns:
        Values by name.
    """
    each = {name: float(values.mean()) for name, values in appearance(videos).items()}
    pairs = diversity(thumbnails(videos), prompts)
    return each | {name: float(values.mean()) for name, values in pairs.items()}


def appearance(videos: Tensor) -> dict[str, Tensor]:
    """Compute the measures of single samples that the number of frames allows.

    Args:
        videos: Samples [B, 3, F, H, W] in [-1, 1].

    Returns:
        Values [B] by name.
    """
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
    """Return the mean absolute difference between successive frames.

    Args:
        videos: Samples [B, 3, F, H, W] in [-1, 1], F > 1.

    Returns:
        Values [B].
    """
    return videos.diff(dim=2).abs().flatten(1).mean(1)


def flicker(videos: Tensor) -> Tensor:
    """Return how much frames alternate instead of changing steadily.

    This is the mean absolute second difference over time divided by the mean absolute first
    difference: 0 for a steady change and for a still video, sqrt(3) for noise, 2 for frames that
    alternate.

    Args:
        videos: Samples [B, 3, F, H, W] in [-1, 1], F > 2.

    Returns:
        Values [B].
    """
    second = videos.diff(n=2, dim=2).abs().flatten(1).mean(1)
    return second / (motion(videos) + STILL)


def contrast(videos: Tensor) -> Tensor:
    """Return the standard deviation of the luma within a frame, averaged over frames.

    Args:
        videos: Samples [B, 3, F, H, W] in [-1, 1].

    Returns:
        Values [B].
    """
    return _luma(videos).flatten(2).std(2, correction=0).mean(1)


def saturation(videos: Tensor) -> Tensor:
    """Return the mean chroma, which is the largest minus the smallest colour value of a pixel.

    Args:
        videos: Samples [B, 3, F, H, W] in [-1, 1].

    Returns:
        Values [B].
    """
    return (videos.amax(1) - videos.amin(1)).flatten(1).mean(1)


def clipped(videos: Tensor) -> Tensor:
    """Return the share of colour values at an end of their range.

    Args:
        videos: Samples [B, 3, F, H, W] in [-1, 1].

    Returns:
        Shares [B].
    """
    return (videos.abs() >= CLIPPED).float().flatten(1).mean(1)


def sharpness(videos: Tensor) -> Tensor:
    """Return the mean absolute Laplacian of the luma.

    Args:
        videos: Samples [B, 3, F, H, W] in [-1, 1].

    Returns:
        Values [B].
    """
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
    """Shrink samples so that they can be compared without texture and noise.

    Args:
        videos: Samples [B, 3, F, H, W] in [-1, 1].

    Returns:
        Flattened thumbnails [B, D].
    """
    frames = min(videos.shape[2], THUMBNAIL_FRAMES)
    height, width = (min(side, THUMBNAIL) for side in videos.shape[-2:])
    return functional.adaptive_avg_pool3d(videos, (frames, height, width)).flatten(1)


def diversity(small: Tensor, prompts: Sequence[Hashable]) -> dict[str, Tensor]:
    """Compute the root mean square distances between thumbnails.

    Args:
        small: Thumbnails [B, D].
        prompts: Prompt of each thumbnail.

    Returns:
        Distances [pairs] of samples with the same prompt ("seeds") and with different prompts
        ("prompts"); without an entry if there are no such pairs.
    """
    numbers = {prompt: number for number, prompt in enumerate(dict.fromkeys(prompts))}
    group = torch.tensor([numbers[prompt] for prompt in prompts])
    exact = "donot_use_mm_for_euclid_dist"
    apart = torch.cdist(small, small, compute_mode=exact).cpu() / small.shape[1] ** 0.5
    same, once = group[:, None] == group, torch.ones(len(group), len(group)).triu(1).bool()
    found = {"seeds": apart[same & once], "prompts": apart[~same & once]}
    return {name: distances for name, distances in found.items() if len(distances)}


def latent_distance(latents: Tensor, reference: Tensor) -> float:
    """Return the distance between the statistics of latents and of reference latents.

    This is the Wasserstein-2 distance between Gaussians fitted to each channel of each frame, in
    units of the reference's standard deviation, as the root mean square over channels and frames.

    Args:
        latents: Latents [B, ..., H, W].
        reference: Reference latents [B', ..., H, W].

    Returns:
        The distance; 0 for equal statistics.
    """
    (mean, std), (mean_r, std_r) = _moments(latents), _moments(reference)
    square = ((mean - mean_r).square() + (std - std_r).square()) / std_r.square().clamp(min=1e-8)
    return float(square.mean().sqrt())


def _moments(latents: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean and standard deviation over samples and pixels."""
    latents = latents.float()
    return latents.mean((0, -2, -1)), latents.std((0, -2, -1), correction=0)


def _luma(videos: Tensor) -> Tensor:
    """Return the luma [B, F, H, W] of samples."""
    return torch.einsum("bcfhw,c->bfhw", videos, videos.new_tensor(LUMA))
