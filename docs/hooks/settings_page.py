"""Write the settings reference from the dataclasses of tdmvid/config."""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import itertools
import json
import sys
import types
import typing
from collections.abc import Iterator
from typing import Any, Literal

from markup import escape, reflow

from tdmvid import config
from tdmvid.config.ranges import SETTINGS

RANGES = {
    config.AdapterSettings: "adapter",
    config.OptimConfig: "optim",
    config.RewardConfig: "rewards",
    config.TeacherSampling: "teacher",
    config.VBenchConfig: "evaluation",
    config.ImageConfig: "evaluation",
}
"""Class of a section -> the section under which `SETTINGS` lists its ranges, where that is not the
section's own name.
"""
INTRODUCTION = """\
# Settings

A run reads one JSON file. Every setting can be overridden on the command line by its dotted name:
`--set student.lr=1e-4`. Values are JSON; a value that is not JSON is a string. A path may
begin with `~`, the home folder. Every setting has a default, so a file contains only what differs.
Unknown names, wrong types and values out of range are refused before anything is loaded. The
resolved settings are saved as `config.json` in the run folder.

Evaluations (`tdmvid score vbench` and `tdmvid score images`) read a file of their own:
[VBench](#vbench-evaluations), [images](#image-evaluations).

This page is generated from the dataclasses in `tdmvid/config/`.
"""


@dataclasses.dataclass(frozen=True)
class Setting:
    """One setting as the reference shows it."""

    name: str
    kind: str
    default: Any
    range: str
    text: str


def settings_page() -> str:
    """Return the page in Markdown."""
    parts = [INTRODUCTION, "## Run\n", *_entries(config.RunConfig, "")]
    for field, cls in _sections(config.RunConfig):
        parts += _section(field, cls, _default(config.RunConfig, field))
    for title, cls in (
        ("VBench evaluations", config.VBenchConfig),
        ("Image evaluations", config.ImageConfig),
    ):
        parts += [f"## {title}\n", _class_text(cls), *_entries(cls, "", anchor=title.split()[0])]
        for field, inner in _sections(cls):
            parts.append(f"### `{field}`: {title}\n")
            given = _default(cls, field)
            if field == "teacher":
                anchor = f"{title.split()[0]}.teacher"
                parts += _entries(inner, field, anchor=anchor, defaults=given)
            else:
                parts += _like_a_run(field, given, field_texts(cls)[field])
    return "\n".join(parts)


def settings_of(cls: type, prefix: str, defaults: Any = None) -> Iterator[Setting]:
    """Yield the settings of one dataclass, sections aside.

    Args:
        cls: The dataclass.
        prefix: The dotted name of its section, "" at the top of a file.
        defaults: The instance that a run has by default; None takes the defaults of the fields.

    Raises:
        ValueError: For a setting without a docstring.
    """
    texts = field_texts(cls)
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        if dataclasses.is_dataclass(hints[field.name]):
            continue
        name = f"{prefix}.{field.name}" if prefix else field.name
        if field.name not in texts:
            raise ValueError(f"{cls.__name__}.{field.name} has no docstring: describe the setting")
        default = field.default if defaults is None else getattr(defaults, field.name)
        yield Setting(
            name=name,
            kind=kind_text(hints[field.name]),
            default=list(default) if isinstance(default, tuple) else default,
            range=_range_text(cls, prefix, field.name),
            text=texts[field.name],
        )


@functools.cache
def field_texts(cls: type) -> dict[str, str]:
    """Return the docstring below each field of a dataclass; a subclass inherits those of its bases.

    Args:
        cls: The dataclass.
    """
    texts: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if not dataclasses.is_dataclass(base):
            continue
        tree = ast.parse(inspect.getsource(sys.modules[base.__module__]))
        (body,) = [
            node.body
            for node in tree.body
            if isinstance(node, ast.ClassDef) and node.name == base.__name__
        ]
        for field, below in itertools.pairwise(body):
            if (
                isinstance(field, ast.AnnAssign)
                and isinstance(field.target, ast.Name)
                and isinstance(below, ast.Expr)
                and isinstance(below.value, ast.Constant)
            ):
                texts[field.target.id] = inspect.cleandoc(str(below.value.value))
    return texts


def kind_text(hint: Any) -> str:
    """Return the type of a setting in the words of JSON."""
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return " | ".join(json.dumps(option) for option in options)
    if origin in (typing.Union, types.UnionType):
        return " | ".join(kind_text(option) for option in options)
    if origin is tuple:
        return f"list of {kind_text(options[0])}"
    names = {str: "string", int: "integer", float: "number", bool: "true | false"}
    if dataclasses.is_dataclass(hint):
        return "object"
    return names.get(hint, "null")


def _section(field: str, cls: type, given: Any) -> list[str]:
    """Return the entries of one section of a run, with those of its kinds or of its lists."""
    if issubclass(cls, config.ObjectiveSettings):
        return _objective(field)
    parts = [f"## `{field}`\n", reflow(field_texts(config.RunConfig)[field]) + "\n"]
    parts += [_class_text(cls), *_entries(cls, field, defaults=given)]
    if cls is config.ModelConfig:
        parts += ["### `model.adapters`\n", _class_text(config.AdapterSettings)]
        parts += _entries(config.AdapterSettings, "model.adapters[i]")
    return parts


def _objective(field: str) -> list[str]:
    """Return the settings of all methods, and for each kind its own."""
    parts = [f"## `{field}`\n", *_entries(config.ObjectiveSettings, field)]
    for kind, cls in config.objective_settings().items():
        parts += [f'### Settings of kind `"{kind}"`\n', _class_text(cls)]
        base = cls.__mro__[1]
        inherited, changed = (
            {one.name: one.default for one in dataclasses.fields(any_cls)}
            for any_cls in (base, cls)
        )
        own = [name for name in changed if name not in inherited]
        other = [name for name in inherited if changed[name] != inherited[name] and name != "kind"]
        if base is not config.ObjectiveSettings:
            parts.append(f'The settings of kind `"{base().kind}"` apply as well.\n')
        if other:
            parts.append("These defaults differ:\n")
            parts += [f"* `{field}.{name}`: `{json.dumps(changed[name])}`" for name in other]
            parts.append("")
        parts += _entries(cls, field, names=own)
    return parts


def _like_a_run(field: str, given: Any, text: str) -> list[str]:
    """Return a section of an evaluation that has the settings of a run's section of that name."""
    usual = _default(config.RunConfig, field)
    changed = [
        f"* `{field}.{one.name}`: default `{json.dumps(getattr(given, one.name))}`"
        for one in dataclasses.fields(given)
        if getattr(given, one.name) != getattr(usual, one.name)
    ]
    parts = [f"{reflow(text)} The settings are those of a [run's `{field}`](#{field})"]
    parts[0] += ", with other defaults:\n" if changed else ".\n"
    return [*parts, *changed, ""]


def _default(cls: type, name: str) -> Any:
    (field,) = [one for one in dataclasses.fields(cls) if one.name == name]
    return field.default


def _entries(
    cls: type,
    prefix: str,
    *,
    anchor: str = "",
    names: list[str] | None = None,
    defaults: Any = None,
) -> list[str]:
    """Return one entry a setting: a heading with an anchor, type and default, description."""
    parts = []
    for one in settings_of(cls, prefix, defaults):
        field = one.name.rpartition(".")[2]
        if names is not None and field not in names:
            continue
        target = f"{anchor.lower()}.{field}" if anchor else one.name.replace("[i]", "")
        facts = f"{escape(one.kind)} · default `{json.dumps(one.default)}`"
        facts += f" · {escape(one.range)}" if one.range else ""
        parts.append(f"#### `{one.name}` {{ #{target} }}\n\n{facts}\n{{ .facts }}\n")
        parts.append(f"{reflow(one.text)}\n")
    if cls is config.RunConfig:
        parts += ["### `rewards`\n", _class_text(config.RewardConfig)]
        parts += _entries(config.RewardConfig, "rewards[i]")
    return parts


def _sections(cls: type) -> Iterator[tuple[str, type]]:
    """Yield the fields of a dataclass that are sections, with their classes."""
    for name, hint in typing.get_type_hints(cls).items():
        if dataclasses.is_dataclass(hint):
            yield name, typing.cast(type, hint)


def _class_text(cls: type) -> str:
    return reflow(inspect.getdoc(cls) or "") + "\n"


def _range_text(cls: type, prefix: str, field: str) -> str:
    section = RANGES.get(cls, prefix)
    found = SETTINGS.get(f"{section}.{field}" if section else field)
    return str(found) if found else ""
