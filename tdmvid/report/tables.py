"""Score tables of a run: the scores of its samplers, and those of `tdmvid score`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..adapters.bundle import STUDENT_FOLDERS
from ..config.json_files import read_json
from ..sampling.student import weights_of
from ..scoring.results import describe_sets
from . import plots

_SIDES = ("student", "teacher", "difference")


@dataclass(frozen=True)
class Cell:
    """One score: its text, its interval's text, where the interval lies in its column (per cent),
    and its rank.
    """

    value: str
    interval: str = ""
    left: float = 0.0
    width: float = 0.0
    dot: float = 0.0
    best: bool = False


def score_table(scores: dict | None) -> dict | None:
    """Return the score table: a row of Cells for each sampler, students first, the best Cell of
    each column marked; None without scores.
    """
    if not scores:
        return None
    samplers = sorted(scores.get("samplers", []), key=lambda one: "student" not in one["name"])
    columns = scores.get("columns", []) if samplers else []
    # What takes no network call, such as the data, is there to compare with and wins no column.
    rivals = [sampler.get("nfe") is not None for sampler in samplers]
    scored = [[sampler["metrics"].get(column["key"]) for sampler in samplers] for column in columns]
    cells = [_column(column, values, rivals) for column, values in zip(columns, scored)]
    rows = [
        {
            "name": sampler["name"],
            "nfe": sampler.get("nfe"),
            "seconds": sampler.get("seconds_per_video"),
            "cells": [column[index] for column in cells],
        }
        for index, sampler in enumerate(samplers)
    ]
    return {
        "protocol": scores.get("protocol", ""),
        "columns": columns,
        "rows": rows,
        "checks": scores.get("checks", []),
    }


@dataclass(frozen=True)
class _Scale:
    """The common scale of a column's intervals, and the best score in it."""

    low: float
    span: float
    best: float | None
    text: Callable[[float], str]

    def share(self, value: float) -> float:
        """Where a value lies, in per cent of the column's width."""
        return 100 * (value - self.low) / self.span

    def cell(self, score: dict | None, rival: bool) -> Cell:
        if score is None:
            return Cell("–")
        value, best = self.text(score["value"]), rival and score["value"] == self.best
        if not _interval(score, self.text):
            return Cell(value, best=best)
        return Cell(
            value,
            interval=_interval(score, self.text),
            left=self.share(score["low"]),
            width=100 * (score["high"] - score["low"]) / self.span,
            dot=self.share(score["value"]),
            best=best,
        )


def _column(column: dict, scores: list[dict | None], rivals: list[bool]) -> list[Cell]:
    """One column's cells, their intervals on one common scale; None is a score that was not
    measured.
    """
    known = [score if score and score.get("value") is not None else None for score in scores]
    measured = [(score, rival) for score, rival in zip(known, rivals) if score]
    ends: list[float] = [
        end
        for score, _ in measured
        for end in (score["value"], score.get("low"), score.get("high"))
        if end is not None
    ]
    if not ends:
        return [Cell("–")] * len(scores)
    low, span = min(ends), max(ends) - min(ends)
    if not span:  # all are the same: in the middle
        low, span = low - 0.5, 1.0
    best = _best(column.get("better"), [score["value"] for score, rival in measured if rival])
    scale = _Scale(low, span, best, _percent if column.get("unit") == "%" else _digits)
    return [scale.cell(score, rival) for score, rival in zip(known, rivals)]


def _best(better: str | None, values: list[float]) -> float | None:
    """The best of the values, if the column has a better end."""
    if not values or better not in ("high", "low"):
        return None
    return max(values) if better == "high" else min(values)


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _digits(value: float) -> str:
    # Trailing zeros kept, so that a column's numbers have equally many digits.
    return f"{value:#.3g}".rstrip(".") if 0.001 <= abs(value) < 1000 else plots.short(value)


def evaluation_tables(out: Path) -> list[dict]:
    """Return what `tdmvid score` found of the run's student: tables of VBench and of the image
    metrics, and lines with the metrics of whole sets, such as FID.
    """
    found = []
    for folder in ("vbench", "images"):
        if results := scores_of_student(out, f"{folder}/results.json"):
            student, teacher = results["samplers"]
            names = dict.fromkeys((*student["scores"], *teacher["scores"]))
            sides = (student["scores"], teacher["scores"], results["differences"])
            percent = results.get("percent", folder == "vbench")
            rows = [(name, [_measure(side.get(name), percent) for side in sides]) for name in names]
            shown = {"rows": rows, "figures": describe_sets(results.get("sets", {}))}
            found.append(results | {"id": folder, "columns": _SIDES} | shown)
    return found


def scores_of_student(out: Path, name: str) -> dict[str, Any] | None:
    """Read a file of scores, if it is of the run's student as it is now.

    Args:
        out: the run's folder.
        name: the file in it. Its `weights` are the digest of the student that was scored; a file
            without `weights` counts as the student's.

    Returns:
        Contents of the file; None if there is none, or if it is of another student.
    """
    path = out / name
    scores: dict[str, Any] | None = read_json(path) if path.exists() else None
    if not scores or "weights" not in scores:
        return scores
    return scores if scores["weights"] == _weights(out) else None


def _weights(out: Path) -> str | None:
    """The digest of the run's student as it is now; None without one."""
    folders = [out / name for name in STUDENT_FOLDERS.values()]
    return next((weights_of(folder) for folder in folders if folder.is_dir()), None)


def _measure(measure: dict | None, percent: bool) -> Cell:
    """A score with its interval, which has no place in a column of other measures."""
    if measure is None:
        return Cell("–")
    text = _percent if percent else _digits
    return Cell(text(measure["value"]), interval=_interval(measure, text))


def _interval(score: dict, text: Callable[[float], str]) -> str:
    """The interval's text, or "" if none could be estimated, for example of one prompt."""
    if score.get("low") is None or score.get("high") is None:
        return ""
    return f"{text(score['low'])} to {text(score['high'])}"
