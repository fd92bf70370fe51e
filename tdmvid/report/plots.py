"""From the columns of metrics.jsonl to panels of curves: geometry only, the template draws it.

All coordinates are in the units of one panel's view box, WIDTH x HEIGHT, y downwards.
Curves are N points long, N steps at most.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass

import numpy as np

WIDTH, HEIGHT = 380, 200
LEFT, RIGHT, TOP, BOTTOM = 44, 372, 10, 176
COLOURS = 6
BOOKKEEPING = {"step", "epoch", "time", "wall", "samples", "k", "K"}
TITLES = {  # what a reader of the page may not know by its short name
    "grad_norm": "gradient norm",
    "ess": "effective share of the weighted samples",
    "gap": "distance of teacher and fake",
    "right": "right answers of the discriminator",
    "calls": "network calls a sample",
    "adversarial": "adversarial loss",
    "lr": "learning rate",
    "seconds": "seconds a step",
}
_BINS = 220  # points of a drawn line; more would be finer than the screen
_LOG_SPREAD = 20.0  # a panel whose values spread by more is drawn on a log scale


@dataclass(frozen=True)
class Line:
    """One scalar: `raw` and `smooth` are SVG path data, `last` its last smoothed value, `note` what
    is amiss.

    `name` is what follows the "/", empty for a scalar that is its panel's only one.
    """

    name: str
    colour: int
    raw: str
    smooth: str
    last: str
    note: str


@dataclass(frozen=True)
class Panel:
    """One plot; ticks are (position, label), `hover` is JSON: x positions, steps, and each line's
    values there.
    """

    title: str
    log: bool
    lines: list[Line]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    hover: str


def panels(metrics: dict[str, list[float]]) -> list[Panel]:
    """One panel per group of scalars (what stands before "/" in a name), in order of first
    appearance.
    """
    steps = np.asarray(metrics["step"], dtype=float)
    groups: dict[str, dict[str, np.ndarray]] = {}
    for name, values in metrics.items():
        if name not in BOOKKEEPING:
            group, _, own = name.partition("/")
            groups.setdefault(group, {})[own] = np.asarray(values, dtype=float)
    return (
        [_panel(TITLES.get(name, name), steps, group) for name, group in groups.items()]
        if len(steps)
        else []
    )


def short(value: float) -> str:
    """A number as a reader wants it: three significant digits, thousands separated, 2.4e-6 when
    tiny.
    """
    if not math.isfinite(value):
        return str(value)
    if 1000 <= abs(value) < 1e7:
        return f"{value:,.0f}"
    if value and not 0.001 <= abs(value) < 1e7:
        digits, _, power = f"{value:.2e}".partition("e")
        return f"{float(digits):g}e{int(power)}"
    return f"{value:.3g}"


def smoothed(values: np.ndarray) -> np.ndarray:
    """[N] -> [N]: a centred Hann average over a twenty-fifth of the curve, never over its ends."""
    if not len(values):
        return values
    width = 2 * max(1, len(values) // 50) + 1
    window = np.hanning(width + 2)[1:-1]
    reach = width // 2
    total = np.convolve(values, window)[reach : reach + len(values)]
    return total / np.convolve(np.ones_like(values), window)[reach : reach + len(values)]


def ticks(low: float, high: float, count: int) -> list[float]:
    """About `count` round numbers within [low, high]."""
    step = 10 ** math.floor(math.log10((high - low) / count))
    step *= next(
        factor for factor in (1, 2, 5, 10) if (high - low) / (factor * step) <= count + 1e-6
    )
    return [
        index * step
        for index in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)
    ]


def labelled(values: list[float]) -> list[tuple[float, str]]:
    """Each tick with its text, of as many digits as tell it from the others: 0.9996 and 0.9998 are
    not both 1.
    """
    texts = [short(value) for value in values]
    for digits in range(4, 10):
        if len(set(texts)) == len(texts):
            break
        texts = [f"{value:.{digits}g}" for value in values]
    return list(zip(values, texts))


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten within [low, high]; with 2 and 5 between them where there are few."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1, 2, 5) if math.log10(high / low) < 2.5 else (1,)
    return [f * 10.0**d for d in decades for f in factors if low <= f * 10.0**d <= high]


def _panel(title: str, steps: np.ndarray, group: dict[str, np.ndarray]) -> Panel:
    fit = {name: np.isfinite(values) for name, values in group.items()}
    curves = {name: smoothed(values[fit[name]]) for name, values in group.items()}
    log, low, high = _range([values[fit[name]] for name, values in group.items()])
    scale = np.log if log else np.asarray

    def x_of(step):
        return LEFT + (np.asarray(step) - steps[0]) / max(steps[-1] - steps[0], 1) * (RIGHT - LEFT)

    def y_of(value):
        share = (scale(value) - scale(low)) / (scale(high) - scale(low))
        return BOTTOM - np.clip(share, -0.1, 1.1) * (BOTTOM - TOP)

    lines, hover = [], []
    where = np.linspace(steps[0], steps[-1], min(len(steps), _BINS)).round()
    for index, (name, values) in enumerate(group.items()):
        x, curve = x_of(steps[fit[name]]), curves[name]
        thin = _outline(values[fit[name]])
        even = (
            np.unique(np.linspace(0, len(curve) - 1, _BINS).round().astype(int))
            if len(curve)
            else []
        )
        lines.append(
            Line(
                name=name,
                colour=index % COLOURS,
                raw=_path(x[thin], y_of(values[fit[name]][thin])),
                smooth=_path(x[even], y_of(curve[even])),
                last=short(curve[-1]) if len(curve) else "none",
                note=_note(name or title, fit[name]),
            )
        )
        there = (
            map(short, np.interp(where, steps[fit[name]], curve))
            if len(curve)
            else ["none"] * len(where)
        )
        hover.append(list(there))
    return Panel(
        title=title,
        log=log,
        lines=lines,
        x_ticks=[
            (float(x_of(t)), short(t))
            for t in ticks(steps[0], max(steps[-1], steps[0] + 1), 5)
            if t == int(t)
        ],
        y_ticks=[
            (float(y_of(t)), label)
            for t, label in labelled(log_ticks(low, high) if log else ticks(low, high, 5))
        ],
        hover=json.dumps(
            {"x": x_of(where).round(1).tolist(), "step": [short(s) for s in where], "lines": hover}
        ),
    )


def _range(curves: list[np.ndarray]) -> tuple[bool, float, float]:
    """(log scale?, low, high), of all but the extreme half per cents: one spike must not flatten a
    plot.
    """
    values = np.concatenate(curves)
    if not len(values):
        return False, 0.0, 1.0
    low, high = np.percentile(values, [0.5, 99.5]).tolist()
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
    # A scalar that is logged now and then lacks most steps by design; one that lacks a few has a
    # story.
    missing = int((~finite).sum())
    if missing and 2 * missing < len(finite):
        return f"{name}: {missing} steps without a finite value"
    return "" if finite.any() else f"{name}: no finite value"
