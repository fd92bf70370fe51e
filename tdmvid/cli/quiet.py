"""Silence libraries, except for errors and progress, unless the user asks for all messages.

This runs before any library is imported. It sets what libraries read at import: environment
variables, filters of loggers and filters of Python warnings. The project's own warnings are lines
on stderr that start with "warning:", and are not affected.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings

from ..data.progress import PATIENCE, QUICK

VERBOSE = "TDMVID_VERBOSE"
"""Environment variable; 1 shows all messages of libraries, as --verbose does."""
ENVIRONMENT = {
    "DIFFUSERS_VERBOSITY": "error",
    "TRANSFORMERS_VERBOSITY": "error",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    "TF_CPP_MIN_LOG_LEVEL": "2",  # of TensorBoard's reader
    # Without a choice, tokenizers warn about every later fork.
    "TOKENIZERS_PARALLELISM": "false",
}
"""Variables that libraries read at import. Values of the user are kept."""
LOGGERS = ("DeepSpeed", "accelerate", "deepspeed", "peft", "torchao")
"""Loggers with warnings about internals of the libraries. Errors are shown."""
MODULES = r"(accelerate|deepspeed|diffusers|peft|tensorboard|torchao|transformers)(\.|$)"
"""Modules with Python warnings that are all silenced."""
TORCH = r"torch\.(?!cuda|accelerator|xpu)"
"""The same for PyTorch, except for modules that warn about a device and its driver."""


def hush_libraries(verbose: bool = False) -> None:
    """Silence libraries, and show progress of tasks that take longer than `QUICK` seconds.

    Child processes inherit the choice through the environment.

    Args:
        verbose: Whether to show all messages of libraries; the variable `VERBOSE` does the same.
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
        logger.setLevel(logging.ERROR)  # also for child loggers
        logger.addFilter(_only_errors)  # in case the library sets another level
    if sys.warnoptions:  # python -W, PYTHONWARNINGS
        return
    for category in (DeprecationWarning, PendingDeprecationWarning, FutureWarning):
        warnings.simplefilter("ignore", category)
    for module in (MODULES, TORCH):
        warnings.filterwarnings("ignore", module=module)


def _only_errors(record: logging.LogRecord) -> bool:
    """Return whether to show a message of a library."""
    return record.levelno >= logging.ERROR


def _slow_bars() -> None:
    """Set tqdm's defaults: no bar for quick tasks, and few lines in log files."""
    os.environ.setdefault("TQDM_DELAY", str(QUICK))
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_MININTERVAL", str(PATIENCE))
        os.environ.setdefault("TQDM_MAXINTERVAL", str(PATIENCE))
