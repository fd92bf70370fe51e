"""Measure the samples in a folder: motion, colour, sharpness and diversity, with intervals.

The manifest.jsonl of a folder made by `tdmvid sample` has the prompt of each file. In other
folders, files of the same prompt have the same name up to a number after "-", "_" or a space: "a
ring-0.mp4" and "a ring-1.mp4".
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..data.files import short
from ..data.media_folders import IMAGES, VIDEOS, media_files
from ..data.progress import progress
from ..data.video import read_image, read_video
from ..guard.measures import appearance, diversity, thumbnails
from ..sampling.manifest import check_finished, given_of, read_manifest
from ..sampling.shots import Shot
from .intervals import Measure, mean_over_groups, mean_over_pairs

SEED_AT_END = re.compile(r"(?<=[^/])[-_ ][0-9]+$")
"""Seed in a name without its suffix. A name that is only a number is a prompt of its own."""


@dataclass(frozen=True)
class FolderScores:
    """Measures of the samples in a folder."""

    folder: Path
    samples: int
    prompts: int
    scores: dict[str, Measure]
    """Values by name; intervals from a bootstrap over prompts."""

    def facts(self) -> dict:
        """Return the scores as JSON-compatible objects.

        Returns:
            Folder, number of samples and prompts, and scores.
        """
        return {
            "folder": str(self.folder),
            "samples": self.samples,
            "prompts": self.prompts,
            "scores": {name: asdict(score) for name, score in self.scores.items()},
        }


def score_folder(folder: Path, *, limit: int = 0, shots: Sequence[Shot] = ()) -> FolderScores:
    """Measure the samples in a folder.

    Args:
        folder: Folder of images or videos.
        limit: Use only this many files; 0 uses all.
        shots: Use only these samples; default: all.

    Returns:
        The measures.

    Raises:
        ValueError: There are no samples, their sizes differ, or the folder is not finished.
    """
    shown = samples_of(folder, limit=limit, shots=shots)
    each: dict[str, list[Tensor]] = {}
    small = []
    size: tuple[int, ...] = ()
    with progress(f"measuring {folder}", total=len(shown), unit="file") as bar:
        for path in shown:
            video = read_sample(path)[None]
            size = size or tuple(video.shape[2:])
            if tuple(video.shape[2:]) != size:
                raise ValueError(
                    f"{path} is {_size(tuple(video.shape[2:]))}, but other samples in {folder} are"
                    f" {_size(size)}: give a folder whose samples have the same size"
                )
            for name, value in appearance(video).items():
                each.setdefault(name, []).append(value)
            small.append(thumbnails(video))
            bar.update()
    prompts = list(shown.values())
    numbers = {prompt: number for number, prompt in enumerate(dict.fromkeys(prompts))}
    group = torch.tensor([numbers[prompt] for prompt in prompts])
    scores = {name: mean_over_groups(torch.cat(values), group) for name, values in each.items()}
    scores |= dict(_diversity(torch.cat(small), group))
    return FolderScores(folder, len(prompts), len(numbers), scores)


def _counted(one: FolderScores) -> str:
    return (
        f"{one.samples} sample{'s' * (one.samples != 1)} of {one.prompts}"
        f" prompt{'s' * (one.prompts != 1)}"
    )


def describe(scored: list[FolderScores]) -> str:
    """Format measures as a table with one column per folder.

    Args:
        scored: Measures of each folder.

    Returns:
        The table.
    """
    names = dict.fromkeys(name for one in scored for name in one.scores)
    head = ["", *(f"{one.folder} ({_counted(one)})" for one in scored)]
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
    return "\N{EN DASH}" if measure is None else measure.text(".4f")


def within_prompts(small: Tensor, group: Tensor) -> Measure | None:
    """Return the mean distance between two samples of the same prompt.

    Args:
        small: Features [N, D].
        group: Prompt of each sample, numbered from 0, [N].

    Returns:
        Distance and interval; None if every prompt has only one sample.
    """
    return dict(_diversity(small, group)).get("seeds")


def _diversity(small: Tensor, group: Tensor) -> Iterator[tuple[str, Measure]]:
    """Yield distances between samples, averaged over the pairs of each prompt first."""
    prompts = group.tolist()
    pairs = torch.ones(len(prompts), len(prompts)).triu(1).nonzero()
    same = group[pairs[:, 0]] == group[pairs[:, 1]]
    for name, values in diversity(small, prompts).items():
        chosen = pairs[same if name == "seeds" else ~same]
        first, second = group[chosen].unbind(1)
        if name != "seeds":
            yield name, mean_over_pairs(values, first, second)
        elif len(first.unique()) > 1:
            yield name, mean_over_groups(values, first.unique(return_inverse=True)[1])
        else:  # of one prompt: over its samples
            samples = chosen.unique(return_inverse=True)[1]
            yield name, mean_over_pairs(values, *samples.unbind(1))


def samples_of(folder: Path, *, limit: int = 0, shots: Sequence[Shot] = ()) -> dict[Path, str]:
    """Return the samples in a folder with their prompts.

    Of files that the manifest lists with the same prompt, seed and image, only the first is
    returned. Hidden files are samples if the manifest lists them: `--names prompt` of a prompt that
    begins with a dot.

    Args:
        folder: Folder of images or videos.
        limit: Return only this many files; 0 for all.
        shots: Return only these samples; default: all, also those of earlier calls.

    Returns:
        Prompt of each file.

    Raises:
        ValueError: There are no samples, or the folder is not finished.
    """
    if not folder.is_dir():
        raise ValueError(f"{str(folder)!r} is not a folder: give a folder of videos or images")
    if shots:
        return {folder / shot.file: shot.prompt for shot in shots[: limit or None]}
    check_finished(folder)
    known = {entry["file"]: entry for entry in read_manifest(folder)}
    shown: dict[Path, str] = {}
    seen: set[tuple[str, int, str]] = set()
    for path in media_files(folder, VIDEOS | IMAGES, listed=known):
        entry = known.get(path.relative_to(folder).as_posix(), {})
        given, prompt = given_of(entry), entry.get("prompt")
        if given is None or given not in seen:
            shown[path] = prompt if isinstance(prompt, str) else _stem(path, folder)
        if given is not None:
            seen.add(given)
        if limit and len(shown) == limit:
            break
    return shown


def _stem(path: Path, folder: Path) -> str:
    """Return the part of a file name that identifies the prompt, without the seed."""
    return SEED_AT_END.sub("", path.relative_to(folder).with_suffix("").as_posix())


def read_sample(path: Path) -> Tensor:
    """Read a video or an image.

    Args:
        path: The file.

    Returns:
        Sample [3, F, H, W] in [-1, 1].
    """
    if path.suffix.lower() not in IMAGES:
        return read_video(path)
    pixels = torch.from_numpy(read_image(path)).permute(2, 0, 1)
    return pixels[:, None].float().div(127.5).sub(1)


def _size(size: tuple[int, ...]) -> str:
    return short("x".join(map(str, size)))
