"""One page that shows a run: its videos, curves, scores and commands, in a single HTML file.

The page fetches nothing: videos and images are data URIs, curves are SVG. Every part of
the run folder is optional; what is not there yet is left out of the page.
"""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from ..adapters.bundle import STUDENT_FOLDERS
from ..config.json_files import read_json
from ..data.files import write_text
from ..data.media import Media, embed, file_inside
from ..guard.record import GuardRecord
from ..sampling.student import weights_of
from ..train.monitor import METRICS, read_metrics
from . import plots

REPORT = "report.html"


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


def write_report(out: Path) -> Path:
    """Write `out`/report.html from what is in the run folder and return its path."""
    out = Path(out)
    config = _load(out / "config.json")
    gallery = _gallery(out / "gallery")
    scores = _scores(_load(out / "scores.json"))
    metrics = read_metrics(out / METRICS) if (out / METRICS).exists() else {"step": []}
    commands = _load(out / "commands.json") or {"commands": []}
    record, lora, evaluations = (
        GuardRecord.read(out),
        _lora(_load(out / "lora" / "export.json")),
        _evaluations(out),
    )
    check = record.exported_check()
    problems = [str(finding) for finding in check.findings] if check else []
    if lora and not lora["passed"]:
        problems.append("The export differs from the trained student.")
    page = _template().render(
        title=(config or {}).get("name") or out.resolve().name,
        config=json.dumps(config, indent=2, ensure_ascii=False) if config else "",
        headline=_headline(gallery),
        problems=problems,
        badges=list(_badges(record, lora, scores)),
        unscored="" if scores or evaluations else _score_command(out, config, commands),
        facts=_facts(metrics),
        gallery=gallery,
        trajectories=_trajectories(out / "gallery"),
        panels=plots.panels(metrics),
        plot=plots,
        scores=scores,
        evaluations=evaluations,
        lora=lora,
        commands=commands["commands"],
    )
    write_text(out / REPORT, page)
    return out / REPORT


def _template() -> jinja2.Template:
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(
        loader=loader,
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["short"] = plots.short
    return environment.get_template("report.html.j2")


def _load(path: Path) -> Any:
    return read_json(path) if path.exists() else None


def _media(folder: Path, name: str | None) -> Media:
    """Read a file of the gallery; its kind is "missing" where it was not made.

    Raises:
        ValueError: for what lies outside of the folder, or is no video or image.
    """
    if name is None:
        return Media("missing", "")
    path = file_inside(folder, name)
    return embed(path) if path.exists() else Media("missing", "")


def _gallery(folder: Path) -> dict | None:
    """The columns, and one row per prompt with a Media per column."""
    gallery = _load(folder / "gallery.json")
    if not gallery or not gallery["prompts"]:
        return None
    rows = []
    for index, prompt in enumerate(gallery["prompts"]):
        names = [
            column["videos"][index] if index < len(column["videos"]) else None
            for column in gallery["columns"]
        ]
        rows.append({"prompt": prompt, "cells": [_media(folder, name) for name in names]})
    columns = [{"name": column["name"], "nfe": column.get("nfe")} for column in gallery["columns"]]
    return {"columns": columns, "rows": rows}


def _trajectories(folder: Path) -> dict | None:
    """The prompt, and per sampler its clean predictions from noise to the end, each a (label,
    Media).
    """
    trajectories = _load(folder / "trajectories.json")
    if not trajectories:
        return None

    def tiles(row: dict) -> list[tuple[str, Media]]:
        return [
            (label, _media(folder, name))
            for label, name in zip(row["labels"], row["images"], strict=True)
        ]

    rows = [{"name": row["name"], "tiles": tiles(row)} for row in trajectories["rows"]]
    return {"prompt": trajectories["prompt"], "rows": rows}


def _headline(gallery: dict | None) -> dict | None:
    """Network calls of the teacher at its dearest and of the student at its cheapest, if the
    gallery has both.
    """
    calls: dict[str, list[float]] = {"teacher": [], "student": []}
    for column in gallery["columns"] if gallery else []:
        for role, nfes in calls.items():
            if column["nfe"] and role in column["name"].lower():
                nfes.append(column["nfe"])
    if not all(calls.values()):
        return None
    teacher, student = max(calls["teacher"]), min(calls["student"])
    return {"teacher": teacher, "student": student, "times": plots.short(teacher / student)}


@dataclass(frozen=True)
class Badge:
    """One verdict in the page's head."""

    passed: bool
    text: str


def _badges(record: GuardRecord, lora: dict | None, scores: dict | None) -> Iterator[Badge]:
    """What the guard, the check of the export and the scores say, in one line each."""
    if check := record.exported_check():
        count = len(check.findings)
        found = "looks like its teacher" if not count else f"{count} measures off the teacher's"
        compared = record.exported in (0, check.step)
        late = "" if compared else f" after {check.step:,} iterations; the exported one was not"
        yield Badge(compared and not count, f"guard: {found}{late}")
    if lora:
        yield Badge(lora["passed"], "export reloaded in the stock pipeline")
    if scores and scores["checks"]:
        passed = sum(check["passed"] for check in scores["checks"])
        total = len(scores["checks"])
        yield Badge(passed == total, f"{passed} of {total} checks passed")


def _score_command(out: Path, config: dict | None, commands: dict) -> str:
    """The command that scores a run which has no scores yet; "" for what is no run's folder."""
    for item in commands["commands"]:
        if item["what"] == "score":
            return str(item["command"])
    if not config or "video" not in config:
        return ""
    program = "images" if config["video"].get("frames") == 1 else "vbench"
    student = STUDENT_FOLDERS[config.get("training", "lora")]
    return shlex.join(["tdmvid", "score", program, "--lora", str(out / student)])


def _facts(metrics: dict[str, list[float]]) -> list[str]:
    facts = []
    if metrics["step"]:
        facts.append(f"{int(metrics['step'][-1]) + 1:,} steps")
    seconds = [value for value in metrics.get("seconds", []) if math.isfinite(value)]
    if seconds:
        facts.append(f"{_duration(sum(seconds))} of training")
    return facts


def _duration(seconds: float) -> str:
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 1.5 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} seconds"


def _scores(scores: dict | None) -> dict | None:
    """The score table: per sampler one Cell per column, the best of each column marked."""
    if not scores:
        return None
    samplers = scores.get("samplers", [])
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
        if "low" not in score or "high" not in score:
            return Cell(value, best=best)
        return Cell(
            value,
            interval=f"{self.text(score['low'])} to {self.text(score['high'])}",
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
    ends = [score[end] for score, _ in measured for end in ("low", "value", "high") if end in score]
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


def _evaluations(out: Path) -> list[dict]:
    """What `tdmvid score` found of the run's student: VBench's or the image metrics' table."""
    found = []
    for folder in ("vbench", "images"):
        results = _load(out / folder / "results.json")
        if results and results.get("weights", weights := _weights(out)) == weights:
            student, teacher = results["samplers"]
            names = dict.fromkeys((*student["scores"], *teacher["scores"]))
            sides = (student["scores"], teacher["scores"], results["differences"])
            percent = results.get("percent", folder == "vbench")
            rows = [(name, [_measure(side.get(name), percent) for side in sides]) for name in names]
            found.append(results | {"id": folder, "rows": rows, "columns": _SIDES})
    return found


_SIDES = ("student", "teacher", "difference")


def _weights(out: Path) -> str | None:
    """The digest of the run's student as it is now; None without one."""
    folders = [out / name for name in STUDENT_FOLDERS.values()]
    return next((weights_of(folder) for folder in folders if folder.is_dir()), None)


def _measure(measure: dict | None, percent: bool) -> Cell:
    """A score with its interval, which has no place in a column of other measures."""
    if measure is None:
        return Cell("–")
    text = _percent if percent else _digits
    return Cell(
        text(measure["value"]), interval=f"{text(measure['low'])} to {text(measure['high'])}"
    )


def _lora(export: dict | None) -> dict | None:
    if not export:
        return None
    return {
        "error": plots.short(export["error"]),
        "tolerance": plots.short(export["tolerance"]),
        "passed": export["error"] <= export["tolerance"],
        "files": [str(name) for name in export.get("files", [])],
    }
