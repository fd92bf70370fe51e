"""What a launcher, or a shell that inherited its variables, says of the processes of a run."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from ..config import short

PATIENCE = 15.0
"""Seconds after which a program says whom it waits for."""
START = "`torchrun --nproc_per_node N -m tdmvid ...` or `deepspeed`"


@dataclass(frozen=True)
class Launched:
    """This process's number and that of all, and where they meet."""

    rank: int
    size: int
    address: str

    def __str__(self) -> str:
        others = self.size - 1
        waited = f"{others} other process{'es' * (others != 1)}" if others else "no other process"
        return (
            f"RANK={self.rank} and WORLD_SIZE={self.size} are set, so this process waits for"
            f" {waited} at {self.address}"
        )


REMEDY = f"start all by {START}, or `unset RANK WORLD_SIZE` to run alone"


def launched() -> Launched | None:
    """Return what a launcher set, None if there was none; a variable that is empty is not set.

    Raises:
        ValueError: For variables that no launcher sets so.
    """
    rank, size = environment_number("RANK"), environment_number("WORLD_SIZE")
    if rank is None or size is None:
        return None
    if not 0 <= rank < size:
        raise ValueError(f"RANK={rank} is not below WORLD_SIZE={size}: {REMEDY}")
    place, port = os.environ.get("MASTER_ADDR"), environment_number("MASTER_PORT")
    if size == 1 and not (place and port):  # left over in a notebook or a batch job's shell
        return None
    if not (place and port):
        missing = "MASTER_PORT" if place else "MASTER_ADDR"
        raise ValueError(
            f"RANK={rank} and WORLD_SIZE={size} are set, but not {missing}, where the processes"
            f" meet: {REMEDY}"
        )
    return Launched(rank, size, f"{place}:{port}")


def environment_number(name: str) -> int | None:
    """Return a whole number of the environment, None if it is not set or empty.

    Raises:
        ValueError: For anything else.
    """
    text = os.environ.get(name, "").strip()
    if not text:
        return None
    if not text.isdecimal() or len(text) > 9:
        raise ValueError(
            f"the environment has {name}={short(text)}, which is no number of a process: start by"
            f" {START}, or `unset {name}` to run alone"
        )
    return int(text)


@contextmanager
def waiting(found: Launched, *, patience: float = PATIENCE) -> Iterator[None]:
    """Say on stderr whom this process waits for, if the block takes long.

    Raises:
        ValueError: If the others do not come.
    """
    timer = threading.Timer(
        patience, print, [f"{found}; if nobody starts them: {REMEDY}"], {"file": sys.stderr}
    )
    timer.daemon = True
    timer.start()
    try:
        yield
    except RuntimeError as error:
        raise ValueError(f"{found}, and could not join: {REMEDY} ({_last_line(error)})") from error
    finally:
        timer.cancel()


def _last_line(error: BaseException) -> str:
    """Return what an error of torch says, without its stack of C++ calls."""
    return str(error).split("\n", 1)[0][:200]
