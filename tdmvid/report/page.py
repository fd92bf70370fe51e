"""One page that shows a run: its videos, curves, scores and commands, in a single HTML file.

The page fetches nothing: videos and images are data URIs, curves are SVG. Every part of
the run folder is optional; what is not there yet is left out of the page.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from ..config.json_files import read_json
from ..data.files import write_text
from ..data.media import Media, embed, file_inside
from ..guard.record import GuardRecord
from ..train.monitor import METRICS, read_metrics
from . import plots
from .gallery import FIRST_FRAME
from .reward_table import reward_table
from .tables import evaluation_tables, score_table, scores_of_student
from .usage import Export, commands, links, read_export, score_command

REPORT = "report.html"
DEMO_TEACHER = "shapes"
"""Model path of the demo, whose usual ranges are shaded in the plots."""


def write_report(out: Path) -> Path:
    """Write `out`/report.html from what is in the run folder and return its path."""
    out = Path(out)
    config = _load(out / "config.json")
    gallery = _gallery(out / "gallery")
    scores = score_table(scores_of_student(out, "scores.json"))
    metrics = read_metrics(out / METRICS) if (out / METRICS).exists() else {"step": []}
    recorded = (_load(out / "commands.json") or {"commands": []})["commands"]
    demo = (config or {}).get("model", {}).get("path") == DEMO_TEACHER
    frames = (config or {}).get("video", {}).get("frames")
    record, export, evaluations = GuardRecord.read(out), read_export(out), evaluation_tables(out)
    page = _template().render(
        title=(config or {}).get("name") or out.resolve().name,
        config=json.dumps(config, indent=2, ensure_ascii=False) if config else "",
        headline=_headline(gallery),
        problems=_problems(record, export),
        badges=list(_badges(record, export, scores)),
        unscored=(
            score_command(out, config, recorded)
            if export and not scores and not evaluations
            else ""
        ),
        facts=_facts(metrics),
        gallery=gallery,
        trajectories=_trajectories(out / "gallery"),
        noun="image" if frames == 1 else "video",
        demo=demo,
        panels=plots.panels(metrics, (config or {}).get("log", {}), demo=demo),
        plot=plots,
        scores=scores,
        rewards=reward_table(metrics, record),
        evaluations=evaluations,
        export=export,
        commands=commands(out, config, recorded, images=_starts_from_images(gallery)),
        links=links(out),
    )
    write_text(out / REPORT, page)
    return out / REPORT


def _problems(record: GuardRecord, export: Export | None) -> list[str]:
    """What is wrong with the exported student, one sentence each."""
    check = record.exported_check()
    problems = [finding.of_run for finding in check.findings] if check else []
    if export and not export.passed:
        problems.append("The export differs from the trained student.")
    return problems


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


def _starts_from_images(gallery: dict | None) -> bool:
    """Whether the gallery shows the first frames that were given."""
    return gallery is not None and gallery["columns"][0]["name"] == FIRST_FRAME


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


def _badges(record: GuardRecord, export: Export | None, scores: dict | None) -> Iterator[Badge]:
    """What the guard, the check of the export and the scores say, in one line each."""
    if check := record.exported_check():
        count = len(check.findings)
        fine = "no large fault so early" if check.early else "looks like its teacher"
        found = f"{count} warning{'s' * (count > 1)}" if count else fine
        compared = record.exported in (0, check.step)
        late = "" if compared else f" after {check.step:,} iterations; the exported one was not"
        yield Badge(compared and not count, f"guard: {found}{late}")
    if export:
        yield Badge(export.passed, "export reloaded in the stock pipeline")
    if scores and scores["checks"]:
        passed = sum(check["passed"] for check in scores["checks"])
        total = len(scores["checks"])
        yield Badge(passed == total, f"{passed} of {total} checks passed")


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
