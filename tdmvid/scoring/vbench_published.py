"""Published VBench results of models, with their sources, as known answers for the totals."""

from __future__ import annotations

from dataclasses import dataclass

from .vbench_scores import DIMENSIONS


@dataclass(frozen=True)
class Published:
    """Published results of a model, in per cent."""

    model: str
    source: str
    """Where the scores are listed."""
    scores: dict[str, float]
    """Score of every dimension."""
    totals: dict[str, float]
    """Totals "quality", "semantic" and "total"."""


def _published(model: str, source: str, totals: str, scores: str) -> Published:
    """Read a row of a table: total, quality, semantic, and scores in the order of `DIMENSIONS`."""
    total, quality, semantic = map(float, totals.split())
    by_name = dict(zip(DIMENSIONS, map(float, scores.split()), strict=True))
    found = {"quality": quality, "semantic": semantic, "total": total}
    return Published(model, source, by_name, found)


FLASHVIDEO = "arXiv 2502.05179, Table 1"
SANA_VIDEO_2 = "arXiv 2607.21553, Table 8"

PUBLISHED = (
    _published(
        "CogVideoX-2B",
        "the leaderboard; quality also in arXiv 2503.15417",
        "80.91 82.18 75.83",
        "96.78 96.63 98.89 97.73 59.86 60.82 61.68"
        " 83.37 62.63 98.00 79.41 69.90 51.14 24.80 24.36 26.66",
    ),
    _published(
        "CogVideoX-5B",
        FLASHVIDEO,
        "81.61 82.75 77.04",
        "96.23 96.52 98.66 96.92 70.97 61.98 62.90"
        " 85.23 62.11 99.40 82.81 66.35 53.20 24.91 25.38 27.59",
    ),
    _published(
        "CogVideoX1.5-5B",
        FLASHVIDEO,
        "82.17 82.78 79.76",
        "96.87 97.35 98.88 98.31 50.93 62.79 65.02"
        " 87.47 69.65 97.20 87.55 80.25 52.91 24.89 25.19 27.30",
    ),
    _published(
        "Wan2.1-T2V-1.3B",
        SANA_VIDEO_2,
        "83.31 85.23 75.65",
        "97.56 97.93 99.55 98.52 65.19 65.46 67.01"
        " 88.81 74.83 94.00 89.20 73.04 41.96 21.81 23.13 25.50",
    ),
    _published(
        "Wan2.1-T2V-14B",
        SANA_VIDEO_2,
        "83.69 85.59 76.11",
        "97.52 98.09 99.46 98.30 65.46 66.07 69.43"
        " 86.28 69.58 95.40 88.59 75.39 45.75 22.64 23.19 25.91",
    ),
)
"""The source of CogVideoX-5B lists CogVideoX-2B with a motion smoothness of 99.02 instead of 97.73.
That value does not give the totals of the same row.
"""
