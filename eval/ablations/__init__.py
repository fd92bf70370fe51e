"""The suites of eval/ablate.py, and the page that shows their results."""

from .page import write_page

__all__ = ["suite", "write_page"]


def suite(name: str, steps: int):
    """A suite by name; `steps` > 0 replaces its own number of iterations."""
    if name == "toy":
        from .toy import ToySuite

        return ToySuite(steps)
    from .shapes import ShapesSuite

    return ShapesSuite(steps)
