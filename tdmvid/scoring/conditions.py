"""Sample with any number of steps under any condition on K, and show all pairs on a page.

A student of several K is one network that is conditioned on K, but can be sampled with another
number of steps (arXiv 2503.06674, Fig. 8).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ..backbones.base import Backbone
from ..data.files import write_json
from ..guard.bands import judge
from ..parallel.launch import World
from ..sampling.sample import CACHE, Sampler, sample_videos
from ..sampling.shots import Shot
from .page_parts import picture_sheet, render, write_overview
from .sample_folders import read_sample, score_folder

PAGE, FIGURES, OVERVIEW = "conditions.html", "conditions.json", "conditions.jpg"
SHOWN = 4
"""Samples of each cell in the overview."""
DISTANCE = "distance from the teacher"
Scores = Callable[[Path | None, int, float], Mapping[str, str]]
"""Returns further scores of a student (None: the teacher) for a number of steps and a guidance
scale.
"""


@dataclass(frozen=True)
class Cell:
    """Samples of the student conditioned on K = `told`, with a number of steps."""

    told: int
    steps: int
    scores: dict[str, str]
    picture: str
    """Data URI of an image with the middle frame of each sample."""


@dataclass(frozen=True)
class Grid:
    """All cells, and the teacher's samples that they are compared with."""

    teacher: Cell
    cells: list[Cell]


def sample_conditions(
    students: Mapping[int, Path],
    steps: Sequence[int],
    shots: list[Shot],
    out: Path,
    *,
    backbone: Backbone,
    world: World,
    teacher: Sampler,
    batch: int = 8,
    cache: Path = CACHE,
    further: Scores | None = None,
) -> Grid:
    """Sample every pair of a condition and a number of steps, and write conditions.html,
    conditions.json and conditions.jpg.

    Args:
        students: Exported students by the K that they are conditioned on.
        steps: Numbers of sampling steps.
        shots: Samples of each cell. The noise is the same in all cells. Other samples in the
            folders are not counted.
        out: Folder for the page, the scores, and one folder of samples per cell.
        backbone: Base of the students.
        world: Processes of the run.
        teacher: Samples the reference.
        batch: Samples at a time.
        cache: Folder of cached text embeddings.
        further: Scores in addition to the distance from the teacher's measures.

    Returns:
        All cells with their scores.
    """

    sampling: Any = {"backbone": backbone, "world": world, "batch": batch, "cache": cache}

    def made(folder: str, sampler: Sampler) -> Path:
        sample_videos(out / folder, shots, sampler=sampler, **sampling)
        return out / folder

    def measures(folder: Path) -> dict[str, float]:
        found = score_folder(folder, shots=shots).scores
        return {name: score.value for name, score in found.items()}

    def videos(folder: Path) -> list[Tensor]:
        return [read_sample(folder / shot.file) for shot in shots]

    long = made("teacher", teacher)
    overview = [[(f"teacher, {teacher.steps} steps", videos(long)[:SHOWN])]]
    reference = measures(long)
    own = dict(further(None, teacher.steps or 0, teacher.cfg or 1.0)) if further else {}
    cells = []
    for told, student in students.items():
        overview.append([])
        for count in steps:
            folder = made(f"told_{told}_steps_{count}", Sampler(student, steps=count))
            distance = judge(measures(folder), reference).distance
            scores = {DISTANCE: f"{distance:.2f}"}
            scores |= further(student, count, 1.0) if further else {}
            cells.append(Cell(told, count, scores, picture_sheet(videos(folder))))
            overview[-1].append((f"K = {told}, steps: {count}", videos(folder)[:SHOWN]))
    grid = Grid(Cell(0, teacher.steps or 0, own, picture_sheet(videos(long))), cells)
    write_overview(out / OVERVIEW, overview, columns=SHOWN)
    write_json(out / FIGURES, _facts(grid))
    render("conditions.html.j2", out / PAGE, grid=grid, told=list(students), steps=list(steps))
    return grid


def _facts(grid: Grid) -> dict:
    """Return the scores as JSON-compatible objects, without images."""
    cells = [asdict(cell) for cell in (grid.teacher, *grid.cells)]
    for cell in cells:
        del cell["picture"]
    return {"teacher": cells[0], "cells": cells[1:]}


def table(grid: Grid) -> list[list[str]]:
    """Format the scores.

    Args:
        grid: All cells.

    Returns:
        The column names, then one row per cell.
    """
    names = list(grid.cells[0].scores)
    head = ["condition K", "steps", *names]
    rows = [[str(cell.told), str(cell.steps), *cell.scores.values()] for cell in grid.cells]
    own = [grid.teacher.scores.get(name, "\N{EN DASH}") for name in names]
    return [head, ["teacher", str(grid.teacher.steps), *own], *rows]
