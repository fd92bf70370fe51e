"""Plot predicted throughput and traffic over the number of GPUs, as SVG."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

COLOURS = ("#1f77b4", "#d95f02", "#2ca02c")
DASHES = ("2 3", "none", "8 4")


class Plotted(Protocol):
    """What a plot shows of a prediction."""

    @property
    def gpus(self) -> int:
        """Number of GPUs."""

    @property
    def throughput(self) -> float:
        """Videos per second of all GPUs."""

    @property
    def sent(self) -> float:
        """GB that one GPU sends in an iteration."""


def draw(models: Mapping[str, Mapping[str, Sequence[Plotted]]], counts: Sequence[int]) -> str:
    """Plot throughput and communication over the number of GPUs, with logarithmic axes.

    Colours stand for models, dashes for cases.

    Args:
        models: Predictions by model and case.
        counts: Numbers of GPUs on the axis, in ascending order.

    Returns:
        An SVG image.
    """
    curves = [
        (colour, dash, points)
        for colour, cases in zip(COLOURS, models.values(), strict=True)
        for dash, points in zip(DASHES, cases.values(), strict=True)
    ]
    throughput = [(*look, [(p.gpus, p.throughput) for p in points]) for *look, points in curves]
    sent = [(*look, [(p.gpus, p.sent) for p in points if p.sent]) for *look, points in curves]
    lines = [
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 900 470" font-size="11"'
        ' font-family="sans-serif"><rect width="900" height="470" fill="white"/>',
        *_panel("predicted: videos a second, all GPUs", 50, throughput, counts),
        *_panel("predicted: GB sent, one GPU, one iteration", 500, sent, counts),
    ]
    lines += _legend(list(models), list(next(iter(models.values()))))
    return "\n".join([*lines, "</svg>"]) + "\n"


def _legend(models: Sequence[str], cases: Sequence[str]) -> Iterator[str]:
    """Yield the legend: colours of models and dashes of cases."""
    entries = [*zip(COLOURS, ("none",) * len(models), models, strict=True)]
    entries += zip(("#444",) * len(cases), DASHES, cases, strict=True)
    for place, (colour, dash, label) in enumerate(entries):
        x, y = (50 if place < len(models) else 500), 400 + 18 * (place % len(models))
        yield _line(colour, dash, [(x, y), (x + 28, y)])
        yield f'<text x="{x + 34}" y="{y + 4}">{label}</text>'


def _panel(
    title: str,
    left: int,
    curves: Sequence[tuple[str, str, list[tuple[int, float]]]],
    counts: Sequence[int],
) -> Iterator[str]:
    """Yield one plot of 360 x 300 points."""
    values = [value for *_, points in curves for _, value in points]
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))

    def place(gpus: int, value: float) -> tuple[float, float]:
        across = math.log2(gpus) / math.log2(counts[-1])
        return left + 360 * across, 340 - 300 * (math.log10(value) - low) / (high - low)

    yield f'<text x="{left}" y="25" font-size="14">{title}</text>'
    for gpus in counts:
        x, _ = place(gpus, 10.0**low)
        yield f'<text x="{x:.1f}" y="358" text-anchor="middle">{gpus}</text>'
    yield f'<text x="{left + 180}" y="376" text-anchor="middle">GPUs</text>'
    for power in range(low, high + 1):
        y = place(1, 10.0**power)[1]
        yield _line("#ddd", "none", [(left, y), (left + 360, y)])
        yield f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{10.0**power:g}</text>'
    for colour, dash, points in curves:
        yield _line(colour, dash, [place(gpus, value) for gpus, value in points])


def _line(colour: str, dash: str, points: Sequence[tuple[float, float]]) -> str:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return (
        f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.6"'
        f' stroke-dasharray="{dash}"/>'
    )
