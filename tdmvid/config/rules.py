"""Rules that settings obey, written as tables beside the settings.

    RULES = (
        at_least("batch.micro", 1),
        Rule(
            lambda grid: grid.kind == "uniform" and grid.shift != 1,
            "grid.shift",
            "has no effect with grid.kind='uniform': use kind 'shifted'",
        ),
    )

A dataclass checks its table in `__post_init__`; the message then begins with the setting and its
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
"""Characters of a foreign value that a message repeats."""
LONG_BITS = 256
"""Bits of a whole number from which a message counts them instead."""


@dataclass(frozen=True)
class Rule:
    """One rule between settings."""

    broken: Callable[[Any], bool]
    """Settings -> whether they break the rule."""
    setting: str
    """Dotted name of the setting that the message begins with."""
    message: str
    """The rule and a remedy, as the rest of the sentence that begins with setting and value;
    `{name}` stands for the value of another setting.
    """


def check_rules(settings: Any, rules: Iterable[Rule]) -> None:
    """Check the rules in order.

    Args:
        settings: A dataclass of settings.
        rules: Its table.

    Raises:
        ValueError: For the first broken rule, with the setting, its value, the rule and a remedy.
    """
    for rule in rules:
        if rule.broken(settings):
            template = f"{rule.setting}={{{rule.setting}}} {rule.message}"
            raise ValueError(_Message(settings).format(template))


def at_least(setting: str, low: int, note: str = "") -> Rule:
    """Return the rule that a setting has a lower bound.

    Args:
        setting: Its dotted name.
        low: The smallest value allowed.
        note: What the smallest value means, e.g. "0 uses all".
    """
    return Rule(
        lambda settings: value_of(settings, setting) < low,
        setting,
        f"must be at least {low}" + (f"; {note}" if note else ""),
    )


def shown(value: Any) -> str:
    """Return a value as a user writes it in JSON or with --set, with quotes around words, of at
    most SHOWN characters.
    """
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, (list, tuple)):
        return _cut(f"[{', '.join(map(shown, value[:SHOWN]))}]")
    return short(value)


def short(value: Any) -> str:
    """Return a foreign value as a message repeats it, of at most SHOWN characters."""
    if isinstance(value, int) and value.bit_length() > LONG_BITS:  # Python refuses to print it
        return f"a number of {value.bit_length():,} bits"
    if isinstance(value, str):
        return _cut(repr(value[:SHOWN])) if len(value) > SHOWN else _cut(repr(value))
    if isinstance(value, (list, tuple)):
        inner = ", ".join(short(one) for one in value[:SHOWN])
        return _cut(f"[{inner}]" if isinstance(value, list) else f"({inner})")
    if isinstance(value, dict):
        entries = itertools.islice(value.items(), SHOWN)
        return _cut(f"{{{', '.join(f'{short(key)}: {short(one)}' for key, one in entries)}}}")
    return _cut(repr(value))


def _cut(text: str) -> str:
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."


class _Message(string.Formatter):
    """A template whose `{dotted.name}` are values of settings."""

    def __init__(self, settings: Any):
        self.settings = settings

    def get_field(self, field_name: str, args: Any, kwargs: Any) -> tuple[Any, str]:
        return value_of(self.settings, field_name), field_name

    def format_field(self, value: Any, format_spec: str) -> str:
        return format(value, format_spec) if format_spec else shown(value)


def value_of(settings: Any, dotted: str) -> Any:
    """Look up a setting; the name may begin with the section that the settings are."""
    parts = dotted.split(".")
    return functools.reduce(getattr, parts if hasattr(settings, parts[0]) else parts[1:], settings)
