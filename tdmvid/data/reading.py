"""Turn library errors about a user's file into one line that names the file.

    with reading(folder / "vae"):
        vae = AutoencoderKL.from_pretrained(folder, subfolder="vae")

Libraries raise many types of errors (SafetensorError, KeyError, StopIteration, RecursionError), and
most do not name the file.
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
"""Prefixes of source files that belong to Python or to installed packages."""
LONGEST = 400
"""Largest number of characters of a library's message that is shown."""
MEMORY = ("OutOfMemoryError", "MemoryError")
"""Names of out-of-memory errors, of device and host."""
MEMORY_WORDS = ("out of memory", "can't allocate memory", "cannot allocate memory")


@contextmanager
def reading(source: Path | str, *, advice: str = "") -> Iterator[None]:
    """Convert errors of the block into a ValueError that names the file.

    Args:
        source: File or folder that the block reads.
        advice: Remedy, the end of the message.

    Raises:
        ValueError: If the block raises an error. A ValueError raised by this project and an
            out-of-memory error are passed on unchanged.
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
    """Format an error as part of a one-line message.

    Args:
        error: The error.

    Returns:
        Its message, preceded by its type unless it is a ValueError or OSError.
    """
    text = " ".join(str(error).split())
    if len(text) > LONGEST:
        text = f"{text[: LONGEST - 3]}..."
    if isinstance(error, (ValueError, OSError)) and text:
        return text
    return ": ".join(filter(None, (type(error).__name__, text)))


def raised_by_library(error: BaseException) -> bool:
    """Check whether an error was raised by an installed library or by Python itself.

    Args:
        error: The error, with its traceback.

    Returns:
        True if the innermost frame belongs to a library.
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
    """Check whether an error means that the host or a device is out of memory.

    Args:
        error: The error.

    Returns:
        True if it is an out-of-memory error.
    """
    if type(error).__name__ in MEMORY:
        return True
    text = str(error).lower()
    return isinstance(error, (RuntimeError, OSError)) and any(word in text for word in MEMORY_WORDS)
