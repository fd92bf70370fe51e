"""Stop a run when a user or a cluster asks for it, and say where a rank hangs.

SIGINT (Ctrl-C), SIGTERM and SIGUSR1 (which SLURM sends ahead of a time limit) are kept until the
end of the iteration, when all ranks learn of them, save, and leave together. A rank whose iteration
takes nearly as long as the collectives' timeout writes down where it stands.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

from ..parallel import launch

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
AGAIN = 1.0
"""Seconds after which a second Ctrl-C is a second one: launchers pass on at once what their ranks
have had from the terminal.
"""
STOPPED = 75
"""Exit status of a run that was asked to stop and saved its state (EX_TEMPFAIL: try again)."""
STOPPING = b"\nstopping after this iteration, whose state is saved; Ctrl-C again stops at once\n"


class Interrupted(RuntimeError):
    """The run was asked to stop; its state is in a checkpoint."""


class StopSignals:
    """Keep signals that ask the run to stop; a context manager around the loop.

    Args:
        announce: Whether this rank says on Ctrl-C that it stops.
    """

    def __init__(self, *, announce: bool = True):
        self._announce = announce
        self._signal: int | None = None
        self._since = 0.0
        self._old: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        # Python allows handlers in the main thread only.
        if threading.current_thread() is threading.main_thread():
            self._old = {
                number: signal.signal(number, self._keep)
                for number in SIGNALS
                if signal.getsignal(number) != signal.SIG_IGN
            }
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def requested(self) -> bool:
        """Return whether any rank got a signal; all ranks ask together."""
        return not launch.all_agree(self._signal is None)

    def _keep(self, number: int, frame: FrameType | None) -> None:
        again = self._signal is not None and time.monotonic() - self._since > AGAIN
        if number == signal.SIGINT and again:
            raise KeyboardInterrupt
        if self._signal is None:
            self._since = time.monotonic()
            if self._announce and number == signal.SIGINT:
                os.write(2, STOPPING)  # print may be at work as the signal comes
        self._signal = number


class HangDetector:
    """Write down where this rank stands in an iteration that takes too long.

    A context manager around the loop; it does nothing in a run of one process.
    """

    def __init__(self, folder: Path, world: launch.World, timeout_minutes: float):
        self.path = folder / "stuck" / f"rank_{world.rank:04d}.txt"
        self.seconds = 0.9 * 60 * timeout_minutes if world.distributed else 0.0

    def __enter__(self) -> HangDetector:
        if self.seconds:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("w")
        return self

    def start_iteration(self) -> None:
        """Begin to measure the time of an iteration."""
        if self.seconds:
            self._file.seek(0)
            self._file.truncate()
            faulthandler.dump_traceback_later(self.seconds, file=self._file)

    def __exit__(self, *_: object) -> None:
        if not self.seconds:
            return
        faulthandler.cancel_dump_traceback_later()
        self._file.close()
        if not self.path.stat().st_size:
            self.path.unlink()
            return
        print(
            f"an iteration took longer than {self.seconds:.0f} s: {self.path.parent} says where"
            " every rank stood",
            file=sys.stderr,
        )
