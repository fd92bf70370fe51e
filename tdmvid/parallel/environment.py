"""Read the environment variables that a launcher sets for the processes of a run."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from ..config import short

PATIENCE = 15.0
"""Seconds after which a waiting process prints which processes it waits for."""
START = "`torchrun --nproc_per_node N -m tdmvid ...` or `deepspeed`"


@dataclass(frozen=True)
class Launched:
    """Variables of a launcher for this process."""

    rank: int
    """Index of this process."""
    size: int
    """Number of processes."""
    address: str
    """Address at which the processes connect, "host:port"."""

    def __str__(self) -> str:
        others = self.size - 1
        waited = f"{others} other process{'es' * (others != 1)}" if others else "no other process"
        return (
            f"RANK={self.rank} and WORLD_SIZE={self.size} are set, so this process waits for"
            f" {waited} at {self.address}"
        )


def launcher_of(command: str) -> str:
    """Return the command that starts all processes of this run.

    Args:
        command: Command of one process, e.g. "tdmvid train ...".

    Returns:
        The command with `torchrun` and this run's numbers of processes and machines; unchanged for
        a single process without a launcher. Several machines also need an address.

    Raises:
        ValueError: If the launcher's variables are inconsistent or incomplete.
    """
    run = launched()
    if run is None:
        return command
    local = environment_number("LOCAL_WORLD_SIZE") or environment_number("LOCAL_SIZE") or run.size
    nodes = f"--nnodes {run.size // local} " if run.size > local else ""
    return f"torchrun {nodes}--nproc_per_node {local} -m {command}"


REMEDY = f"start all processes with {START}, or `unset RANK WORLD_SIZE` to run a single process"


def launched() -> Launched | None:
    """Read the variables of a launcher. Empty variables count as not set.

    Returns:
        The variables, or None if no launcher set them.

    Raises:
        ValueError: If the variables are inconsistent or incomplete.
    """
    rank, size = environment_number("RANK"), environment_number("WORLD_SIZE")
    if rank is None or size is None:
        return None
    if not 0 <= rank < size:
        raise ValueError(f"RANK={rank} is not below WORLD_SIZE={size}: {REMEDY}")
    place, port = os.environ.get("MASTER_ADDR"), environment_number("MASTER_PORT")
    if size == 1 and not (place and port):  # inherited from the shell of a notebook or batch job
        return None
    if not (place and port):
        missing = "MASTER_PORT" if place else "MASTER_ADDR"
        raise ValueError(
            f"RANK={rank} and WORLD_SIZE={size} are set, but {missing} is missing, so the processes"
            f" cannot connect: {REMEDY}"
        )
    return Launched(rank, size, f"{place}:{port}")


def environment_number(name: str) -> int | None:
    """Read a whole number from an environment variable.

    Args:
        name: Name of the variable.

    Returns:
        The number, or None if the variable is empty or not set.

    Raises:
        ValueError: If the value is not a number of at most nine digits.
    """
    text = os.environ.get(name, "").strip()
    if not text:
        return None
    if not text.isdecimal() or len(text) > 9:
        raise ValueError(
            f"environment variable {name}={short(text)} is not a valid number: start with {START},"
            f" or `unset {name}` to run a single process"
        )
    return int(text)


@contextmanager
def waiting(found: Launched, *, patience: float = PATIENCE) -> Iterator[None]:
    """Print to stderr which processes this one waits for, if the block takes long.

    Args:
        found: Variables of the launcher.
        patience: Seconds until the message is printed.

    Raises:
        ValueError: If the other processes cannot be joined.
    """
    timer = threading.Timer(
        patience, print, [f"{found}; if they were not started: {REMEDY}"], {"file": sys.stderr}
    )
    timer.daemon = True
    timer.start()
    try:
        yield
    except RuntimeError as error:
        raise ValueError(
            f"{found}, but could not join them: {REMEDY} ({_last_line(error)})"
        ) from error
    finally:
        timer.cancel()


def _last_line(error: BaseException) -> str:
    """Return the first line of a torch error, without its C++ stack trace."""
    return str(error).split("\n", 1)[0][:200]
