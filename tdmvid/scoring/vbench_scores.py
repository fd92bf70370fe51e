"""The dimensions of VBench and VBench-I2V, their normalisation, and the totals.

The VBench package scores single dimensions (see vbench_worker.py); this file does what its
leaderboards compute from them (scripts/constant.py of its repository). Scores are shares, 0.9678
instead of 96.78 (arXiv 2311.17982 for text to video, 2411.13503 for image to video).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from .intervals import RESAMPLES, SEED, Measure, percentiles

Scores = dict[str, dict[str, float]]
"""Score of each video, by dimension and file."""


@dataclass(frozen=True)
class Dimension:
    """One of VBench's dimensions: the total it contributes to, and the range that is mapped to [0,
    1].
    """

    kind: Literal["quality", "semantic", "i2v", "extra"]
    """Total that it is part of. `extra` is part of none."""
    low: float = 0.0
    high: float = 1.0
    weight: float = 1.0
    custom: bool = True
    """Whether any prompt can be scored. The others need information that only VBench's own prompts
    have.
    """
    clip_seconds: int = 2
    """Length in seconds of the clips that VBench-Long cuts a video into."""
    skips: bool = False
    """Whether the package leaves out videos that do not show the prompt's object and averages over
    the rest.
    """
    scale: float = 1.0
    """Divisor of a single video's score: the package reports imaging quality in per cent."""

    def normalised(self, score: float) -> float:
        """Return the score as it counts in the totals.

        Args:
            score: Score of the dimension.

        Returns:
            Normalised score.
        """
        return (score - self.low) / (self.high - self.low)


DIMENSIONS = {
    "subject_consistency": Dimension("quality", 0.1462),
    "background_consistency": Dimension("quality", 0.2615),
    "temporal_flickering": Dimension("quality", 0.6293),
    "motion_smoothness": Dimension("quality", 0.706, 0.9975),
    "dynamic_degree": Dimension("quality", weight=0.5),
    "aesthetic_quality": Dimension("quality"),
    "imaging_quality": Dimension("quality", scale=100.0),
    "object_class": Dimension("semantic", custom=False),
    "multiple_objects": Dimension("semantic", custom=False),
    "human_action": Dimension("semantic", clip_seconds=10),
    "color": Dimension("semantic", custom=False, skips=True),
    "spatial_relationship": Dimension("semantic", custom=False),
    "scene": Dimension("semantic", 0.0, 0.8222, custom=False),
    "appearance_style": Dimension("semantic", 0.0009, 0.2855, custom=False),
    "temporal_style": Dimension("semantic", 0.0, 0.364, clip_seconds=10),
    "overall_consistency": Dimension("semantic", 0.0, 0.364, clip_seconds=10),
}


@dataclass(frozen=True)
class Suite:
    """A benchmark of the VBench package."""

    name: str
    dimensions: Mapping[str, Dimension]
    shares: Mapping[str, float]
    """Share of each kind of dimensions in the total score."""

    @property
    def counted(self) -> tuple[str, ...]:
        """Names of the dimensions that are part of a total."""
        return tuple(name for name, one in self.dimensions.items() if one.kind in self.shares)


T2V = Suite("VBench", DIMENSIONS, {"quality": 0.8, "semantic": 0.2})
I2V = Suite(
    "VBench-I2V",
    {
        "i2v_subject": Dimension("i2v", 0.1462),
        "i2v_background": Dimension("i2v", 0.2615),
        "camera_motion": Dimension("i2v", weight=0.1, custom=False),
        **{
            name: dimension
            for name, dimension in DIMENSIONS.items()
            if dimension.kind == "quality" and name != "temporal_flickering"
        },
        "temporal_flickering": Dimension("extra", 0.6293),
    },
    {"quality": 0.5, "i2v": 0.5},
)
SUITES = {"t2v": T2V, "i2v": I2V}
"""Benchmarks by the value of `suite` in a config."""
FACTS: dict[str, Dimension] = {**I2V.dimensions, **T2V.dimensions}
"""All dimensions by name. What both suites have is measured and normalised in the same way."""


def skips_videos(name: str) -> bool:
    """Return whether it depends on the videos themselves how many of them a score is a mean of.

    Args:
        name: Name of a score.

    Returns:
        Whether videos that move, or do not show the prompt's object, are left out.
    """
    return name == "temporal_flickering" or (name in FACTS and FACTS[name].skips)


def check_dimensions(names: list[str], *, custom: bool, suite: Suite = T2V) -> None:
    """Check names of dimensions.

    Args:
        names: The names.
        custom: Whether the prompts are not VBench's own.
        suite: The benchmark.

    Raises:
        ValueError: A dimension is unknown, or cannot be scored with custom prompts.
    """
    for name in names:
        if name not in suite.dimensions:
            raise ValueError(
                f"dimensions: {name!r} is not one of {suite.name}: choose from"
                f" {', '.join(suite.dimensions)}"
            )
        if custom and not suite.dimensions[name].custom:
            fitting = [key for key, dimension in suite.dimensions.items() if dimension.custom]
            raise ValueError(
                f"dimensions: {name!r} needs VBench's own prompts: with custom prompts choose from"
                f" {', '.join(fitting)}"
            )


def totals(scores: Mapping[str, float], suite: Suite = T2V) -> dict[str, float]:
    """Compute the totals of each kind of dimensions, e.g. "quality" and "semantic", and "total".

    Args:
        scores: Scores by dimension.
        suite: The benchmark.

    Returns:
        Each total for which all dimensions were scored.
    """
    out = {}
    for kind in suite.shares:
        parts = {
            name: dimension
            for name, dimension in suite.dimensions.items()
            if dimension.kind == kind
        }
        if parts.keys() <= scores.keys():
            weight = sum(dimension.weight for dimension in parts.values())
            out[kind] = (
                sum(
                    dimension.weight * dimension.normalised(scores[name])
                    for name, dimension in parts.items()
                )
                / weight
            )
    if len(out) == len(suite.shares):
        out["total"] = sum(share * out[kind] for kind, share in suite.shares.items())
    return out


def read_scores(path: Path, wanted: Mapping[str, list[str]]) -> Scores:
    """Read the scores of all videos from a result file of the package.

    A video that VBench-Long has cut gets the mean of its clips.

    Args:
        path: The result file.
        wanted: Files that must have a score, by dimension.

    Returns:
        Scores by dimension and file.

    Raises:
        ValueError: A dimension or video is missing, a score is not finite, or the videos do not
            average to the package's own result.
    """
    results, out = json.loads(path.read_text()), {}
    for name, files in wanted.items():
        if name not in results:
            raise ValueError(
                f"{path} has no {name}: the scoring stopped early; see the log next to it"
            )
        clips: dict[str, list[float]] = {}
        for entry in results[name][-1]:  # camera_motion has means of each motion before them
            clips.setdefault(_video(entry["video_path"]), []).append(
                float(entry["video_results"]) / FACTS[name].scale
            )
        scores = {file: sum(values) / len(values) for file, values in clips.items()}
        if FACTS[name].skips:
            files = [file for file in files if file in scores] or files
        missing = sorted(set(files) - scores.keys())
        if missing:
            raise ValueError(
                f"{path}: {name} left out {len(missing)} of {len(files)} videos, the first is"
                f" {missing[0]!r}: see the log next to it"
            )
        bad = [file for file in files if not math.isfinite(scores[file])]
        if bad:
            raise ValueError(f"{path}: {name} of {bad[0]!r} is {scores[bad[0]]}: check this video")
        out[name] = {file: scores[file] for file in files}
        if files:  # the filter of temporal_flickering may keep no video
            _check_mean(
                path,
                name,
                float(results[name][0]),
                list(out[name].values()),
                [v for values in clips.values() for v in values],
            )
    return out


def _video(path: str) -> str:
    """Return the file name of the video that a path in the package's results belongs to. Clips are
    in split_clip/<video>/.
    """
    parts = Path(path).parts
    return parts[parts.index("split_clip") + 1] + ".mp4" if "split_clip" in parts else parts[-1]


def _check_mean(
    path: Path, name: str, stated: float, videos: list[float], clips: list[float]
) -> None:
    # The package averages some dimensions over videos and some over clips.
    means = [sum(values) / len(values) for values in (videos, clips)]
    if not any(math.isclose(mean, stated, abs_tol=2e-3) for mean in means):
        raise ValueError(
            f"{path}: {name} is {stated:.5f}, but its videos average to {means[0]:.5f}: it contains"
            " results of another run; delete it and score again"
        )


class Bootstrap:
    """Scores and differences under one resampling of the prompts that all samplers share.

    Prompts are resampled within each set of dimensions, so every resample has the suite's number of
    prompts per dimension.

    Args:
        prompts: Prompt of each file.
        dimensions: Dimensions of each prompt.
        suite: The benchmark, which determines the totals.
    """

    def __init__(
        self,
        prompts: Mapping[str, str],
        dimensions: Mapping[str, frozenset[str]],
        suite: Suite = T2V,
    ):
        self.files, self.suite = prompts, suite
        self.index = {prompt: i for i, prompt in enumerate(dimensions)}
        strata: dict[frozenset[str], list[int]] = {}
        for prompt, names in dimensions.items():
            strata.setdefault(frozenset(names), []).append(self.index[prompt])
        generator = torch.Generator().manual_seed(SEED)
        self.weight = torch.zeros(RESAMPLES, len(self.index), dtype=torch.float64)
        for members in strata.values():
            picks = torch.tensor(members)[
                torch.randint(len(members), (RESAMPLES, len(members)), generator=generator)
            ]
            self.weight.scatter_add_(1, picks, torch.ones_like(picks, dtype=torch.float64))

    def means(self, scores: Scores) -> tuple[dict[str, float], dict[str, Tensor]]:
        """Compute dimensions and totals of the data and of every resample. Dimensions without
        videos are left out.

        Args:
            scores: Scores by dimension and file.

        Returns:
            Values by name, and values in the resamples [R] by name.
        """
        values, resampled = {}, {}
        for name, videos in ((name, videos) for name, videos in scores.items() if videos):
            sums, counts = torch.zeros(2, len(self.index), dtype=torch.float64)
            for file, score in videos.items():
                sums[self.index[self.files[file]]] += score
                counts[self.index[self.files[file]]] += 1
            values[name] = (sums.sum() / counts.sum()).item()
            resampled[name] = (self.weight @ sums) / (self.weight @ counts)
        return values | totals(values, self.suite), resampled | totals(resampled, self.suite)

    def measures(self, scores: Scores) -> dict[str, Measure]:
        """Compute dimensions and totals with their intervals.

        Args:
            scores: Scores by dimension and file.

        Returns:
            Values by name.
        """
        values, resampled = self.means(scores)
        return self._with_intervals(values, resampled, scores)

    def differences(self, ours: Scores, theirs: Scores) -> dict[str, Measure]:
        """Compare two samplers prompt by prompt. The interval is that of the difference.

        Args:
            ours: Scores by dimension and file.
            theirs: Scores by dimension and file.

        Returns:
            Differences (ours minus theirs) by name.
        """
        ours, theirs = self._shared(ours, theirs), self._shared(theirs, ours)
        (a, many_a), (b, many_b) = self.means(ours), self.means(theirs)
        values = {name: value - b[name] for name, value in a.items()}
        resampled = {name: many_a[name] - many_b[name] for name in a}
        return self._with_intervals(values, resampled, ours)

    def _with_intervals(
        self, values: dict[str, float], resampled: dict[str, Tensor], scores: Scores
    ) -> dict[str, Measure]:
        """Add intervals to dimensions and totals that vary between resamples."""
        varying = {name for name, videos in scores.items() if self._varies(videos)}
        out = {}
        for name, value in values.items():
            many = resampled[name][resampled[name].isfinite()]  # few prompts may be left out of one
            known = name in varying if name in scores else bool(varying)
            out[name] = percentiles(value, many) if known else Measure(value)
        return out

    def _varies(self, videos: Mapping[str, float]) -> bool:
        """Return whether resamples differ in how often they contain the prompts of these files.

        They do not for one prompt, nor for prompts that are alone in their sets of dimensions.
        """
        scored = sorted({self.index[self.files[file]] for file in videos})
        weight = self.weight[:, scored]
        return len(scored) > 1 and bool((weight != weight[:1]).any())

    def _shared(self, scores: Scores, others: Scores) -> Scores:
        """Keep the scores of prompts that both sides have. Raises ValueError if prompts differ for
        a dimension that leaves none out.
        """
        if scores.keys() != others.keys():
            raise ValueError(
                "the two sides were not scored on the same dimensions: score both with the same"
                " configuration"
            )
        out = {}
        for name, videos in scores.items():
            mine, theirs = ({self.files[file] for file in side} for side in (videos, others[name]))
            common = mine & theirs
            if mine != theirs and not skips_videos(name):
                raise ValueError(
                    f"{name}: the two sides were not scored on the same prompts: score both with"
                    " the same configuration"
                )
            out[name] = {
                file: score for file, score in videos.items() if self.files[file] in common
            }
        return out
