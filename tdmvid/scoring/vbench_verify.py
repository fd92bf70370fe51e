"""Verify the VBench pipeline with known answers: published totals, and videos with known
defects.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ..config import ClipSize, VBenchConfig
from ..data.video import write_video
from .vbench_published import PUBLISHED
from .vbench_runner import find_environment, ready, score_folder, setup_command
from .vbench_scores import totals
from .vbench_suite import Entry, check_videos, files_of

SIZE = ClipSize(frames=16, height=256, width=256, fps=8)
CLEAN = "clean"
ROUNDING = 0.005
"""In per cent. Published results, and the scores they are computed from, have two decimals."""


EXPECTED = (
    ("flickering", "temporal_flickering", "lower"),
    ("noisy", "temporal_flickering", "lower"),
    ("frozen", "temporal_flickering", "higher"),
    ("flickering", "motion_smoothness", "lower"),
    ("noisy", "motion_smoothness", "lower"),
    ("noisy", "imaging_quality", "lower"),
    ("shifting colours", "background_consistency", "lower"),
    ("frozen", "subject_consistency", "higher"),
)
"""A defect, a dimension, and whether its score is lower or higher than that of the clean video."""


@dataclass(frozen=True)
class Answer:
    """The result of one check. `right` is None if it could not be run."""

    question: str
    found: str
    right: bool | None

    def __str__(self) -> str:
        mark = {True: "right  ", False: "WRONG  ", None: "not run"}[self.right]
        return f"{mark}  {self.question}: {self.found}"


def check_totals() -> Iterator[Answer]:
    """Check that the published scores of dimensions give the published totals.

    Yields:
        One answer per total.
    """
    for entry in PUBLISHED:
        found = totals({name: score / 100 for name, score in entry.scores.items()})
        for name, published in entry.totals.items():
            value = 100 * found[name]
            right = abs(value - published) <= 2 * ROUNDING
            text = f"{value:.2f} (published: {published:.2f})"
            yield Answer(f"{entry.model}, {name} ({entry.source})", text, right)


def check_defects(config: VBenchConfig) -> Iterator[Answer]:
    """Check that videos with known defects change the available dimensions as expected.

    Args:
        config: Settings that locate the package and its weights.

    Yields:
        One answer per defect and dimension.
    """
    asked = dict.fromkeys(name for _, name, _ in EXPECTED)
    environment = find_environment(config)
    if not environment.python.exists():
        for name in asked:
            reason = f"no environment; create it with `{setup_command(environment.folder)}`"
            yield Answer(name, reason, None)
        return
    config = replace(config, prompts="synthetic", augmented="", seeds=1, limit=0, video=SIZE)
    videos = synthetic_videos()
    entries = [Entry(name, tuple(asked), name, 1, {}) for name in videos]
    checked = ready(config, entries)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        for entry, video in zip(entries, videos.values(), strict=True):
            (file,) = files_of(entry, SIZE.frames)
            write_video(out / file, video, fps=SIZE.fps, lossless=True)
        digests = check_videos(out, [files_of(each, SIZE.frames)[0] for each in entries], SIZE)
        scores = score_folder(out, out / "scoring", config, entries, checked, digests, ["cpu"])
    for defect, name, where in EXPECTED:
        question = f"{name} of the {defect} video is {where} than of the clean one"
        if name not in scores:
            yield Answer(question, "its weights are missing", None)
            continue
        one, clean = (scores[name][f"{video}-0.mp4"] for video in (defect, CLEAN))
        right = one < clean if where == "lower" else one > clean
        yield Answer(question, f"{one:.4f} and {clean:.4f}", right)


def synthetic_videos() -> dict[str, Tensor]:
    """Generate a clean video and versions of it with defects.

    Returns:
        Videos [3, F, H, W] in [-1, 1] by name.
    """
    frames, height, width = SIZE.frames, SIZE.height, SIZE.width
    generator = torch.Generator().manual_seed(0)
    x = torch.linspace(0, 6.28, width)[None, None, None]
    y = torch.linspace(0, 6.28, height)[None, None, :, None]
    phase = torch.linspace(0, 1.0, frames)[None, :, None, None]
    tint = torch.tensor([0.0, 1.0, 2.0])[:, None, None, None]
    clean = 0.5 * (x + phase + tint).sin() * (y + tint).cos()
    flashes = 0.3 * (-1.0) ** torch.arange(frames)[None, :, None, None]
    colours = torch.tensor([0.4, -0.4, 0.2])[:, None, None, None] * phase
    return {
        CLEAN: clean,
        "frozen": clean[:, :1].expand_as(clean),
        "flickering": clean + flashes,
        "noisy": clean + 0.3 * torch.randn(clean.shape, generator=generator),
        "shifting colours": clean + colours,
    }


def verify(config: VBenchConfig) -> bool:
    """Run and print all checks.

    Args:
        config: Settings that locate the package and its weights.

    Returns:
        True if no check failed.
    """
    answers = [*check_totals(), *check_defects(config)]
    for answer in answers:
        print(answer, flush=True)
    return all(answer.right is not False for answer in answers)
