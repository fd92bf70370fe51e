"""Format numbers for people."""

from __future__ import annotations

GIB = 2**30
"""Bytes of one GiB."""


def gib(size: float) -> str:
    """Format a number of bytes in GiB.

    Args:
        size: Number of bytes.

    Returns:
        Text such as "5.20 GiB".
    """
    return f"{size / GIB:,.2f} GiB"


def number(value: float) -> str:
    """Format a number with three digits and thousands separators, without an exponent.

    Args:
        value: A number.

    Returns:
        Text such as "1,234" or "0.51".
    """
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def hours(value: float) -> str:
    """Format a duration in hours, or in minutes or seconds if it is short.

    Args:
        value: Duration in hours.

    Returns:
        Text such as "12.3 hours".
    """
    for unit, factor in (("hours", 1), ("minutes", 60)):
        if value * factor >= 0.995:
            return f"{number(value * factor)} {unit}"
    return f"{value * 3600:.2g} seconds"


def flops(value: float) -> str:
    """Format floating-point operations in TFLOP, PFLOP or EFLOP.

    Args:
        value: Number of operations.

    Returns:
        Text such as "23.9 EFLOP".
    """
    for unit, size, least in (("EFLOP", 1e18, 1e18), ("PFLOP", 1e15, 1e16)):
        if value >= least:
            return f"{number(value / size)} {unit}"
    return f"{number(value / 1e12)} TFLOP"
