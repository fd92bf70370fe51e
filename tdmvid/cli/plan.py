"""Print what a training run would do, its memory and its cost.

    tdmvid plan --config cogvideox5b_4nfe --ranks 8 --device h100 --device-memory 80
    python launch/train.py --config configs/cogvideox5b_4nfe.json --plan --ranks 8

No weights are loaded.
"""

from __future__ import annotations

import argparse

from .train import add_plan, add_run, print_plan, read_config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `tdmvid plan` to a parser."""
    add_run(parser)
    add_plan(parser)


def run(args: argparse.Namespace) -> None:
    """Print the plan of a run.

    Args:
        args: Options of the command.

    Raises:
        ValueError: If the config is invalid, or the run does not fit into `--device-memory`.
    """
    print_plan(read_config(args), args)
