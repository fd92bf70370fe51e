"""Rules for settings, written as tables next to the settings dataclasses.

    RULES = (
        at_least("batch.micro", 1),
        Rule(
            lambda grid: grid.kind == "uniform" and grid.shift != 1,
            "grid.shift",
            "has no effect with grid.kind='uniform': use kind 'shifted'",
        ),
    )

A dataclass checks its table in `__post_init__`. The error message begins with the setting and its
value: "grid.shift=3.0 has no effect with ...".
"""

from __future__ import annotations

import functools
import itertools
import string
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

SHOWN = 80
"""Largest number of characters of a user's value that a message shows."""
DEEPEST = 20
"""Largest number of nested lists and objects that a message shows."""
LONG_BITS = 256
"""Integers with more bits than this are not printed; the message gives the number of bits."""


@dataclass(frozen=True)
class Rule:
    """A rule for one setting, or between several."""

    broken: Callable[[Any], bool]
    """Function that takes the settings and returns whether they break the rule."""
    setting: str
    """Dotted name of the setting that the message begins with."""
    message: str
    """Rest of the sentence after setting and value: the rule and a remedy. `{name}` is replaced by
    the value of another setting.
    """


def check_rules(settings: Any, rules: Iterable[Rule]) -> None:
    """Check settings against rules, in order.

    Args:
        settings: A dataclass of settings.
        rules: Rules to check.

    Raises:
        ValueError: If a rule is broken. The message gives the setting, its value, the rule and a
            remedy.
    """
    for rule in rules:
        if rule.broken(settings):
            template = f"{rule.setting}={{{rule.setting}}} {rule.message}"
            raise ValueError(_Message(settings).format(template))


def at_least(setting: str, low: int, note: str = "") -> Rule:
    """Make a rule with a lower bound for a setting.

    Args:
        setting: Dotted name of the setting.
        low: Smallest allowed value.
        note: Meaning of the smallest value, e.g. "0 uses all".

    Returns:
        The rule.
    """
    return Rule(
        lambda settings: value_of(settings, setting) < low,
        setting,
        f"must be at least {low}" + (f"; {note}" if note else ""),
    )


def shown(value: Any) -> str:
    """Format a setting as written in JSON or after `--set`, with strings in quotes.

    Args:
        value: Value of the setting.

    Returns:
        Text of at most `SHOWN` characters.
    """
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, (list, tuple)):
        return _cut(f"[{', '.join(map(shown, value[:SHOWN]))}]")
    return short(value)


def short(value: Any) -> str:
    """Format any value for an error message.

    Args:
        value: A value from a user or a file, of any type and size.

    Returns:
        Text of at most `SHOWN` characters.
    """
    return _short(value, DEEPEST)


def is_text(name: str) -> bool:
    """Check whether a name that the operating system gave is text.

    Args:
        name: Name of a file, or a word of the command line.

    Returns:
        False if its bytes are not UTF-8; Python then replaces them by surrogates.
    """
    return name.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in name)


def _short(value: Any, levels: int) -> str:
    """Format a value with at most a number of levels of nesting."""
    if isinstance(value, int) and value.bit_length() > LONG_BITS:  # Python refuses to print it
        return f"a number of {value.bit_length():,} bits"
    if isinstance(value, str):
        return _cut(repr(value[:SHOWN])) if len(value) > SHOWN else _cut(repr(value))
    if isinstance(value, (list, tuple, dict)) and not levels:
        return "..."
    if isinstance(value, (list, tuple)):
        inner = ", ".join(_short(one, levels - 1) for one in value[:SHOWN])
        return _cut(f"[{inner}]" if isinstance(value, list) else f"({inner})")
    if isinstance(value, dict):
        entries = itertools.islice(value.items(), SHOWN)
        inner = ", ".join(f"{short(key)}: {_short(one, levels - 1)}" for key, one in entries)
        return _cut(f"{{{inner}}}")
    return _cut(repr(value))


def _cut(text: str) -> str:
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."


class _Message(string.Formatter):
    """Formatter that replaces `{dotted.name}` by the value of a setting."""

    def __init__(self, settings: Any):
        self.settings = settings

    def get_field(self, field_name: str, args: Any, kwargs: Any) -> tuple[Any, str]:
        return value_of(self.settings, field_name), field_name

    def format_field(self, value: Any, format_spec: str) -> str:
        return format(value, format_spec) if format_spec else shown(value)


def value_of(settings: Any, dotted: str) -> Any:
    """Look up a setting by its dotted name.

    Args:
        settings: A dataclass of settings.
        dotted: Name of the setting; may begin with the section that `settings` represents.

    Returns:
        The value of the setting.
    """
    parts = dotted.split(".")
    return functools.reduce(getattr, parts if hasattr(settings, parts[0]) else parts[1:], settings)
