"""The command `tdmvid`: one entry to all that a user runs.

A subcommand is a module of this package with `add_arguments(parser)` and `run(args)`; its docstring
is its help text. It is imported when it is chosen, and imports torch only when it runs, so that a
help text or a misspelt option answers at once.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import shlex
import sys
from collections.abc import Iterator, Sequence

from ..config.ranges import check_options
from .options import add_launched

COMMANDS = {
    "train": "distil a teacher into a few-step student",
    "plan": "print what a training run would do and what memory it needs",
    "sample": "sample prompts with a teacher or a student",
    "benchmark": "sample the prompts of a public benchmark for its own scorer",
    "prompts": "write generated captions, or a public set of prompts, to a file",
    "embed": "embed a run's prompts ahead of training",
    "export": "write a checked bundle for diffusers, ComfyUI or kohya",
    "score": "score a student beside its teacher: vbench, images or shapes",
    "study": "make a blind A/B study of two sample folders, or count its votes",
    "latency": "time a student beside its teacher, stage by stage",
}
TRACEBACK = "TDMVID_TRACEBACK"
"""Environment variable: set to show where an error came from."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command line.

    Args:
        argv: the words after the program's name (default: those of this process).

    Raises:
        SystemExit: with "error: ..." (status 1) for what a user can mend, with 2 for wrong usage,
            with 130 after Ctrl-C.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    chosen = _parser().parse_args(words)
    command = importlib.import_module(f".{chosen.command}", __package__)
    parser = argparse.ArgumentParser(
        prog=f"tdmvid {chosen.command}",
        description=command.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_arguments(parser)
    args = parser.parse_args(chosen.options)
    args.command_line = shlex.join(["tdmvid", chosen.command, *_typed(chosen.options)])
    with errors_as_one_line():
        check_options(vars(args))
        command.run(args)
        sys.stdout.flush()


@contextlib.contextmanager
def errors_as_one_line() -> Iterator[None]:
    """Turn what a user can mend into one line and an exit status; set TDMVID_TRACEBACK=1 to see
    where it came from.
    """
    try:
        yield
    except BrokenPipeError:  # who read our output has left, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(141) from None
    except KeyboardInterrupt as interrupt:
        print(str(interrupt) or "interrupted", file=sys.stderr)
        raise SystemExit(130) from None
    except (ValueError, OSError, RuntimeError) as error:
        if os.environ.get(TRACEBACK):
            raise
        line = " ".join(str(error).split("\n")) or type(error).__name__
        raise SystemExit(f"error: {line}") from None


def _parser() -> argparse.ArgumentParser:
    """Build the parser of the first word; the rest is the subcommand's own."""
    listed = "\n".join(f"  {name:<10} {summary}" for name, summary in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="tdmvid",
        usage="tdmvid COMMAND [options]",
        description=f"Few-step students of diffusion models.\n\ncommands:\n{listed}",
        epilog="`tdmvid COMMAND --help` explains one of them.\n"
        f"Set {TRACEBACK}=1 to see where an error came from.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help=argparse.SUPPRESS)
    parser.add_argument("options", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    add_launched(parser)
    return parser


def _typed(words: Sequence[str]) -> list[str]:
    """Drop what the deepspeed launcher puts between the words of a user."""
    return [word for word in words if not word.startswith("--local_rank")]
