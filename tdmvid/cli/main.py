"""Entry point of the command `tdmvid`.

A subcommand is a module of this package with `add_arguments(parser)` and `run(args)`. Its docstring
is its help text. It is imported when it is chosen, and imports torch only when it runs. Therefore
help texts and errors about misspelt options are printed immediately.
"""

from __future__ import annotations

import argparse
import importlib
import shlex
import sys
from collections.abc import Sequence
from types import ModuleType

from ..config.ranges import check_options
from ..config.rules import is_text, short
from .allocator import expand_segments
from .given import parse_options
from .leave import TRACEBACK, Parser, errors_as_one_line
from .openmp import sleep_between_kernels
from .options import VERBOSE_OPTION, add_launched, add_verbose
from .quiet import VERBOSE, hush_libraries

COMMANDS = {
    "train": "distil a teacher into a few-step student",
    "plan": "print what a training run would do, its memory and its cost",
    "sample": "sample prompts with a teacher or a student",
    "playground": "try a student and its teacher in a browser",
    "benchmark": "sample the prompts of a public benchmark for its scorer",
    "prompts": "write generated captions, or a public data set of prompts, to a file",
    "embed": "embed the prompts of a run before training",
    "export": "write a checked bundle for diffusers, ComfyUI or kohya",
    "score": "score a student and its teacher, or any folder of samples",
    "study": "make a blind A/B study of two sample folders, or count its votes",
    "latency": "measure the latency of a student and its teacher by stage",
}


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command line.

    Args:
        argv: Arguments after the program name (default: those of this process).

    Raises:
        SystemExit: With "error: ..." and status 1 for an error that the user can fix, with status 2
            for wrong usage, and with status 130 after Ctrl-C.
    """
    sleep_between_kernels()
    expand_segments()
    with errors_as_one_line():
        words = list(sys.argv[1:] if argv is None else argv)
        _check_text(words)
        chosen = _parser().parse_args(words)
        args = parse_options(command_parser(chosen.command), chosen.options)
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
    """Build the parser of the first argument; the subcommand parses the rest."""
    listed = "\n".join(f"  {name:<10} {summary}" for name, summary in COMMANDS.items())
    parser = Parser(
        prog="tdmvid",
        usage="tdmvid COMMAND [options]",
        description=f"Few-step students of diffusion models.\n\ncommands:\n{listed}",
        epilog="`tdmvid COMMAND --help` shows the options of a command.\n"
        f"Set {TRACEBACK}=1 to see the traceback of an error, and {VERBOSE}=1 (or --verbose) to see"
        " all messages of libraries.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help=argparse.SUPPRESS)
    parser.add_argument("options", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    add_verbose(parser)
    add_launched(parser)
    return parser


def _check_text(words: list[str]) -> None:
    """Refuse words that are not UTF-8: files of a run repeat them."""
    for word in words:
        if not is_text(word):
            raise ValueError(f"{short(word)} is not UTF-8: rename the file or folder, or retype it")


def _typed(words: Sequence[str]) -> list[str]:
    """Remove the arguments that the deepspeed launcher adds."""
    return [word for word in words if not word.startswith("--local_rank")]
