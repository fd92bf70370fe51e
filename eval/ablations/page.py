"""The page of a suite: claims of the paper beside what the miniature shows, the table, the plot."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from pathlib import Path

from scipy import stats

from tdmvid.data.files import write_text

Results = dict[str, list[dict]]
RULE = (
    "A claim stands, or is contradicted, where the 95 % interval of the paired difference over the seeds (Student's t) leaves out zero;",
    "the claims are tested one by one, without a correction for their number. No setting was tuned for any row but those under `distance`.",
)


@dataclass(frozen=True)
class Claim:
    """Of two figures, which the paper finds lower: `better` and `worse` are (row, figure); `strict` false allows a tie."""

    text: str
    better: tuple[str, str]
    worse: tuple[str, str]
    strict: bool = True
    higher: bool = False


def spread(values: list[float]) -> str:
    """Mean and standard deviation over the seeds."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.3f} ± {deviation:.3f}"


def verdict(claim: Claim, results: Results) -> str:
    """Measured against measured, seed by seed: a difference counts where its 95 % interval (Student's t) leaves out zero."""
    a, b = ([seed[key] for seed in results[row]] for row, key in (claim.better, claim.worse))
    gains = [(x - y) if claim.higher else (y - x) for x, y in zip(a, b)]
    if len(gains) < 2:
        return "one seed only"
    reach = stats.t.ppf(0.975, len(gains) - 1) * statistics.stdev(gains) / len(gains) ** 0.5
    mean = statistics.mean(gains)
    if abs(mean) <= reach:
        return "no clear difference" + ("" if claim.strict else ", so not contradicted")
    return "agrees" if mean > 0 else "**contradicts**"


def claims_table(claims: list[Claim], results: Results) -> list[str]:
    """One line per claim, those whose rows have results."""
    lines = ["| the paper | measured: first against second | verdict |", "|---|---|---|"]
    for claim in claims:
        (a, a_key), (b, b_key) = claim.better, claim.worse
        if results.get(a) and results.get(b):
            shown = [spread([seed[key] for seed in results[row]]) for row, key in (claim.better, claim.worse)]
            lines.append(f"| {claim.text} | {a} {shown[0]}; {b} {shown[1]} | {verdict(claim, results)} |")
    return lines


def calls_to_reach(results: Results, row: str, target_row: str) -> list[tuple[float, float]]:
    """Per seed: calls until `row`'s curve is at or below the final distance of `target_row`, and that row's calls."""
    found = []
    for mine, other in zip(results.get(row, []), results.get(target_row, [])):
        goal = other["curve"][-1]
        reached = [calls for calls, value in mine["curve"] if value <= goal[1]]
        found.append((reached[0] if reached else float("nan"), goal[0]))
    return found


def write_page(path: Path, suite, results: Results) -> None:
    """The page and, where there are curves, the plot beside it."""
    settings = ", ".join(f"{key} {value}" for key, value in suite.settings().items())
    lines = [
        f"# {suite.title}", "", f"Written by `python eval/ablate.py --suite {suite.settings()['suite']}`. {settings}.", "", suite.note, "",
        "## The paper's claims", "", *RULE, "",
        *claims_table(suite.claims(), results), "",
    ]
    reach = calls_to_reach(results, "TDM", "DMD2, 5 fake updates")
    if reach:
        parts = ", ".join(f"{a:.0f} of {b:.0f}" if a == a else f"not within its run (DMD2 took {b:.0f})" for a, b in reach)
        lines += [f"Network calls until TDM is as near to the data as DMD2 is at its end, by seed: {parts}. Both at the learning rates above.", ""]
    lines += ["## All rows", "", *rows_table(suite, results), ""]
    drawn = plot(path.with_suffix(".png"), results)
    if drawn:
        lines += [f"![distance to the data over network calls]({path.with_suffix('.png').name})", ""]
    write_text(path, "\n".join(lines))


def rows_table(suite, results: Results) -> list[str]:
    """Mean and spread of every figure that any row has; what a row lacks stays empty."""
    found = {key for seeds in results.values() for seed in seeds for key, value in seed.items() if isinstance(value, float)}
    keys = [key for key in suite.columns if key in found]
    lines = ["| | row | " + " | ".join(suite.columns[key] for key in keys) + " |", "|---" * (len(keys) + 2) + "|"]
    for row in suite.rows():
        seeds = results.get(row.name) or []
        cells = [spread([seed[key] for seed in seeds]) if seeds and key in seeds[0] else "" for key in keys]
        lines.append(f"| {row.group} | {row.name} | " + " | ".join(cells) + " |")
    return lines


def plot(path: Path, results: Results) -> bool:
    """Distance over network calls, a line a seed; False without matplotlib or without curves."""
    curves = {row: [seed["curve"] for seed in seeds if "curve" in seed] for row, seeds in results.items()}
    curves = {row: lines for row, lines in curves.items() if lines}
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print("no plot: pip install 'tdmvid[plot]'")
        return False
    if not curves:
        return False
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    for colour, (row, lines) in enumerate(curves.items()):
        for number, line in enumerate(lines):
            axes.plot(*zip(*line), f"C{colour}", marker=".", label=row if number == 0 else None, alpha=0.8)
    axes.set(xlabel="network calls of all roles, in batches", ylabel="sliced W2 to the data, 4 steps", yscale="log")
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.part.png")
    figure.savefig(aside, dpi=120)
    aside.replace(path)
    return True
