"""Write the page of a suite: claims of the paper with the measured results, the table and the
plot.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from pathlib import Path

from scipy import stats

from tdmvid.data.files import write_text

Results = dict[str, list[dict]]
RULE = (
    (
        "A claim stands, or is contradicted, if the 95 % interval of the paired difference over the"
        " seeds (Student's t) excludes zero."
    ),
    "The claims are tested one by one, without a correction for their number.",
)


@dataclass(frozen=True)
class Claim:
    """A claim that one of two values, given as (row, column), is better.

    `strict` is False if equal values also satisfy the claim; `higher` is True if higher is better.
    """

    text: str
    better: tuple[str, str]
    worse: tuple[str, str]
    strict: bool = True
    higher: bool = False


@dataclass(frozen=True)
class Axes:
    """Labels of a plot."""

    x: str = "network calls of a whole run, all roles, in batches"
    """Horizontal axis."""
    y: str = "sliced W2 to the data, 4 steps"
    """Vertical axis."""
    scale: str = "log"
    """Scale of both axes."""
    alt: str = "distance to the data over network calls"
    """Description of the plot."""


class Table:
    """A suite whose page has a table, and neither a plot nor further sections."""

    axes = Axes()

    def curves(self, results: dict) -> dict[str, list[list[tuple[float, float]]]]:
        """Return no curves; this suite has no plot.

        Args:
            results: Results by row.

        Returns:
            An empty dictionary.
        """
        return {}

    def sections(self, results: dict) -> list[str]:
        """Return no further sections.

        Args:
            results: Results by row.

        Returns:
            An empty list.
        """
        return []


def spread(values: list[float]) -> str:
    """Format the mean and standard deviation over seeds. An integer that all seeds share is printed
    as such.

    Args:
        values: One value per seed.

    Returns:
        Text such as "0.123 ± 0.004".
    """
    mean = statistics.mean(values)
    if values[0].is_integer() and len(set(values)) == 1:
        return f"{mean:.0f}"
    digits = 0 if mean > 100 else 3
    return f"{mean:.{digits}f}" + (
        f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    )


def verdict(claim: Claim, results: Results) -> str:
    """Check a claim, seed by seed. A difference counts if its 95 % interval (Student's t) excludes
    zero.

    Args:
        claim: The claim.
        results: Results by row.

    Returns:
        The verdict.
    """
    a, b = ([seed[key] for seed in results[row]] for row, key in (claim.better, claim.worse))
    a, b = a[: len(b)], b[: len(a)]  # a row may have fewer seeds
    gains = [(x - y) if claim.higher else (y - x) for x, y in zip(a, b, strict=True)]
    if len(gains) < 2:
        return "one seed only"
    reach = stats.t.ppf(0.975, len(gains) - 1) * statistics.stdev(gains) / len(gains) ** 0.5
    mean = statistics.mean(gains)
    if abs(mean) <= reach:
        return "no clear difference" + ("" if claim.strict else ", so not contradicted")
    return "agrees" if mean > 0 else "**contradicts**"


def claims_table(claims: list[Claim], results: Results, columns: dict[str, str]) -> list[str]:
    """Format the claims whose rows have results.

    Args:
        claims: The claims.
        results: Results by row.
        columns: Labels by column.

    Returns:
        Lines of a Markdown table; none if no claim can be judged.
    """
    lines = ["| claim | measured: first against second | verdict |", "|---|---|---|"]
    for claim in claims:
        (a, a_key), (b, b_key) = claim.better, claim.worse
        if results.get(a) and results.get(b):
            shown = [
                spread([seed[key] for seed in results[row]])
                for row, key in (claim.better, claim.worse)
            ]
            regime = claim.text.partition(": ")[0] + ": "
            a, b = (
                (f"{columns[a_key]}:", f"{columns[b_key]}:")
                if a == b
                else (a.removeprefix(regime), b.removeprefix(regime))
            )
            lines.append(
                f"| {claim.text} | {a} {shown[0]}; {b} {shown[1]} | {verdict(claim, results)} |"
            )
    return lines if len(lines) > 2 else []


def calls_to_reach(
    mine: list[list[tuple[float, float]]], other: list[list[tuple[float, float]]]
) -> list[float]:
    """Return the number of calls that one method needs to reach the final distance of another, by
    seed.

    Args:
        mine: One curve of (calls, distance) per seed.
        other: One curve per seed of the other method.

    Returns:
        For each seed, the calls of the first point at or below the end of the other curve; NaN if
        there is none.
    """
    return [
        next((calls for calls, value in a if value <= b[-1][1]), float("nan"))
        for a, b in zip(mine, other, strict=True)
    ]


def write_page(path: Path, suite, results: Results, command: str) -> None:
    """Write the page and, if there are curves, the plot next to it.

    Args:
        path: File of the page.
        suite: The suite.
        results: Results by row.
        command: Command that makes the page.
    """
    settings = ", ".join(f"{key} {value}" for key, value in suite.settings().items())
    seeds = max((len(found) for found in results.values()), default=0)
    lines = [f"# {suite.title}", ""]
    if rows := claims_table(suite.claims(), results, suite.columns):
        lines += [
            "## Verdicts",
            "",
            *rows,
            "",
            *RULE,
            "",
        ]
    lines += [*suite.sections(results)]
    if plot(path.with_suffix(".png"), suite.curves(results), suite.axes):
        lines += [f"![{suite.axes.alt}]({path.with_suffix('.png').name})", ""]
    over = "the seeds of each row" if _uneven(results) else f"{seeds} seeds"
    shown = f"Mean and standard deviation over {over}" if seeds > 1 else "One seed"
    lines += [
        "## All rows",
        "",
        suite.note,
        "",
        *rows_table(suite, results),
        "",
        f"{shown}. Written by `{command}`: {settings}.",
        "",
    ]
    write_text(path, "\n".join(lines))


def _uneven(results: Results) -> bool:
    """Return whether some rows have more seeds than others."""
    return len({len(seeds) for seeds in results.values() if seeds}) > 1


def rows_table(suite, results: Results) -> list[str]:
    """Format the mean and standard deviation of every column. Missing values stay empty, and rows
    without results are left out.

    Args:
        suite: The suite.
        results: Results by row.

    Returns:
        Lines of a Markdown table.
    """
    found = {
        key
        for seeds in results.values()
        for seed in seeds
        for key, value in seed.items()
        if isinstance(value, float)
    }
    keys = [key for key in suite.columns if key in found]
    heads = [suite.columns[key] for key in keys] + ["seeds"] * _uneven(results)
    lines = ["| | row | " + " | ".join(heads) + " |", "|---" * (len(heads) + 2) + "|"]
    for row in suite.rows():
        if not (seeds := results.get(row.name)):
            continue
        cells = [spread([seed[key] for seed in seeds]) if key in seeds[0] else "" for key in keys]
        cells += [str(len(seeds))] * _uneven(results)
        lines.append(
            f"| {row.group} | {row.name.removeprefix(f'{row.group}: ')} | "
            + " | ".join(cells)
            + " |"
        )
    return lines


def plot(path: Path, curves: dict[str, list[list[tuple[float, float]]]], axes: Axes) -> bool:
    """Plot curves: a thin line per seed, and the mean.

    Args:
        path: Image file to write.
        curves: For each line, one list of points per seed, e.g. (calls, distance).
        axes: Labels.

    Returns:
        True if the plot was written; False without matplotlib or curves.
    """
    if not curves:
        return False
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print(
            "no plot was written: matplotlib is missing; run pip install -e '.[plot]' in the clone"
        )
        return False
    figure = Figure(figsize=(7, 4), layout="constrained")
    plane = figure.add_subplot()
    for colour, (name, seeds) in enumerate(curves.items()):
        for line in seeds:
            plane.plot(*zip(*line, strict=True), f"C{colour}", linewidth=0.6, alpha=0.4)
        means = [
            [statistics.mean(axis) for axis in zip(*points, strict=True)]
            for points in zip(*seeds, strict=True)
        ]
        plane.plot(*zip(*means, strict=True), f"C{colour}", marker="o", label=name)
    plane.set(xlabel=axes.x, ylabel=axes.y, xscale=axes.scale, yscale=axes.scale)
    plane.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.part.png")
    figure.savefig(aside, dpi=120)
    aside.replace(path)
    return True
