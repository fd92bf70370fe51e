"""What the samples in a folder look like: motion, colour, sharpness and diversity, with intervals.

A folder that `tdmvid sample` made says in its manifest.jsonl which prompt each file shows. In any
other one, files of a prompt share their name up to a number: "a ring-0.mp4" and "a ring-1.mp4".
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..data.files import short
from ..data.video import IMAGES, VIDEOS, media_files, read_image, read_video
from ..guard.measures import appearance, diversity, thumbnails
from ..sampling.manifest import read_manifest
from .intervals import Measure, mean_over_groups


@dataclass(frozen=True)
class FolderScores:
    """The measures of a folder's samples."""

    folder: Path
    samples: int
    prompts: int
    scores: dict[str, Measure]
    """By name; intervals by a bootstrap over prompts."""

    def facts(self) -> dict:
        """Return the scores as JSON holds them."""
        return {
            "folder": str(self.folder),
            "samples": self.samples,
            "prompts": self.prompts,
            "scores": {name: asdict(score) for name, score in self.scores.items()},
        }


def score_folder(folder: Path, *, limit: int = 0) -> FolderScores:
    """Measure every sample of a folder.

    Args:
        limit: Use only the first so many files; 0 uses all.

    Raises:
        ValueError: If there are none, or they are not all of one size.
    """
    shown = samples_of(folder, limit=limit)
    each: dict[str, list[Tensor]] = {}
    small = []
    size: tuple[int, ...] = ()
    for path in shown:
        video = read_sample(path)[None]
        size = size or tuple(video.shape[2:])
        if tuple(video.shape[2:]) != size:
            raise ValueError(
                f"{path}: {_size(tuple(video.shape[2:]))}, where other samples of {folder} are"
                f" {_size(size)}: give a folder of samples of one size"
            )
        for name, value in appearance(video).items():
            each.setdefault(name, []).append(value)
        small.append(thumbnails(video))
    prompts = list(shown.values())
    numbers = {prompt: number for number, prompt in enumerate(dict.fromkeys(prompts))}
    group = torch.tensor([numbers[prompt] for prompt in prompts])
    scores = {name: mean_over_groups(torch.cat(values), group) for name, values in each.items()}
    scores |= dict(_diversity(torch.cat(small), group))
    return FolderScores(folder, len(prompts), len(numbers), scores)


def describe(scored: list[FolderScores]) -> str:
    """Return a table with a column for each folder."""
    names = dict.fromkeys(name for one in scored for name in one.scores)
    head = ["", *(f"{one.folder} ({one.samples} of {one.prompts} prompts)" for one in scored)]
    rows = [head]
    for name in names:
        found = [one.scores.get(name) for one in scored]
        rows.append([LABELS[name], *(_text(measure) for measure in found)])
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


LABELS = {
    "motion": "motion",
    "flicker": "flicker",
    "contrast": "contrast",
    "saturation": "saturation",
    "clipped": "clipped colours",
    "sharpness": "sharpness",
    "seeds": "diversity between seeds of a prompt",
    "prompts": "diversity between prompts",
}


def _text(measure: Measure | None) -> str:
    if measure is None:
        return "\N{EN DASH}"
    return f"{measure.value:.4f} [{measure.low:.4f}, {measure.high:.4f}]"


def within_prompts(small: Tensor, group: Tensor) -> Measure | None:
    """Return the mean distance of two samples of a prompt; None where each prompt has one sample.

    Args:
        small: Features [N, D].
        group: The number of each sample's prompt, from 0: [N].
    """
    return dict(_diversity(small, group)).get("seeds")


def _diversity(small: Tensor, group: Tensor) -> Iterator[tuple[str, Measure]]:
    """Distances of samples, averaged over the pairs of each prompt first."""
    prompts = group.tolist()
    pairs = torch.ones(len(prompts), len(prompts)).triu(1).nonzero()
    same = group[pairs[:, 0]] == group[pairs[:, 1]]
    for name, values in diversity(small, prompts).items():
        first = group[pairs[same if name == "seeds" else ~same][:, 0]]
        yield name, mean_over_groups(values, first.unique(return_inverse=True)[1])


def samples_of(folder: Path, *, limit: int = 0) -> dict[Path, str]:
    """Return the samples of a folder, and which prompt each shows; limit: see `score_folder`."""
    files = media_files(folder, VIDEOS | IMAGES)
    files = files[:limit] if limit else files
    known = {entry["file"]: entry.get("prompt") for entry in read_manifest(folder)}
    shown = {}
    for path in files:
        name = path.relative_to(folder).as_posix()
        prompt = known.get(name)
        shown[path] = prompt if isinstance(prompt, str) else _stem(path, folder)
    return shown


def _stem(path: Path, folder: Path) -> str:
    """What a file's name says of its prompt: all but the seed."""
    return re.sub(r"-\d+$", "", path.relative_to(folder).with_suffix("").as_posix())


def read_sample(path: Path) -> Tensor:
    """Read a video or an image as [3, F, H, W] in [-1, 1]."""
    if path.suffix.lower() not in IMAGES:
        return read_video(path)
    pixels = torch.from_numpy(read_image(path)).permute(2, 0, 1)
    return pixels[:, None].float().div(127.5).sub(1)


def _size(size: tuple[int, ...]) -> str:
    return short("x".join(map(str, size)))
