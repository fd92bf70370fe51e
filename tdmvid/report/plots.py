"""From the columns of metrics.jsonl to panels of curves: geometry only, the template draws it.

All coordinates are in the units of one panel's view box, WIDTH x HEIGHT, y downwards.
Curves are N points long, N steps at most.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from .meanings import GUARD, guard_band, sentence, usual_range
from .slow_steps import SLOW, SlowStep, find_slow_steps, summarize

WIDTH, HEIGHT = 380, 200
LEFT, RIGHT, TOP, BOTTOM = 54, 372, 10, 176
COLOURS = 6
BOOKKEEPING = {"step", "epoch", "time", "wall", "samples", "k", "K"}
_BINS = 220  # points of a drawn line; more would be finer than the screen
_LARGEST = 1e150
"""Largest end of an axis; differences of larger numbers overflow."""
_LOG_SPREAD = 20.0  # a panel whose values spread by more is drawn on a log scale


@dataclass(frozen=True)
class Line:
    """One scalar: `raw` and `smooth` are SVG path data, `last` its last smoothed value, `note` what
    is amiss, `band` top and height of where healthy values lie.

    `metric` is its name in metrics.jsonl, `name` what follows the "/" there, empty for a scalar
    that is its panel's only one.
    """

    metric: str
    name: str
    colour: int
    raw: str
    smooth: str
    last: str
    note: str
    band: tuple[float, float] | None


@dataclass(frozen=True)
class Mark:
    """A slow step in a plot: where it lies, and its text."""

    x: float
    y: float
    text: str


@dataclass(frozen=True)
class Panel:
    """One plot; ticks are (position, label), `hover` is JSON: x positions, steps, and each line's
    values there.
    """

    title: str
    sentence: str
    log: bool
    lines: list[Line]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    hover: str
    teacher: float | None = None
    """Height of the teacher's value in a plot of the guard."""
    marks: tuple[Mark, ...] = ()
    marked: tuple[str, ...] = ()
    """Lines of text on the marks; the first one says what is marked."""


def panels(
    metrics: dict[str, list[float]], log: Mapping[str, Any] | None = None, *, demo: bool = False
) -> list[Panel]:
    """Lay out one panel per group of scalars, in order of first appearance.

    A group is what stands before "/" in a name; each of the guard's measures is its own.

    Args:
        metrics: columns of metrics.jsonl.
        log: settings `log.*` of the run, which say when it saved and sampled.
        demo: whether the run has the demo's teacher, see `usual_range`.
    """
    steps = np.asarray(metrics["step"], dtype=float)
    groups: dict[str, dict[str, np.ndarray]] = {}
    for name, values in metrics.items():
        if name not in BOOKKEEPING:
            group, _, own = name.partition("/")
            if group == GUARD:
                group, own = name, ""
            groups.setdefault(group, {})[own] = np.asarray(values, dtype=float)
    if not len(steps):
        return []
    median, slow = find_slow_steps(metrics, log or {})
    return [
        _panel(name, steps, group, median, slow if name == "seconds" else [], demo)
        for name, group in groups.items()
    ]


def short(value: float) -> str:
    """Format a number with three significant digits: 0.123, 12,345, 2.4e-6."""
    if not math.isfinite(value):
        return str(value)
    if 1000 <= abs(value) < 1e7:
        return f"{value:,.0f}"
    if value and not 0.001 <= abs(value) < 1e7:
        digits, _, power = f"{value:.2e}".partition("e")
        return f"{float(digits):g}e{int(power)}"
    return f"{value:.3g}"


def smoothed(values: np.ndarray) -> np.ndarray:
    """Average with a centred Hann window over a twenty-fifth of the curve, never over its ends.

    [N] -> [N].
    """
    if not len(values):
        return values
    width = 2 * max(1, len(values) // 50) + 1
    window = np.hanning(width + 2)[1:-1]
    reach = width // 2
    total = np.convolve(values, window)[reach : reach + len(values)]
    return total / np.convolve(np.ones_like(values), window)[reach : reach + len(values)]


def ticks(low: float, high: float, count: int) -> list[float]:
    """Return about `count` round numbers within [low, high]."""
    step = 10 ** math.floor(math.log10((high - low) / count))
    step *= next(
        factor for factor in (1, 2, 5, 10) if (high - low) / (factor * step) <= count + 1e-6
    )
    return [
        index * step
        for index in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)
    ]


def labelled(values: list[float]) -> list[tuple[float, str]]:
    """Pair each tick with its text, with as many digits as distinguish it from the others.

    0.9996 and 0.9998 are not both 1.
    """
    texts = [short(value) for value in values]
    for digits in range(4, 10):
        if len(set(texts)) == len(texts):
            break
        texts = [f"{value:.{digits}g}" for value in values]
    return list(zip(values, texts))


def log_ticks(low: float, high: float) -> list[float]:
    """Return the powers of ten within [low, high]; with 2 and 5 between them if they are few."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1, 2, 5) if math.log10(high / low) < 2.5 else (1,)
    return [f * 10.0**d for d in decades for f in factors if low <= f * 10.0**d <= high]


@dataclass(frozen=True)
class _Axes:
    """Where steps and values lie in a panel's view box."""

    first: float
    last: float
    low: float
    high: float
    log: bool

    def x(self, steps: ArrayLike) -> np.ndarray:
        share = (np.asarray(steps) - self.first) / max(self.last - self.first, 1)
        return LEFT + share * (RIGHT - LEFT)

    def y(self, values: ArrayLike) -> np.ndarray:
        scale = np.log if self.log else np.asarray
        low, high = scale(self.low), scale(self.high)
        share = (scale(values) - low) / (high - low)
        return BOTTOM - np.clip(share, -0.1, 1.1) * (BOTTOM - TOP)

    def band(self, low: float, high: float) -> tuple[float, float]:
        """Return top and height of the values between two bounds; on a log scale from its start."""
        bottom, top = (
            float(self.y(max(end, self.low) if self.log else end)) for end in (low, high)
        )
        return top, bottom - top

    def x_ticks(self) -> list[tuple[float, str]]:
        steps = ticks(self.first, max(self.last, self.first + 1), 5)
        return [(float(self.x(step)), short(step)) for step in steps if step == int(step)]

    def y_ticks(self) -> list[tuple[float, str]]:
        values = log_ticks(self.low, self.high) if self.log else ticks(self.low, self.high, 5)
        return [(float(self.y(value)), label) for value, label in labelled(values)]


def _panel(
    key: str,
    steps: np.ndarray,
    group: dict[str, np.ndarray],
    median: float,
    slow: list[SlowStep],
    demo: bool,
) -> Panel:
    """Lay out one group of scalars; values that are not finite are left out."""
    finite = {name: np.isfinite(values) for name, values in group.items()}
    log, low, high = _range([values[finite[name]] for name, values in group.items()])
    band = guard_band(key)
    if band and not log:  # all of the band, so that its ends are seen
        pad = 0.06 * (band.high - band.low)
        low, high = min(low, band.low - pad), max(high, band.high + pad)
    axes = _Axes(steps[0], steps[-1], low, high, log)
    where = np.linspace(steps[0], steps[-1], min(len(steps), _BINS)).round()
    lines, hover = [], []
    for index, (name, values) in enumerate(group.items()):
        own, known = finite[name], values[finite[name]]
        curve = smoothed(known)
        metric = f"{key}/{name}" if name else key
        usual = usual_range(metric, demo=demo)
        lines.append(
            Line(
                metric=metric,
                name=name,
                colour=index % COLOURS,
                **_draw(axes, steps[own], known, curve),
                last=short(curve[-1]) if len(curve) else "none",
                note=_note(metric, own),
                band=axes.band(*usual) if usual else None,
            )
        )
        hover.append(_hover(where, steps[own], curve))
    x = axes.x(where).round(1).tolist()
    return Panel(
        title=key,
        sentence=sentence(key),
        log=log,
        lines=lines,
        x_ticks=axes.x_ticks(),
        y_ticks=axes.y_ticks(),
        hover=json.dumps({"x": x, "step": [short(s) for s in where], "lines": hover}),
        teacher=float(axes.y(1.0 if band.ratio else 0.0)) if band and not log else None,
        marks=_marks(axes, slow),
        marked=_marked(median, slow),
    )


def _marks(axes: _Axes, slow: list[SlowStep]) -> tuple[Mark, ...]:
    """Marks of slow steps, one for each place that can be told apart and each cause."""
    marks = {}
    for one in slow:
        x = round(float(axes.x(one.step)), 1)
        y = min(max(float(axes.y(one.seconds)), TOP), BOTTOM)
        text = f"step {one.step:,}: {short(one.seconds)} s ({one.cause})"
        marks[round(x), one.cause] = Mark(x, round(y, 1), text)
    return tuple(marks.values())


def _marked(median: float, slow: list[SlowStep]) -> tuple[str, ...]:
    if not slow:
        return ()
    first = f"Marked: more than {SLOW:g} times the median of {short(median)} s."
    return first, *summarize(slow)


def _draw(axes: _Axes, steps: np.ndarray, values: np.ndarray, curve: np.ndarray) -> dict[str, str]:
    """Path data of one scalar, as it was logged and smoothed: [N] each."""
    thin = _outline(values)
    even = np.unique(np.linspace(0, max(len(curve) - 1, 0), _BINS).round().astype(int))
    even = even[: len(curve)]
    x = axes.x(steps)
    return {
        "raw": _path(x[thin], axes.y(values[thin])),
        "smooth": _path(x[even], axes.y(curve[even])),
    }


def _hover(where: np.ndarray, steps: np.ndarray, curve: np.ndarray) -> list[str]:
    """The curve's values at the steps `where`, as text."""
    if not len(curve):
        return ["none"] * len(where)
    return [short(value) for value in np.interp(where, steps, curve)]


def _range(curves: list[np.ndarray]) -> tuple[bool, float, float]:
    """(log scale?, low, high), of all but the extreme half per cents: one spike must not flatten a
    plot.
    """
    values = np.concatenate(curves)
    if not len(values):
        return False, 0.0, 1.0
    low, high = np.clip(np.percentile(values, [0.5, 99.5]), -_LARGEST, _LARGEST).tolist()
    if values.min() > 0 and high / low > _LOG_SPREAD:
        return True, low / 1.2, high * 1.2
    pad = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
    # Nothing below zero was logged, so the axis shows none.
    return False, max(low - pad, 0.0) if values.min() >= 0 else low - pad, high + pad


def _outline(values: np.ndarray) -> np.ndarray:
    """Indices of the lowest and highest value of each bin: fewer points, every spike kept."""
    if len(values) <= 2 * _BINS:
        return np.arange(len(values))
    parts = np.array_split(np.arange(len(values)), _BINS)
    return np.unique([(part[values[part].argmin()], part[values[part].argmax()]) for part in parts])


def _path(x: np.ndarray, y: np.ndarray) -> str:
    return "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in zip(x, y)) if len(x) else ""


def _note(name: str, finite: np.ndarray) -> str:
    # A scalar that is logged now and then lacks most steps by design; one that lacks a few is
    # worth a note.
    missing = int((~finite).sum())
    if missing and 2 * missing < len(finite):
        return f"{name}: {missing} steps without a finite value"
    return "" if finite.any() else f"{name}: no finite value"
