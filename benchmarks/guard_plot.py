"""Plot of the runs of `benchmarks.guard`."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from pathlib import Path

from tdmvid.data.files import write_text
from tdmvid.report import plots

PALETTE = ("#2a6fa8", "#cc5a36", "#3a8a63", "#8359ad", "#ab7b16", "#5f6b76", "#b23a6b", "#17695f")


def draw_distances(
    path: Path, found: Mapping[str, Mapping[int, float]], healthy: Collection[str]
) -> None:
    """Draw the distances of runs over their iterations on a log scale.

    Args:
        path: SVG file to write.
        found: Distance by iteration, for each run.
        healthy: Names of healthy runs, which get dashed lines.
    """
    steps = sorted({step for run in found.values() for step in run})
    columns: dict[str, list[float]] = {"step": [float(step) for step in steps]}
    for name, run in found.items():
        known = {step: math.log10(max(distance, 0.01)) for step, distance in run.items()}
        columns[f"distance/{name}"] = [known.get(step, math.nan) for step in steps]
    (panel,) = plots.panels(columns)
    right, bottom = plots.RIGHT, plots.BOTTOM
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {right + 170} {plots.HEIGHT}"'
        ' font-family="sans-serif" font-size="10"><rect width="100%" height="100%" fill="white"/>'
    ]
    for y, label in panel.y_ticks:
        value = f"{10 ** float(label):.2f}"
        parts.append(
            f'<path d="M{plots.LEFT} {y:.1f}H{right}" stroke="#ddd"/>'
            f'<text x="{plots.LEFT - 6}" y="{y + 3:.1f}" text-anchor="end">{value}</text>'
        )
    for x, label in panel.x_ticks:
        parts.append(f'<text x="{x:.1f}" y="{bottom + 15}" text-anchor="middle">{label}</text>')
    for number, line in enumerate(panel.lines):
        colour = PALETTE[number % len(PALETTE)]
        dash = ' stroke-dasharray="4 3"' if line.name in healthy else ""
        y = plots.TOP + 8 + 14 * number
        parts.append(
            f'<path d="{line.raw}" fill="none" stroke="{colour}" stroke-width="1.6"{dash}/>'
            f'<text x="{right + 8}" y="{y}" fill="{colour}">{line.name}</text>'
        )
    write_text(path, "\n".join([*parts, "</svg>\n"]))
