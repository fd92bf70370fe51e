"""Measure how much of a teacher's variety a student keeps: images of many seeds, precision and
recall.

Samples are compared with those of a reference with the same prompts, prompt by prompt, without
network weights (arXiv 2503.06674, Fig. 9, shows such images).

Shapes: N samples of one prompt [N, 3, F, H, W] in [-1, 1]; features [N, D].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..data.files import short, write_json
from ..guard.measures import thumbnails
from ..sampling.shots import Shot
from .intervals import Measure, mean_over_groups
from .page_parts import picture_sheet, render, write_overview
from .sample_folders import read_sample, samples_of, within_prompts

PAGE, FIGURES, OVERVIEW = "modes.html", "modes.json", "modes.jpg"
LONGEST = 64
"""Maximum number of images per prompt on the page."""
SHOWN = 16
"""Images in a row of the overview, which has two rows for each folder."""


@dataclass(frozen=True)
class Coverage:
    """How much of the reference's variety the samples in a folder keep."""

    name: str
    samples: int
    diversity: Measure | None
    """Root mean square distance between two samples of a prompt; None if every prompt has one
    seed.
    """
    precision: Measure | None
    """Share of the samples within the reference's manifold; None for the reference itself."""
    recall: Measure | None
    """Share of the reference's samples within the manifold of these samples; None for the reference
    itself.
    """


def precision_and_recall(
    samples: Tensor, reference: Tensor, *, neighbours: int = 3
) -> tuple[Tensor, Tensor]:
    """Compare two sets of features by their k-nearest-neighbour manifolds (arXiv 1904.06991, Eqs. 1
    and 2).

    Args:
        samples: Features [N, D].
        reference: Features [M, D].
        neighbours: k. The ball around each point has the distance to its k-th neighbour in its own
            set as radius.

    Returns:
        Bool [N], whether each sample is in a ball of the reference, and bool [M], whether each
        reference is in a ball of the samples.

    Raises:
        ValueError: A set has no more points than `neighbours`.
    """
    if min(len(samples), len(reference)) <= neighbours:
        raise ValueError(
            f"neighbours={neighbours}: {len(samples)} samples and {len(reference)} of the reference"
            f" are too few per prompt: sample at least {neighbours + 1} seeds, or use fewer"
            " neighbours"
        )
    apart = _distances(samples, reference)
    return (
        (apart <= _radii(reference, neighbours)[None]).any(1),
        (apart <= _radii(samples, neighbours)[:, None]).any(0),
    )


def _distances(a: Tensor, b: Tensor) -> Tensor:
    return torch.cdist(a.double(), b.double(), compute_mode="donot_use_mm_for_euclid_dist")


def _radii(features: Tensor, neighbours: int) -> Tensor:
    return (
        _distances(features, features).sort(1).values[:, neighbours]
    )  # the first is the distance to itself


def score_modes(
    folders: Sequence[Path],
    out: Path,
    *,
    names: Sequence[str] = (),
    neighbours: int = 3,
    shots: Sequence[Shot] = (),
) -> list[Coverage]:
    """Compare folders of samples with the first of them, and write modes.html, modes.json and
    modes.jpg (the first prompt alone).

    Args:
        folders: At least two folders of samples with the same prompts. The first is the reference.
        out: Folder for the files.
        names: Names of the folders on the page; default: their paths.
        neighbours: See `precision_and_recall`.
        shots: Samples of each folder to compare; default: all.

    Returns:
        The measures of each folder.

    Raises:
        ValueError: A folder lacks a prompt of the reference, or has too few seeds of it.
    """
    names = names or [str(folder) for folder in folders]
    sets = [_by_prompt(folder, shots) for folder in folders]
    for folder, found in zip(folders[1:], sets[1:], strict=True):
        if missing := sets[0].keys() - found.keys():
            raise ValueError(
                f"{folder} has no sample of {sorted(missing)[0]!r}, which {folders[0]} shows:"
                " sample both with the same prompts"
            )
    _check_seeds(folders, sets, neighbours)
    prompts, features = list(sets[0]), []
    sheets: list[dict[str, str]] = []
    overview = []
    for name, found in zip(names, sets, strict=True):
        videos = {prompt: [read_sample(path) for path in found[prompt]] for prompt in prompts}
        features.append({prompt: thumbnails(torch.stack(each)) for prompt, each in videos.items()})
        sheets.append({prompt: picture_sheet(each[:LONGEST]) for prompt, each in videos.items()})
        overview.append([(name, videos[prompts[0]][: 2 * SHOWN])])
    write_overview(out / OVERVIEW, overview, columns=SHOWN)
    scored = [
        _coverage(name, one, None if one is features[0] else features[0], neighbours)
        for name, one in zip(names, features, strict=True)
    ]
    write_json(
        out / FIGURES,
        {"reference": names[0], "neighbours": neighbours, "folders": [asdict(s) for s in scored]},
    )
    render(
        "modes.html.j2",
        out / PAGE,
        prompts=prompts,
        rows=table(scored),
        names=[one.name for one in scored],
        sheets=sheets,
        longest=LONGEST,
        neighbours=neighbours,
    )
    return scored


def _by_prompt(folder: Path, shots: Sequence[Shot]) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    for path, prompt in samples_of(folder, shots=shots).items():
        found.setdefault(prompt, []).append(path)
    return found


def _check_seeds(
    folders: Sequence[Path], sets: Sequence[dict[str, list[Path]]], neighbours: int
) -> None:
    """Check that every prompt has enough samples, before any is read."""
    count, folder, prompt = min(
        (
            (len(found[prompt]), folder, prompt)
            for folder, found in zip(folders, sets, strict=True)
            for prompt in sets[0]
        ),
        key=lambda one: one[0],
    )
    if count <= neighbours:
        fewer = f", or use --neighbours {count - 1}" if count > 1 else ""
        raise ValueError(
            f"--neighbours={neighbours}: {folder} has only {count} sample{'s' * (count > 1)} of"
            f" {short(prompt)}: sample at least {neighbours + 1} seeds per prompt{fewer}"
        )


def _coverage(
    name: str, features: dict[str, Tensor], reference: dict[str, Tensor] | None, neighbours: int
) -> Coverage:
    """Average the measures over prompts, with bootstrap intervals over prompts."""
    sizes = [len(each) for each in features.values()]
    group = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    diversity = within_prompts(torch.cat(list(features.values())), group)
    precision = recall = None
    if reference is not None:
        pairs = [
            precision_and_recall(features[prompt], reference[prompt], neighbours=neighbours)
            for prompt in reference
        ]
        precision, recall = (_share(one) for one in zip(*pairs, strict=True))
    return Coverage(name, sum(sizes), diversity, precision, recall)


def _share(inside: Sequence[Tensor]) -> Measure:
    """Return the share of points inside. There is one set of points per prompt."""
    sizes = torch.tensor([len(each) for each in inside])
    group = torch.repeat_interleave(torch.arange(len(inside)), sizes)
    return mean_over_groups(torch.cat(list(inside)).double(), group)


def table(scored: Sequence[Coverage]) -> list[list[str]]:
    """Format the measures.

    Args:
        scored: Measures of each folder.

    Returns:
        Name, number of samples, diversity, precision and recall of each folder.
    """
    return [
        [
            one.name,
            str(one.samples),
            _number(one.diversity),
            *(_percent(measure) for measure in (one.precision, one.recall)),
        ]
        for one in scored
    ]


HEAD = ["samples of", "samples", "diversity", "precision", "recall"]


def _number(measure: Measure | None) -> str:
    return "\N{EN DASH}" if measure is None else measure.text(".3f")


def _percent(measure: Measure | None) -> str:
    if measure is None:
        return "\N{EN DASH}"
    return measure.text(".0%")
