"""Write the results of an evaluation: JSON, a Markdown table, and a page that shows samples side by
side.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import jinja2

from ..data.files import write_json, write_text
from ..data.markdown import escape
from ..data.media import embed, file_inside
from .intervals import Measure


@dataclass(frozen=True)
class Pair:
    """Samples of two samplers with the same prompt and seed, and how much better ours is."""

    prompt: str
    gain: float
    files: tuple[Path, Path]
    """Our file and theirs."""


@dataclass(frozen=True)
class Result:
    """Scores of a student and its teacher."""

    title: str
    protocol: str
    notes: tuple[str, ...]
    """What a reader must know before quoting a result, such as metrics that were skipped."""
    names: tuple[str, str]
    """Names of student and teacher."""
    scores: tuple[Mapping[str, Measure], Mapping[str, Measure]]
    differences: Mapping[str, Measure]
    figures: tuple[str, ...] = ()
    """Results for whole sets of samples, which are not paired, such as FID."""
    percent: bool = True
    facts: Mapping[str, object] | None = None


def write_result(out: Path, result: Result, pairs: list[Pair], *, shown: int) -> Path:
    """Write results.json, results.md and results.html.

    Args:
        out: Folder to write to.
        result: The scores.
        pairs: Pairs of samples.
        shown: Maximum number of best and of worst pairs on the page.

    Returns:
        The page.
    """
    sides = [
        {"name": name, "scores": {k: asdict(m) for k, m in scores.items()}}
        for name, scores in zip(result.names, result.scores, strict=True)
    ]
    write_json(
        out / "results.json",
        {
            "title": result.title,
            "protocol": result.protocol,
            "notes": list(result.notes),
            "samplers": sides,
            "differences": {k: asdict(m) for k, m in result.differences.items()},
            **(result.facts or {}),
        },
    )
    write_text(out / "results.md", markdown(result))
    best, worst = best_and_worst(pairs, shown)
    groups = [("Largest losses of the student", worst), ("Largest gains of the student", best)]
    rows = [
        (
            title,
            [
                (pair, [embed(file_inside(file.parent, file.name)) for file in pair.files])
                for pair in group
            ],
        )
        for title, group in groups
        if group
    ]
    write_text(
        out / "results.html", _template().render(result=result, table=table(result), groups=rows)
    )
    return out / "results.html"


def best_and_worst(pairs: list[Pair], count: int) -> tuple[list[Pair], list[Pair]]:
    """Return the pairs with the largest and the smallest gains.

    Args:
        pairs: All pairs.
        count: Maximum number of each. No pair is in both lists.

    Returns:
        Best and worst pairs, most extreme first.
    """
    ranked = sorted(pairs, key=lambda pair: (-pair.gain, pair.prompt))
    count = min(count, len(ranked) // 2)
    return ranked[:count], ranked[::-1][:count]


def table(result: Result) -> list[tuple[str, str, str, str]]:
    """Return one row per score.

    Args:
        result: The scores.

    Returns:
        Rows of name, student's score, teacher's score and difference.
    """
    scale, digits = (100.0, 2) if result.percent else (1.0, 4)

    def cell(side: Mapping[str, Measure], name: str, sign: str = "") -> str:
        if name not in side:
            return "\N{EN DASH}"
        return side[name].text(f"{sign}.{digits}f", scale=scale)

    student, teacher = result.scores
    return [
        (name, cell(student, name), cell(teacher, name), cell(result.differences, name, "+"))
        for name in {**student, **teacher}
    ]


def describe_sets(sets: Mapping[str, Mapping[str, float]]) -> tuple[str, ...]:
    """Describe the values of metrics that compare whole sets of samples, such as FID.

    Args:
        sets: Values by comparison and metric.

    Returns:
        A line for each comparison.
    """
    return tuple(
        f"{what}: {', '.join(f'{name} {value:.4g}' for name, value in found.items())}"
        for what, found in sets.items()
    )


def markdown(result: Result) -> str:
    """Format the scores as a Markdown table with protocol and notes.

    Args:
        result: The scores.

    Returns:
        Markdown text.
    """
    lines = [f"# {escape(result.title)}", "", escape(result.protocol), ""]
    lines += [f"**{escape(note)}**\n" for note in result.notes]
    if rows := table(result):
        names = " | ".join(map(escape, result.names))
        lines += [f"| | {names} | difference |", "|---|---|---|---|"]
        lines += ["| " + " | ".join(row) + " |" for row in rows] + [""] * bool(result.figures)
    lines += [f"* {escape(line)}" for line in result.figures]
    return "\n".join(lines) + "\n"


def _template() -> jinja2.Template:
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    return jinja2.Environment(
        loader=loader,
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    ).get_template("results.html.j2")
