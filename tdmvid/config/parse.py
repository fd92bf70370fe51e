"""Read settings from a JSON file with `--set a.b=c` overrides, and convert them back to JSON.

Unknown keys and wrong types are refused; the message gives the dotted path of the setting.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import json
import math
import types
import typing
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from .json_files import parse_json, read_object
from .objectives import ObjectiveSettings, objective_settings
from .paths import PathText, expand_home
from .resources import find_config
from .rules import SHOWN, is_text, short, shown
from .run import RunConfig

_Config = TypeVar("_Config")


def load_config(path: Path | str, overrides: Sequence[str] = ()) -> RunConfig:
    """Load the settings of a run.

    Args:
        path: JSON file, or name of a built-in config.
        overrides: Overrides of the form `a.b=value`. A value is JSON or a plain string.

    Returns:
        The settings. `name` defaults to the name of the file.

    Raises:
        ValueError: If the file does not exist, or a setting is invalid; the message gives its
            dotted path.
    """
    path = find_config(path)
    data = read_settings(path, overrides)
    data.setdefault("name", path.stem)
    return from_dict(RunConfig, data)


def read_settings(path: Path | str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Read the JSON object of a config file and apply overrides.

    Args:
        path: JSON file.
        overrides: Overrides of the form `a.b=value`.

    Returns:
        The JSON object.

    Raises:
        ValueError: If the file does not hold a JSON object (the message gives file and line), or an
            override is invalid.
    """
    return override(read_object(path, unique=True), overrides)


def override(settings: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Apply overrides to the JSON object of a config.

    Args:
        settings: The JSON object. It is modified.
        overrides: Overrides of the form `a.b=value`.

    Returns:
        The JSON object.

    Raises:
        ValueError: If an override is invalid.
    """
    for text in overrides:
        _override(settings, text)
    return settings


def to_dict(config: Any) -> dict[str, Any]:
    """Convert settings to JSON values. `from_dict` reads them back.

    Args:
        config: A dataclass of settings.

    Returns:
        A JSON object with every setting, defaults included.
    """
    plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config)))
    return plain


def from_dict(cls: type[_Config], data: Any, where: str = "") -> _Config:
    """Build a dataclass of settings from a JSON object.

    Args:
        cls: The dataclass. For `ObjectiveSettings`, `kind` selects the subclass.
        data: The JSON object.
        where: Dotted path of the object; "" for the top level of a file.

    Returns:
        The settings.

    Raises:
        ValueError: If a setting is unknown, has the wrong type or breaks a rule. The message gives
            the dotted path, the value and the rule.
    """
    if not isinstance(data, dict):
        raise ValueError(f"{where or 'config'} must be a JSON object, not {short(data)}")
    chosen = _variant(cls, data, where)
    hints = _type_hints(typing.cast(Hashable, chosen))
    known = [field.name for field in dataclasses.fields(chosen)]
    values = {}
    for key, value in data.items():
        dotted = f"{where}.{key}" if where else key
        if key not in known:
            raise ValueError(f"unknown setting {short(dotted)}: {_advice(chosen, key, known)}")
        values[key] = _convert(hints[key], value, dotted)
    try:
        return typing.cast(_Config, chosen(**values))
    except ValueError as error:
        text = str(error)
        raise ValueError(text if text.startswith(where) else f"{where}.{text}") from None


def map_paths(cls: type[Any], data: dict[str, Any], change: Callable[[str], str]) -> dict[str, Any]:
    """Change every file and folder in settings.

    Args:
        cls: The dataclass that `from_dict` would build.
        data: JSON object of its settings, as `to_dict` returns it.
        change: Function of a path or name.

    Returns:
        A JSON object.
    """
    hints = _type_hints(typing.cast(Hashable, _variant(cls, data, "")))
    return {
        key: _map_paths(hints[key], value, change) if key in hints else value
        for key, value in data.items()
    }


def _map_paths(kind: Any, value: Any, change: Callable[[str], str]) -> Any:
    options = typing.get_args(kind)
    if not value:
        return value
    if kind is PathText:
        return change(value)
    if dataclasses.is_dataclass(kind):
        return map_paths(typing.cast(type, kind), value, change)
    if typing.get_origin(kind) is tuple:
        return [_map_paths(options[0], one, change) for one in value]
    return value


@functools.cache
def _type_hints(cls: Hashable) -> dict[str, Any]:
    """Return the type of each setting. Cached, because evaluating annotations is slow."""
    return typing.get_type_hints(cls, include_extras=True)


def _variant(cls: type[Any], data: dict[str, Any], where: str) -> type[Any]:
    """Return the settings class that `kind` selects; any other class is returned unchanged."""
    if not issubclass(cls, ObjectiveSettings):
        return cls
    kind, known = data.get("kind", "tdm"), objective_settings()
    if not isinstance(kind, str) or kind not in known:
        raise ValueError(
            f"{where}.kind={short(kind)}: choose one of {', '.join(map(repr, sorted(known)))}"
        )
    return known[kind]


def _advice(cls: type[Any], key: str, known: list[str]) -> str:
    """Return a suggestion for an unknown setting."""
    if issubclass(cls, ObjectiveSettings):
        owners = [
            repr(kind)
            for kind, settings in objective_settings().items()
            if key in settings.__dataclass_fields__
        ]
        if owners:
            return f"it belongs to kind {' or '.join(owners)}, and this is kind {cls().kind!r}"
    near = difflib.get_close_matches(key[:SHOWN], known, 1)
    return f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(known)}"


def _convert(kind: Any, value: Any, dotted: str) -> Any:
    """Check a JSON value against a type hint; convert lists to tuples and integers to floats."""
    if dataclasses.is_dataclass(kind):
        return from_dict(typing.cast(type, kind), value, dotted)
    origin, options = typing.get_origin(kind), typing.get_args(kind)
    if kind is PathText:
        return expand_home(_plain(str, value, dotted))
    if origin is Literal:
        if not any(value == option and type(value) is type(option) for option in options):
            raise ValueError(
                f"{dotted}={short(value)}: choose one of {', '.join(map(shown, options))}"
            )
        return value
    if origin in (typing.Union, types.UnionType):
        inner = next(option for option in options if option is not type(None))
        return None if value is None else _convert(inner, value, dotted)
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise ValueError(
                f'{dotted}={short(value)} must be a JSON list, such as ["a", "b"] or [1, 2]'
            )
        return tuple(_convert(options[0], one, f"{dotted}[{i}]") for i, one in enumerate(value))
    return _plain(kind, value, dotted)


def _plain(kind: type[Any], value: Any, dotted: str) -> Any:
    """Check a string, number or boolean."""
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value) if abs(value) < 10**308 else math.inf
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ValueError(
            f"{dotted}={short(value)} must be of type {kind.__name__}{_remedy(kind, value, dotted)}"
        )
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{dotted}={value!r} must be a finite number")
        value += 0.0  # turns -0.0, which prints differently, into 0.0
    if isinstance(value, str) and not value.isprintable():
        _check_text(value, dotted)
    return value


def _remedy(kind: type[Any], value: Any, dotted: str) -> str:
    """Return how to write a value of the right type; "" if this is not known."""
    if kind is bool:
        return ": write true or false"
    if kind is str and isinstance(value, (int, float)):
        # a float may have been written in another way, e.g. 1e5
        text = "..." if isinstance(value, float) else short(value)
        return f": put it in quotes, --set '{dotted}=\"{text}\"'"
    return ""


def _check_text(value: str, dotted: str) -> None:
    """Refuse characters that are invalid in file names or UTF-8."""
    if "\0" in value or not is_text(value):
        raise ValueError(
            f"{dotted}={short(value)} contains a NUL or an unpaired surrogate: remove it"
        )


def _override(data: dict[str, Any], text: str) -> None:
    """Apply one `a.b=value` override to the JSON object of a config, in place."""
    dotted, equals, value = text.partition("=")
    if not equals or not dotted:
        raise ValueError(f"--set {short(text)}: write --set a.b=value")
    *parents, last = dotted.split(".")
    for parent in parents:
        data = data.setdefault(parent, {})
        if isinstance(data, list):
            raise ValueError(
                f"--set {short(text)}: {short(parent)} is a list, whose entries cannot be set one"
                f" by one: write the whole list, --set '{'.'.join(parents)}=[...]'"
            )
        if not isinstance(data, dict):
            raise ValueError(
                f"--set {short(text)}: {short(parent)} is a single value, not a section"
            )
    try:
        json.loads(value)
    except (ValueError, RecursionError):
        data[last] = value
    else:
        data[last] = parse_json(value, f"--set {short(text)}", unique=True)
