"""Which options a command line has, so that those without effect are refused."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence

from ..config.rules import shown


def parse_options(
    parser: argparse.ArgumentParser, words: Sequence[str] | None = None
) -> argparse.Namespace:
    """Parse a command line, and list in `given` the options that it has.

    An option whose value is its default is also in `given`.

    Args:
        parser: The parser. It has no defaults afterwards.
        words: Arguments after the program name (default: those of this process).

    Returns:
        The options, and `given`: a set of their names, e.g. "condition_steps".
    """
    args = parser.parse_args(words)
    _remove_defaults(parser)
    args.given = set(vars(parser.parse_args(words)))
    return args


def _remove_defaults(parser: argparse.ArgumentParser) -> None:
    """Let a parser return only what is given, in nested commands too."""
    for action in parser._actions:
        action.default = argparse.SUPPRESS
        if isinstance(action, argparse._SubParsersAction):
            for nested in action.choices.values():
                _remove_defaults(nested)


def refuse_ignored(
    args: argparse.Namespace, names: Iterable[str], why: str, *, remedy: str = "remove it"
) -> None:
    """Refuse options that the call would ignore.

    Args:
        args: Result of `parse_options`.
        names: Names of the options without effect, e.g. "condition_steps".
        why: Rest of the sentence "--steps=4 has no effect ...", e.g. "with --run".
        remedy: What to do.

    Raises:
        ValueError: If one of them is given, even with its default value.
    """
    for name in names:
        if name in args.given:
            raise ValueError(f"{_typed(name, getattr(args, name))} has no effect {why}: {remedy}")


def _typed(name: str, value: object) -> str:
    """Return an option as a user types it."""
    option = f"--{name.replace('_', '-')}"
    if value is True:
        return option
    return f"{option}={shown(value if isinstance(value, (bool, int, float, list)) else str(value))}"
