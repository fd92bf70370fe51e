"""Score generated videos of the shapes world against ground truth.

    things = evaluation_set(64, 4, seed=0)
    reference = reference_features(judge, things, 4096, seed=1)
    scores = score_videos(judge, videos, things, reference)   # videos[i] was sampled for things[i]

Shapes: N videos [N, 3, F, H, W] in [-1, 1].
"""

from __future__ import annotations

import itertools
from dataclasses import asdict

import torch
from torch import Tensor
from tqdm import tqdm

from . import metrics, world
from .judge import Judge, attributes, features

SINGLES = sum(
    world.held_out(world.caption((world.Thing(*index),)))
    for index in itertools.product(
        range(len(world.COLOURS)), range(len(world.SHAPES)), range(len(world.DIRECTIONS))
    )
)
"""Number of held-out captions of one object."""
ATTRIBUTES = ("all", "colour", "shape", "direction")


def evaluation_set(
    captions: int, seeds_per_caption: int, seed: int, *, pair_share: float = world.PAIR_SHARE
) -> list[tuple[world.Thing, ...]]:
    """Return held-out captions of one and two objects, by default in the world's shares.

    The captions are shuffled, so the first part of the set is a sample of it; the copies of a
    caption are consecutive. Captions of two objects are distinct. Captions of one object repeat if
    more than `SINGLES` are wanted. Use different noise for every ROW, not only for every seed:
    rows with equal captions and equal noise would be the same video.

    Args:
        captions: Number of captions.
        seeds_per_caption: Number of copies of each caption.
        seed: Seed of the random choice.
        pair_share: Share of captions with two objects.

    Returns:
        Objects of each caption, `captions * seeds_per_caption` rows.
    """
    generator = torch.Generator().manual_seed(seed)
    wanted = {2: round(captions * pair_share)}
    wanted[1] = captions - wanted[2]
    chosen: dict[int, list[tuple[world.Thing, ...]]] = {1: [], 2: []}
    while any(len(chosen[size]) < wanted[size] for size in wanted):
        for things in world.draw_captions(64, generator, test=True):
            mine = chosen[len(things)]
            known = mine[len(mine) // SINGLES * SINGLES :] if len(things) == 1 else mine
            if len(mine) < wanted[len(things)] and things not in known:
                mine.append(things)
    mixed = [*chosen[1], *chosen[2]]
    order = torch.randperm(len(mixed), generator=generator).tolist()
    return [mixed[index] for index in order for _ in range(seeds_per_caption)]


def number_captions(things: list[tuple[world.Thing, ...]]) -> Tensor:
    """Number the captions from 0.

    Args:
        things: Objects of each of N captions.

    Returns:
        Numbers [N].
    """
    numbers: dict[tuple[world.Thing, ...], int] = {}
    return torch.tensor([numbers.setdefault(t, len(numbers)) for t in things])


def reference_features(
    judge: Judge, things: list[tuple[world.Thing, ...]], count: int, seed: int
) -> Tensor:
    """Compute features of new ground-truth videos for the captions, repeated in turn.

    Args:
        judge: The judge.
        things: Objects of each caption.
        count: Number of videos N.
        seed: Seed of the videos.

    Returns:
        Features [N, 14], N = `count`.
    """
    generator = torch.Generator().manual_seed(seed)
    wanted = [things[index % len(things)] for index in range(count)]
    parts = []
    for start in tqdm(range(0, count, 64), desc="reference", leave=False):
        parts.append(features(judge, world.draw_videos(wanted[start : start + 64], generator)))
    return torch.cat(parts)


def score_videos(
    judge: Judge,
    videos: Tensor,
    things: list[tuple[world.Thing, ...]],
    reference_features: Tensor,
    given: Tensor | None = None,
) -> dict[str, dict[str, float | None]]:
    """Compute accuracy, Fréchet distance, flicker and diversity with 95 % confidence intervals.

    Args:
        judge: The judge.
        videos: Videos [N, 3, F, H, W] in [-1, 1].
        things: Objects that each video should show. Videos of the same caption form one group of
            the bootstrap.
        reference_features: Features [M, 14] of ground-truth videos.
        given: First frames [N, 3, H, W] that the videos had to start from.

    Returns:
        {"value", "low", "high"} for "all", "colour", "shape" and "direction" (shares of correct
        videos), "frechet", "flicker", "diversity" and, with `given`, "first_frame". low and high
        are None if no interval can be estimated.

    Raises:
        ValueError: The numbers of videos and captions differ.
    """
    if len(videos) != len(things):
        raise ValueError(
            f"{len(videos)} videos but {len(things)} captions: give one caption per video"
        )
    videos, group = videos.float().clamp(-1, 1), number_captions(things)
    right, seen = attributes(judge, videos, things), features(judge, videos)
    out = {name: metrics.mean_over_groups(right[name], group) for name in ATTRIBUTES}
    out["frechet"] = metrics.frechet(seen, reference_features)
    out["flicker"] = metrics.mean_over_groups(metrics.flicker(videos.cpu()), group)
    out["diversity"] = metrics.diversity(seen, group)
    if given is not None:
        kept = metrics.first_frame_distance(videos.cpu(), given)
        out["first_frame"] = metrics.mean_over_groups(kept, group)
    return {name: asdict(measure) for name, measure in out.items()}
