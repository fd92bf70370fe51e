"""Videos of samplers with what the judges say about them, for `shapes_reward.py`.

Shapes: N videos [N, 3, F, H, W] in [-1, 1]; features [N, 14]; G captions.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from examples.shapes.second_judge import SecondJudge
from tdmvid.backbones.base import Backbone
from tdmvid.data.video import write_strip
from tdmvid.rewards import shapes as rewards
from tdmvid.sampling.student import use_student
from tdmvid.scoring.intervals import Measure, percentiles, resamples
from tdmvid.shapes import metrics, world
from tdmvid.shapes.evaluate import ScoredSampler
from tdmvid.shapes.score import number_captions

Things = list[tuple[world.Thing, ...]]
BATCH = 32
FRECHET_RESAMPLES = 200


@dataclass(frozen=True)
class Judged:
    """Videos of one sampler and what was measured on each of them."""

    videos: Tensor
    """Videos [N, 3, F, H, W], uint8."""
    measured: dict[str, Tensor]
    """Values [N] by name, and "features" [N, 14] of the second judge."""
    group: Tensor
    """Caption of each video [N], numbered from 0."""
    pairs: Tensor
    """Whether the caption names two objects [N]."""


@torch.no_grad()
def sample(backbone: Backbone, sampler: ScoredSampler, things: Things, seed: int) -> Tensor:
    """Sample one video per caption with the stock pipeline. All samplers get the same noise.

    Args:
        backbone: The embedded teacher.
        sampler: Settings of a stock pipeline call.
        things: Objects of each of N captions.
        seed: Seed of the noise.

    Returns:
        Videos [N, 3, F, H, W], uint8.
    """
    pipeline = use_student(backbone, sampler.student, steps=sampler.steps)
    null, parts = backbone.encode_prompts([""]), []
    generator = torch.Generator().manual_seed(seed)
    for start in tqdm(range(0, len(things), BATCH), desc=sampler.name):
        named = things[start : start + BATCH]
        cond = backbone.encode_prompts([world.caption(t) for t in named])
        z = torch.randn(len(named), *backbone.latent_shape(), generator=generator)
        latents = backbone.stock.latents(
            pipeline, z, cond, steps=sampler.steps, cfg=sampler.cfg, null=null, guidance={}
        )
        pixels = backbone.decode(latents).float().clamp(-1, 1)
        parts.append((pixels * 127.5 + 127.5).round().to(torch.uint8))
    return torch.cat(parts)


def measure(videos: Tensor, things: Things, judge: SecondJudge) -> dict[str, Tensor]:
    """Judge videos with the second judge, and compute the rewards that runs are trained with.

    Args:
        videos: Videos [N, 3, F, H, W], uint8.
        things: Objects of each caption.
        judge: The second judge.

    Returns:
        Values [N] by name, and "features" [N, 14].
    """
    parts = []
    for start in tqdm(range(0, len(videos), BATCH), desc="judging", leave=False):
        named = things[start : start + BATCH]
        pixels = videos[start : start + BATCH].float() / 127.5 - 1
        prompts = [world.caption(t) for t in named]
        found = judge.judge(pixels, named)
        found["bright"] = rewards.bright(pixels, prompts).bool()
        found["trained on"] = rewards.clear(pixels, prompts).bool()
        found["flicker"] = metrics.flicker(pixels)
        parts.append(found)
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def judged(
    path: Path, facts: dict, things: Things, judge: SecondJudge, draw: Callable[[], Tensor]
) -> Judged:
    """Sample and judge, or read what an earlier call stored.

    Args:
        path: File of videos and measures.
        facts: What determines them. An earlier file with other facts is refused.
        things: Objects of each caption.
        judge: The second judge.
        draw: Returns the videos, uint8.

    Returns:
        Videos and measures.

    Raises:
        ValueError: The file is of another protocol, student or judge.
    """
    said = json.dumps(facts, sort_keys=True)
    if not path.is_file():
        videos = draw()
        tensors = {"videos": videos, **measure(videos, things, judge)}
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, path.with_suffix(".part"), metadata={"facts": said})
        path.with_suffix(".part").replace(path)
    with safe_open(path, "pt") as file:
        found = (file.metadata() or {}).get("facts")
    if found != said:
        raise ValueError(
            f"{path} was measured with {found}, not with {said}: delete it, or use another --out"
        )
    tensors = load_file(path)
    pairs = torch.tensor([len(t) == 2 for t in things])
    return Judged(tensors.pop("videos"), tensors, number_captions(things), pairs)


def pool(parts: Sequence[tuple[Judged, Things]]) -> Judged:
    """Join the videos of evaluations that differ in their seed.

    Args:
        parts: Videos of one sampler in each evaluation, and the objects of their captions.

    Returns:
        All videos, with one number per distinct caption.
    """
    ones = [one for one, _ in parts]
    return Judged(
        torch.cat([one.videos for one in ones]),
        {name: torch.cat([one.measured[name] for one in ones]) for name in ones[0].measured},
        number_captions([thing for _, things in parts for thing in things]),
        torch.cat([one.pairs for one in ones]),
    )


def ratio_of_diversity(ours: Judged, theirs: Judged, subset: str = "") -> Measure:
    """Compare the mean distance between videos of one caption.

    Args:
        ours: Videos of one sampler.
        theirs: Videos of another sampler with the same captions.
        subset: Compare only the videos with this measure, on captions with at least two of them in
            both samplers; "" compares all.

    Returns:
        Ratio of the means over captions, with a bootstrap interval over captions, which one caption
        does not have.
    """
    distances = []
    for one in (ours, theirs):
        features, group = one.measured["features"], one.group
        if subset:
            chosen = one.measured[subset]
            features, group = features[chosen], group[chosen]
        distances.append(metrics.distances_by_group(features, group, int(ours.group.max()) + 1))
    both = distances[0].isfinite() & distances[1].isfinite()
    if not both.any():
        raise ValueError(f"no caption has two videos that are {subset}: use more --seeds")
    a, b = distances[0][both], distances[1][both]
    if len(a) == 1:
        return Measure((a / b).item())
    picks = resamples(len(a))
    return percentiles((a.sum() / b.sum()).item(), a[picks].sum(1) / b[picks].sum(1))


def matched(truth: Judged, subset: str, share: float) -> Tensor:
    """Choose ground truth with a given share of captions with two objects.

    Args:
        truth: Ground-truth videos.
        subset: Choose only videos with this measure; "" chooses from all.
        share: Share of captions with two objects.

    Returns:
        Features [M, 14].
    """
    chosen = truth.measured[subset] if subset else torch.ones_like(truth.pairs)
    parts = [
        (truth.measured["features"][chosen & kind], part)
        for kind, part in ((~truth.pairs, 1 - share), (truth.pairs, share))
        if part
    ]
    size = min(len(features) / part for features, part in parts)
    return torch.cat([features[: round(size * part)] for features, part in parts])


def frechet_of(features: Tensor, pairs: Tensor, truth: Judged, subset: str) -> float:
    """Compute the Fréchet distance to ground truth with the same share of two-object captions.

    Args:
        features: Features [N, 14].
        pairs: Whether each caption names two objects [N].
        truth: Ground-truth videos.
        subset: Measure that the ground truth has to have; "" for all.

    Returns:
        The distance.
    """
    return metrics.frechet_distance(features, matched(truth, subset, pairs.float().mean().item()))


def compare_frechet(ours: Judged, theirs: Judged, truth: Judged, subset: str) -> dict:
    """Compare the Fréchet distances of two samplers within a subset.

    Both use the same number of videos, because the distance of few videos is biased upwards.

    Args:
        ours: Videos of one sampler.
        theirs: Videos of another sampler.
        truth: Ground-truth videos.
        subset: Measure that videos and ground truth have to have; "" compares all.

    Returns:
        "ours" and "theirs", the "difference" with a bootstrap interval of 1.96 standard deviations
        over videos, and the "count" of videos of each.
    """
    generator, chosen = torch.Generator().manual_seed(0), []
    for one in (ours, theirs):
        rows = one.measured[subset] if subset else torch.ones_like(one.pairs)
        rows = rows.nonzero()[:, 0]
        rows = rows[torch.randperm(len(rows), generator=generator)]
        chosen.append((one.measured["features"][rows], one.pairs[rows]))
    count = min(len(features) for features, _ in chosen)
    chosen = [(features[:count], pairs[:count]) for features, pairs in chosen]
    values = [frechet_of(*one, truth, subset) for one in chosen]
    differences = []
    for _ in range(FRECHET_RESAMPLES):
        a, b = (
            frechet_of(features[pick], pairs[pick], truth, subset)
            for features, pairs in chosen
            for pick in [torch.randint(count, (count,), generator=generator)]
        )
        differences.append(a - b)
    spread = 1.96 * torch.tensor(differences).std().item()
    middle = values[0] - values[1]
    return {
        "ours": values[0],
        "theirs": values[1],
        "difference": Measure(middle, middle - spread, middle + spread),
        "count": count,
    }


def write_picture(path: Path, found: dict[str, Judged], names: list[str], count: int) -> None:
    """Write the first videos of different captions: for each caption a row per sampler.

    Args:
        path: File to write.
        found: Videos by name.
        names: Samplers to show.
        count: Number of captions with two objects; the same number with one object is shown.
    """
    first = found[names[0]]
    start = torch.ones_like(first.pairs)
    start[1:] = first.group[1:] != first.group[:-1]
    rows = [
        index
        for kind in (~first.pairs, first.pairs)
        for index in (start & kind).nonzero()[:count, 0].tolist()
    ]
    videos = torch.stack([found[name].videos[index] for index in rows for name in names])
    write_strip(path, videos.float() / 127.5 - 1, group=len(names), width=700)
