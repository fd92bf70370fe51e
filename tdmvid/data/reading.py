"""What libraries raise about a user's file, as one line that names the file.

    with reading(folder / "vae"):
        vae = AutoencoderKL.from_pretrained(folder, subfolder="vae")

Libraries raise of every kind (SafetensorError, KeyError, StopIteration, RecursionError, ...), most
without the name of the file.
"""

from __future__ import annotations

import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PACKAGE = __package__.partition(".")[0]
LIBRARIES = (
    "<frozen",
    *(sysconfig.get_paths()[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")),
)
"""How the names of files begin that belong to Python or to what is installed."""
LONGEST = 400
"""Characters of a library's message that are repeated."""
MEMORY = ("OutOfMemoryError", "MemoryError")
"""Names of errors that are raised for a device or a host without free memory."""
MEMORY_WORDS = ("out of memory", "can't allocate memory", "cannot allocate memory")


@contextmanager
def reading(source: Path | str, *, advice: str = "") -> Iterator[None]:
    """Name a file or folder in whatever a library raises about it.

    Args:
        source: What the block reads.
        advice: What to do, as the end of the message.

    Raises:
        ValueError: For an error of the block that is not the project's own ValueError, and not
            about memory.
    """
    try:
        yield
    except Exception as error:
        own = isinstance(error, ValueError) and not raised_by_library(error)
        if own or out_of_memory(error):
            raise
        end = f": {advice}" if advice else ""
        raise ValueError(f"{source} cannot be read ({reason(error)}){end}") from error


def reason(error: BaseException) -> str:
    """Return an error as a part of one line: its message, with its type where that says more."""
    text = " ".join(str(error).split())
    if len(text) > LONGEST:
        text = f"{text[: LONGEST - 3]}..."
    if isinstance(error, (ValueError, OSError)) and text:
        return text
    return ": ".join(filter(None, (type(error).__name__, text)))


def raised_by_library(error: BaseException) -> bool:
    """Return whether the innermost call of an error is one of an installed library, or of
    Python's own.
    """
    trace = error.__traceback__
    if trace is None:
        return False
    while trace.tb_next:
        trace = trace.tb_next
    frame = trace.tb_frame
    if str(frame.f_globals.get("__name__", "")).partition(".")[0] == PACKAGE:
        return False
    return frame.f_code.co_filename.startswith(LIBRARIES)


def out_of_memory(error: BaseException) -> bool:
    """Return whether an error is about memory, of the host or of a device."""
    if type(error).__name__ in MEMORY:
        return True
    text = str(error).lower()
    return isinstance(error, (RuntimeError, OSError)) and any(word in text for word in MEMORY_WORDS)
