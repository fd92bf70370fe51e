"""Write the command-line reference from the parsers of tdmvid/cli."""

from __future__ import annotations

import argparse

from markup import escape, reflow

from tdmvid.cli.main import COMMANDS, command_parser

INTRODUCTION = """\
# Command line

`tdmvid COMMAND --help` prints the same texts. `python -m tdmvid COMMAND` works without an installed
command, and `torchrun --nproc_per_node N -m tdmvid COMMAND` starts it on N processes.
`TDMVID_TRACEBACK=1` shows where an error was raised.

| command | |
| --- | --- |
"""
NO_HELP = "No description."
SCRIPTS = {
    "train": "launch/train.py",
    "sample": "launch/sample.py",
    "embed": "launch/embed_prompts.py",
    "export": "launch/export_lora.py",
    "benchmark": "eval/benchmark_sample.py",
    "latency": "eval/latency.py",
    "study": "eval/user_study.py",
}
"""Commands that a script of a clone starts, too."""


def commands_page() -> str:
    """Return the page in Markdown."""
    table = [f"| [`{name}`](#tdmvid-{name}) | {escape(text)} |" for name, text in COMMANDS.items()]
    parts = [INTRODUCTION + "\n".join(table) + "\n"]
    for name in COMMANDS:
        parts += _parser_parts(command_parser(name), level=2)
        if name in SCRIPTS:
            parts.append(f"In a clone, `python {SCRIPTS[name]}` is the same.\n")
    return "\n".join(parts)


def _parser_parts(parser: argparse.ArgumentParser, *, level: int) -> list[str]:
    """Return the heading, text, usage and options of a parser, and those of its subcommands."""
    actions = [one for one in parser._actions if one.help != argparse.SUPPRESS]
    inner = [one for one in actions if isinstance(one, argparse._SubParsersAction)]
    options = [one for one in actions if one not in inner and one.dest != "help"]
    anchor = parser.prog.replace(" ", "-")
    parts = [f"{'#' * level} `{parser.prog}` {{ #{anchor} }}\n", reflow(parser.description or "")]
    usage = parser.format_usage().replace("\n" + " " * len("usage: "), "\n")
    parts.append(f"\n```text\n{usage.removeprefix('usage: ').strip()}\n```\n")
    for option in options:
        parts.append(f"`{_signature(option)}`\n:   {_help_text(parser, option)}\n")
    for group in inner:
        for child in group.choices.values():
            parts += _parser_parts(child, level=level + 1)
    return parts


def _signature(option: argparse.Action) -> str:
    """Return an option with the name of its value, as its help shows it."""
    metavar = option.metavar or ("" if option.nargs == 0 else option.dest.upper())
    values = " ".join(metavar) if isinstance(metavar, tuple) else metavar
    if option.choices and not option.metavar:
        values = "{" + ",".join(map(str, option.choices)) + "}"
    if option.nargs == "+":
        values = f"{values} ..."
    if not option.option_strings:
        return values.lower() if not option.metavar else values
    return f"{', '.join(option.option_strings)} {values}".strip()


def _help_text(parser: argparse.ArgumentParser, option: argparse.Action) -> str:
    """Return what an option's help says, with its default and whether it is required."""
    text = parser._get_formatter()._expand_help(option) if option.help else ""
    shown = option.default not in (None, "", False, [], argparse.SUPPRESS)
    notes = ["required"] * bool(option.required and option.option_strings)
    if shown and "default" not in text:
        notes.append(f"default: `{option.default}`")
    text = escape(text)
    return f"{text} ({', '.join(notes)})".strip() if notes else text or NO_HELP
