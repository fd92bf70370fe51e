"""Parse the options of a benchmark, and check their numbers before anything is measured."""

from __future__ import annotations

import argparse

from tdmvid.config.ranges import MILLION, Range, check_number, check_options

RANGES = {
    "iterations": Range(0, MILLION, "iterations"),
    "layers": Range(0, 1000, "blocks; 0 uses all"),
    "sequence": Range(1, 1024, "ranks"),
    "seconds": Range(0, MILLION, "seconds", open="low"),
}
"""Name of an option that `tdmvid` does not have, or means otherwise -> its range."""


def parse(parser: argparse.ArgumentParser, **own: Range) -> argparse.Namespace:
    """Parse the command line.

    Args:
        parser: The parser of the benchmark.
        own: Ranges of this benchmark, by name of the option.

    Returns:
        The options.

    Raises:
        ValueError: A number is outside its range.
    """
    args = parser.parse_args()
    options, ranges = vars(args), RANGES | own
    check_options({name: value for name, value in options.items() if name not in ranges})
    for name, allowed in ranges.items():
        if options.get(name) is not None:
            check_number(f"--{name}", options[name], allowed)
    return args
