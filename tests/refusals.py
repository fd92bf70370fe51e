"""Check that error messages state the facts, whatever their wording."""

import re
from contextlib import contextmanager

import pytest


def states(message: str, fact: object) -> bool:
    """Return whether a message contains a fact as whole words: "steps=1" is not in "steps=10"."""
    before = r"(?<!\w)" if re.match(r"\w", str(fact)) else ""
    after = r"(?!\w|\.\d)" if re.search(r"\w$", str(fact)) else ""
    return re.search(before + re.escape(str(fact)) + after, message) is not None


@contextmanager
def refused(*facts: object, error=ValueError, lines: int = 1):
    """Check that the block raises an error whose message states every fact.

    Args:
        facts: What must stay when the wording changes: a setting with its value ("grid.shift=3.0"),
            a file, or the valid choices.
        error: Type of the exception. Programs end with SystemExit.
        lines: Number of lines of the message.

    Yields:
        What ``pytest.raises`` caught.
    """
    with pytest.raises(error) as caught:
        yield caught
    message = str(caught.value)
    missing = [str(fact) for fact in facts if not states(message, fact)]
    assert not missing, f"{missing} not in: {message}"
    assert message.count("\n") == lines - 1, message
