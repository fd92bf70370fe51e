"""Stop a run when the user or the cluster asks for it, and record where a rank hangs.

SIGINT (Ctrl-C), SIGTERM and SIGUSR1 (which SLURM sends before a time limit) are handled at the end
of the iteration: all ranks learn of the signal, save, and stop together. If an iteration takes
nearly as long as the timeout of collectives, the rank writes its stack traces to a file.
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

from ..parallel import collectives, launch

AGAIN = 1.0
"""Seconds after which another Ctrl-C counts as a second one. Launchers immediately forward a signal
that the ranks have already received from the terminal.
"""
STOPPED = 75
"""Exit status of a run that stopped on request and saved its state (EX_TEMPFAIL: try again)."""
STOPPING = (
    b"\nstopping after this iteration, then saving a checkpoint; Ctrl-C again stops at once\n"
)


class Interrupted(RuntimeError):
    """The run was asked to stop. Its state is in a checkpoint."""


class StopSignals:
    """Context manager that holds back signals asking the run to stop.

    Args:
        announce: Whether this rank prints a message on Ctrl-C.
    """

    def __init__(self, *, announce: bool = True):
        self._announce = announce
        self._signal: int | None = None
        self._since = 0.0
        self._old: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        # Python allows signal handlers in the main thread only.
        if threading.current_thread() is threading.main_thread():
            self._old = {
                number: signal.signal(number, self._keep)
                for number in launch.STOPPING_SIGNALS
                if signal.getsignal(number) != signal.SIG_IGN
            }
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def requested(self) -> bool:
        """Return whether any rank has received a signal. All ranks must call this together.

        Returns:
            True on all ranks if the run should stop.
        """
        return not collectives.all_agree(self._signal is None)

    def _keep(self, number: int, frame: FrameType | None) -> None:
        again = self._signal is not None and time.monotonic() - self._since > AGAIN
        if number == signal.SIGINT and again:
            raise KeyboardInterrupt
        if self._signal is None:
            self._since = time.monotonic()
            if self._announce and number == signal.SIGINT:
                os.write(2, STOPPING)  # the signal may interrupt a print, which is not reentrant
        self._signal = number


class HangDetector:
    """Context manager that writes stack traces of a rank whose iteration takes too long.

    Does nothing in a single-process run.

    Args:
        folder: Folder of the run. The traces go to its subfolder stuck/.
        world: Processes of the run.
        timeout_minutes: Timeout of collectives. Traces are written after 90 % of it.
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
        """Restart the timer at the start of an iteration."""
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
            f"an iteration took longer than {self.seconds:.0f} s: see the stack trace of every rank"
            f" in {self.path.parent}",
            file=sys.stderr,
        )
