"""Any number of sampling steps under any condition on K: a page with a cell for each pair.

A student of several K is one network that is told K, and can be sampled with another number of
steps (arXiv 2503.06674, Fig. 8).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ..backbones.base import Backbone
from ..data.files import write_json
from ..guard.bands import judge
from ..parallel.launch import World
from ..sampling.sample import Sampler, sample_videos
from ..sampling.shots import Shot
from .page_parts import picture_sheet, render
from .sample_folders import read_sample, score_folder

PAGE, FIGURES = "conditions.html", "conditions.json"
DISTANCE = "distance from the teacher"
Scores = Callable[[Path | None, int, float], Mapping[str, str]]
"""Further scores of a student (None: the teacher) in so many steps, with a guidance scale."""


@dataclass(frozen=True)
class Cell:
    """Samples of the student that is told K, in so many steps."""

    told: int
    steps: int
    scores: dict[str, str]
    picture: str
    """A data URI: the middle frame of each sample."""


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
    further: Scores | None = None,
) -> Grid:
    """Sample every pair of a condition and a number of steps; write conditions.html and .json.

    Args:
        students: The exported students by the K that they are told.
        steps: Numbers of sampling steps.
        shots: What is sampled in each cell, the same noise everywhere.
        out: The directory of the page, the figures, and a folder of samples for each cell.
        backbone: The students' base.
        world: The ranks.
        teacher: Samples the reference.
        batch: Samples at a time.
        further: Scores beside the distance from the teacher's measures.
    """

    def made(folder: str, sampler: Sampler) -> Path:
        sample_videos(
            out / folder, shots, backbone=backbone, sampler=sampler, world=world, batch=batch
        )
        return out / folder

    def measures(folder: Path) -> dict[str, float]:
        return {name: score.value for name, score in score_folder(folder).scores.items()}

    def picture(folder: Path) -> str:
        return picture_sheet([read_sample(folder / shot.file) for shot in shots])

    long = made("teacher", teacher)
    reference = measures(long)
    own = dict(further(None, teacher.steps or 0, teacher.cfg or 1.0)) if further else {}
    cells = []
    for told, student in students.items():
        for count in steps:
            folder = made(f"told_{told}_steps_{count}", Sampler(student, steps=count))
            distance = judge(measures(folder), reference).distance
            scores = {DISTANCE: f"{distance:.2f}"}
            scores |= further(student, count, 1.0) if further else {}
            cells.append(Cell(told, count, scores, picture(folder)))
    grid = Grid(Cell(0, teacher.steps or 0, own, picture(long)), cells)
    write_json(out / FIGURES, _facts(grid))
    render("conditions.html.j2", out / PAGE, grid=grid, told=list(students), steps=list(steps))
    return grid


def _facts(grid: Grid) -> dict:
    """The scores as JSON holds them, without the pictures."""
    cells = [asdict(cell) for cell in (grid.teacher, *grid.cells)]
    for cell in cells:
        del cell["picture"]
    return {"teacher": cells[0], "cells": cells[1:]}


def table(grid: Grid) -> list[list[str]]:
    """Return a row for each cell as text, with the names of the columns first."""
    names = list(grid.cells[0].scores)
    head = ["told K", "steps", *names]
    rows = [[str(cell.told), str(cell.steps), *cell.scores.values()] for cell in grid.cells]
    own = [grid.teacher.scores.get(name, "\N{EN DASH}") for name in names]
    return [head, ["teacher", str(grid.teacher.steps), *own], *rows]
