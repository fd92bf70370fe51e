"""Numbers as people write them."""

from __future__ import annotations

GIB = 2**30


def gib(size: float) -> str:
    """Return so many bytes in GiB."""
    return f"{size / GIB:,.2f} GiB"


def number(value: float) -> str:
    """Return a number to three digits, with separators and without a power of ten."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def hours(value: float) -> str:
    """Return a time given in hours, in minutes or seconds if it is short."""
    for unit, factor in (("hours", 1), ("minutes", 60)):
        if value * factor >= 0.995:
            return f"{number(value * factor)} {unit}"
    return f"{value * 3600:.2g} seconds"


def flops(value: float) -> str:
    """Return floating-point operations in the unit that leaves few digits."""
    for unit, size, least in (("EFLOP", 1e18, 1e18), ("PFLOP", 1e15, 1e16)):
        if value >= least:
            return f"{number(value / size)} {unit}"
    return f"{number(value / 1e12)} TFLOP"
