"""The suites of eval/ablate.py, and the page with their results."""

from .page import write_page

__all__ = ["suite", "write_page"]


def suite(name: str, iterations: int):
    """Return a suite.

    Args:
        name: Name of the suite.
        iterations: Number of iterations; 0 for the suite's default.

    Returns:
        The suite.
    """
    if name in ("toy", "rates"):
        from .toy import RatesSuite, ToySuite

        return (ToySuite if name == "toy" else RatesSuite)(iterations)
    if name in ("dmd2", "dmd2_rates"):
        from .baseline import DMD2RatesSuite, DMD2Suite

        return (DMD2Suite if name == "dmd2" else DMD2RatesSuite)(iterations)
    if name == "importance":
        from .importance import ImportanceSuite

        return ImportanceSuite(iterations)
    if name == "rewards":
        from .rewards import RewardsSuite

        return RewardsSuite(iterations)
    from .shapes import ShapesSuite

    return ShapesSuite(iterations)
