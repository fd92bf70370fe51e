"""How a program ends: one line and an exit status for what a user can mend."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import select
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

from ..config.paths import home_path
from ..data.reading import out_of_memory, raised_by_library, reason

TRACEBACK = "TDMVID_TRACEBACK"
"""Environment variable: set to show where an error came from."""
MENDED = (ValueError, OSError, RuntimeError)
"""What the project and its libraries raise about what a user gave."""
FROM_LIBRARIES = (StopIteration, AttributeError, RecursionError, OverflowError, EOFError)
"""What libraries raise about files, even if only a builtin of theirs is called."""
CLOSED_PIPE, INTERRUPTED = 141, 130
LONG_VALUE = re.compile(r"'([^']{77})[^']{4,}'")


class Parser(argparse.ArgumentParser):
    """A parser that expands `~` in paths, and whose messages cut long values as others do."""

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        self.register("type", Path, home_path)  # what type=Path calls

    def error(self, message: str) -> NoReturn:
        super().error(LONG_VALUE.sub(r"'\1...'", message))


def run_program(program: Callable[[], object]) -> None:
    """Run a program's `main`, and leave as `errors_as_one_line` says."""
    with errors_as_one_line():
        program()


@contextlib.contextmanager
def errors_as_one_line() -> Iterator[None]:
    """Turn what a user can mend into one line and an exit status; set TDMVID_TRACEBACK=1 to see
    where it came from.

    Raises:
        SystemExit: With "error: ..." (status 1), with 141 when the reader of the output has left,
            with 130 after Ctrl-C.
    """
    for stream in (sys.stdout, sys.stderr):  # a terminal may lack characters that a prompt has
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except KeyboardInterrupt as interrupt:
        print(str(interrupt) or "interrupted", file=sys.stderr)
        raise SystemExit(INTERRUPTED) from None
    except BrokenPipeError as error:
        if not _silence_closed_streams():  # another pipe, e.g. to a worker
            raise SystemExit(f"error: {reason(error)}") from None
        raise SystemExit(CLOSED_PIPE) from None
    except Exception as error:
        if os.environ.get(TRACEBACK) or not _mended(error):
            raise
        raise SystemExit(f"error: {explain(error)}") from None


def explain(error: Exception) -> str:
    """Return the line that a user reads."""
    if out_of_memory(error):
        return (
            f"out of memory ({reason(error)}): use a smaller batch or size, tiles (--tiling,"
            " model.tiling), or see `tdmvid plan`"
            " for what a run needs"
        )
    if isinstance(error, ValueError) and not raised_by_library(error):
        return " ".join(str(error).split("\n")) or type(error).__name__
    return f"{reason(error)} ({TRACEBACK}=1 shows where)" if _bare(error) else reason(error)


def _bare(error: Exception) -> bool:
    """Return whether an error's own words may not tell a user what it is about."""
    return not isinstance(error, (ValueError, OSError)) and type(error) is not RuntimeError


def _mended(error: Exception) -> bool:
    """Return whether an error is about what the user gave; our own mistakes keep a traceback."""
    return (
        isinstance(error, (*MENDED, *FROM_LIBRARIES))
        or out_of_memory(error)
        or raised_by_library(error)
    )


def _silence_closed_streams() -> bool:
    """Send output that nobody reads nowhere, and return whether there was any."""
    closed = [stream for stream in (sys.stdout, sys.stderr) if _closed(stream)]
    for stream in closed:
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return bool(closed)


def _closed(stream: object) -> bool:
    """Return whether the reader of a stream's pipe has left."""
    try:
        poll = select.poll()
        poll.register(stream.fileno(), select.POLLOUT)  # type: ignore[attr-defined]
        return any(event & select.POLLERR for _, event in poll.poll(0))
    except (OSError, ValueError):
        return False
