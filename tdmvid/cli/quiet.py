"""What libraries print: nothing but errors and progress, unless the user asks for all of it.

It is called before any library is imported, so it sets what they read when they are: environment
variables, filters of loggers and filters of Python warnings. The project's own warnings are lines
on stderr that start with "warning:", which none of these touches.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings

VERBOSE = "TDMVID_VERBOSE"
"""Environment variable: set to 1 to see all that libraries print, as with --verbose."""
ENVIRONMENT = {
    "DIFFUSERS_VERBOSITY": "error",
    "TRANSFORMERS_VERBOSITY": "error",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    "TF_CPP_MIN_LOG_LEVEL": "2",  # of TensorBoard's reader
    # Tokenizers warn of every later fork, unless a choice was made.
    "TOKENIZERS_PARALLELISM": "false",
}
"""What libraries read when they are imported, unless the user has set it."""
LOGGERS = ("DeepSpeed", "accelerate", "deepspeed", "peft", "torchao")
"""Loggers whose warnings are about the libraries' own insides; errors pass."""
MODULES = r"(accelerate|deepspeed|diffusers|peft|tensorboard|torchao|transformers)(\.|$)"
"""Modules whose Python warnings of any kind are silenced."""
TORCH = r"torch\.(?!cuda|accelerator|xpu)"
"""The same of PyTorch, but for what it says of a device and its driver."""
QUICK = 5.0
"""Seconds that a task takes without a progress bar."""
PATIENCE = 30.0
"""Seconds between two lines of progress where stderr is no terminal."""


def hush_libraries(verbose: bool = False) -> None:
    """Silence libraries, and show progress of what takes longer than `QUICK` seconds.

    Programs that this one starts are told the same by the environment.

    Args:
        verbose: Whether libraries print all they have to say; so does `VERBOSE`.
    """
    _slow_bars()
    if verbose:
        os.environ[VERBOSE] = "1"
    if os.environ.get(VERBOSE, "0") not in ("", "0"):
        return
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    for name in LOGGERS:
        logger = logging.getLogger(name)
        logger.setLevel(logging.ERROR)  # of its children too
        logger.addFilter(_only_errors)  # where the library sets a level of its own
    if sys.warnoptions:  # python -W, PYTHONWARNINGS
        return
    for category in (DeprecationWarning, PendingDeprecationWarning, FutureWarning):
        warnings.simplefilter("ignore", category)
    for module in (MODULES, TORCH):
        warnings.filterwarnings("ignore", module=module)


def _only_errors(record: logging.LogRecord) -> bool:
    """Return whether a library's message is shown."""
    return record.levelno >= logging.ERROR


def _slow_bars() -> None:
    """Set tqdm's defaults, which libraries share: no bar for what is quick, and one line now and
    then in a file, where a bar would write one each time.
    """
    os.environ.setdefault("TQDM_DELAY", str(QUICK))
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_MININTERVAL", str(PATIENCE))
        os.environ.setdefault("TQDM_MAXINTERVAL", str(PATIENCE))
