"""The command `tdmvid`: one entry to all that a user runs.

A subcommand is a module of this package with `add_arguments(parser)` and `run(args)`; its docstring
is its help text. It is imported when it is chosen, and imports torch only when it runs, so that a
help text or a misspelt option answers at once.
"""

from __future__ import annotations

import argparse
import importlib
import shlex
import sys
from collections.abc import Sequence
from types import ModuleType

from ..config.ranges import check_options
from .allocator import expand_segments
from .leave import TRACEBACK, Parser, errors_as_one_line
from .openmp import sleep_between_kernels
from .options import VERBOSE_OPTION, add_launched, add_verbose
from .quiet import VERBOSE, hush_libraries

COMMANDS = {
    "train": "distil a teacher into a few-step student",
    "plan": "print what a training run would do and what memory it needs",
    "sample": "sample prompts with a teacher or a student",
    "benchmark": "sample the prompts of a public benchmark for its own scorer",
    "prompts": "write generated captions, or a public set of prompts, to a file",
    "embed": "embed a run's prompts ahead of training",
    "export": "write a checked bundle for diffusers, ComfyUI or kohya",
    "score": "score a student beside its teacher, or any folder of samples",
    "study": "make a blind A/B study of two sample folders, or count its votes",
    "latency": "time a student beside its teacher, stage by stage",
}


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command line.

    Args:
        argv: the words after the program's name (default: those of this process).

    Raises:
        SystemExit: with "error: ..." (status 1) for what a user can mend, with 2 for wrong usage,
            with 130 after Ctrl-C.
    """
    sleep_between_kernels()
    expand_segments()
    with errors_as_one_line():
        chosen = _parser().parse_args(list(sys.argv[1:] if argv is None else argv))
        args = command_parser(chosen.command).parse_args(chosen.options)
        hush_libraries(chosen.verbose or args.verbose or VERBOSE_OPTION in chosen.options)
        args.command_line = shlex.join(["tdmvid", chosen.command, *_typed(chosen.options)])
        check_options(vars(args))
        _module(chosen.command).run(args)


def command_parser(name: str) -> argparse.ArgumentParser:
    """Build the parser of one command, e.g. "train"."""
    command = _module(name)
    parser = Parser(
        prog=f"tdmvid {name}",
        description=command.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_arguments(parser)
    add_verbose(parser)
    return parser


def _module(name: str) -> ModuleType:
    """Import the module of one command."""
    return importlib.import_module(f".{name}", __package__)


def _parser() -> argparse.ArgumentParser:
    """Build the parser of the first word; the rest is the subcommand's own."""
    listed = "\n".join(f"  {name:<10} {summary}" for name, summary in COMMANDS.items())
    parser = Parser(
        prog="tdmvid",
        usage="tdmvid COMMAND [options]",
        description=f"Few-step students of diffusion models.\n\ncommands:\n{listed}",
        epilog="`tdmvid COMMAND --help` explains one of them.\n"
        f"Set {TRACEBACK}=1 to see where an error came from, and {VERBOSE}=1 (or --verbose) to see"
        " all messages of libraries.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help=argparse.SUPPRESS)
    parser.add_argument("options", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    add_verbose(parser)
    add_launched(parser)
    return parser


def _typed(words: Sequence[str]) -> list[str]:
    """Drop what the deepspeed launcher puts between the words of a user."""
    return [word for word in words if not word.startswith("--local_rank")]
