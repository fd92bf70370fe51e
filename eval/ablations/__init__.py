"""The suites of eval/ablate.py, and the page with their results."""

import sys
from importlib import import_module
from pathlib import Path

from .data import take_data, write_data
from .page import write_page

__all__ = ["SUITES", "suite", "take_data", "write_data", "write_page"]

sys.path.append(str(Path(__file__).resolve().parents[2]))  # the clone's benchmarks and examples

SUITES = {
    "toy": "toy.ToySuite",
    "rates": "rates.RatesSuite",
    "dmd2": "baseline.DMD2Suite",
    "dmd2_rates": "baseline.DMD2RatesSuite",
    "importance": "importance.ImportanceSuite",
    "targets": "targets.TargetsSuite",
    "rewards": "rewards.RewardsSuite",
    "shapes": "shapes.ShapesSuite",
    "demo": "demo.DemoSuite",
}
"""Module and class of each suite, by name."""


def suite(name: str, iterations: int):
    """Return a suite.

    Args:
        name: Name of the suite.
        iterations: Number of iterations; 0 for the suite's default.

    Returns:
        The suite.
    """
    module, kind = SUITES[name].split(".")
    return getattr(import_module(f".{module}", __name__), kind)(iterations)
