"""Metrics of generated videos, each with a 95 % confidence interval from a seeded bootstrap.

Shapes: N videos [N, 3, F, H, W] in [-1, 1]; features [N, D]; G captions. The bootstrap resamples
captions (whole groups of videos); for the Fréchet distance it resamples videos.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tdmvid.scoring.intervals import SEED, Measure, mean_over_groups

FRECHET_RESAMPLES = 100
BACKGROUND_RANGE = (
    0.25  # maximum deviation of a background pixel from the background's shade, in [-1, 1] units
)


def _moments(features: Tensor) -> tuple[Tensor, Tensor]:
    mean = features.mean(0)
    centred = features - mean
    return mean, centred.T @ centred / (len(features) - 1)


def _root(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return vectors * values.clamp(min=0).sqrt() @ vectors.T


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Return the Fréchet distance between Gaussians fitted to two sets of features (arXiv
    1706.08500, Eq. 6).

    It is |m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)) in float64. The trace of the root is
    computed from the symmetric matrix C_a^(1/2) C_b C_a^(1/2).

    Args:
        a: Features [N, D].
        b: Features [M, D].

    Returns:
        The squared distance of the paper, at least 0.

    Raises:
        ValueError: A set has fewer than two videos.
    """
    if min(len(a), len(b)) < 2:
        raise ValueError(
            f"Fréchet distance of {len(a)} and {len(b)} videos: use at least 2 videos in each set"
        )
    (mean_a, cov_a), (mean_b, cov_b) = _moments(a.double()), _moments(b.double())
    root = _root(cov_a)
    mixed = torch.linalg.eigvalsh(root @ cov_b @ root).clamp(min=0).sqrt().sum()
    distance = (mean_a - mean_b).square().sum() + cov_a.trace() + cov_b.trace() - 2 * mixed
    return max(distance.item(), 0.0)


def frechet(a: Tensor, reference: Tensor) -> Measure:
    """Return the Fréchet distance with an interval of 1.96 bootstrap standard deviations.

    Percentiles are not used, because resampling with repetition biases every resample upwards.

    Args:
        a: Features [N, D]; the bootstrap resamples them.
        reference: Features [M, D] of the reference.

    Returns:
        Distance and interval.
    """
    generator = torch.Generator().manual_seed(SEED)
    value = frechet_distance(a, reference)
    picks = torch.randint(len(a), (FRECHET_RESAMPLES, len(a)), generator=generator)
    spread = (
        1.96 * torch.tensor([frechet_distance(a[pick], reference) for pick in picks]).std().item()
    )
    return Measure(value, max(value - spread, 0.0), value + spread)


def flicker(videos: Tensor) -> Tensor:
    """Return the flicker of the static background of each video.

    The world's background never changes. Its shade is the median of a video's values per channel.
    Background pixels are those that stay within `BACKGROUND_RANGE` of the shade in every frame and
    channel, so pixels that an object touches are excluded. The flicker is their mean absolute
    difference between successive frames. If fewer than 5 % of the pixels qualify, all pixels count.

    Args:
        videos: Videos [N, 3, F, H, W] in [-1, 1].

    Returns:
        Flicker [N] in grey levels of 0 to 255.
    """
    shade = videos.flatten(2).median(2).values[:, :, None, None, None]
    still = ((videos - shade).abs() < BACKGROUND_RANGE).all(2).all(1)  # [N, H, W]
    still = still | (still.flatten(1).float().mean(1) < 0.05)[:, None, None]
    change = videos.diff(dim=2).abs().mean((1, 2))
    return 127.5 * (change * still).sum((1, 2)) / still.sum((1, 2))


def first_frame_distance(videos: Tensor, given: Tensor) -> Tensor:
    """Return the mean absolute difference between each video's first frame and the given one.

    Args:
        videos: Videos [N, 3, F, H, W] in [-1, 1].
        given: Given frames [N, 3, H, W] in [-1, 1].

    Returns:
        Difference [N] in grey levels of 0 to 255.
    """
    return 127.5 * (videos[:, :, 0] - given).abs().mean((1, 2, 3))


def distances_by_group(features: Tensor, group: Tensor, count: int) -> Tensor:
    """Return the mean Euclidean distance between videos of each caption.

    Args:
        features: Features of the videos [N, D].
        group: Caption of each video, numbered from 0, [N].
        count: Number of captions G.

    Returns:
        Distances [G], float64; NaN for a caption with fewer than two videos.
    """
    same = (group[:, None] == group[None, :]).triu(1)
    first, second = same.nonzero(as_tuple=True)
    distance = (features[first] - features[second]).norm(dim=1).double()
    sums = torch.zeros(count, dtype=torch.float64).index_add_(0, group[first], distance)
    return sums / torch.bincount(group[first], minlength=count)


def diversity(features: Tensor, group: Tensor) -> Measure:
    """Return the mean Euclidean distance between videos of the same caption, averaged over
    captions.

    Args:
        features: Features [N, D].
        group: Caption of each video, numbered from 0, [N]. A caption with a single video does not
            count.

    Returns:
        Distance and interval.

    Raises:
        ValueError: No caption has two videos.
    """
    distances = distances_by_group(features, group, int(group.max()) + 1)
    distances = distances[distances.isfinite()]
    if not len(distances):
        raise ValueError(
            "diversity needs at least two videos of one caption: use seeds_per_caption >= 2"
        )
    return mean_over_groups(distances, torch.arange(len(distances)))
