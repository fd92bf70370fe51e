"""What a user or a cluster does to a run: it asks it to stop, and now and then a rank hangs.

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

from ..parallel import launch

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
AGAIN = 1.0
"""Seconds after which a second Ctrl-C is a second one: launchers pass on at once what their ranks
have had from the terminal.
"""
STOPPED = 75
"""Exit status of a run that was asked to stop and saved its state (EX_TEMPFAIL: try again)."""


class Interrupted(RuntimeError):
    """The run was asked to stop; its state is in a checkpoint."""


class Watch:
    """Entered around the loop; `beat` is called at the start of every iteration, `told_to_stop` at
    its end.
    """

    def __init__(self, folder: Path, world: launch.World, timeout_minutes: float):
        self.path = folder / "stuck" / f"rank_{world.rank:04d}.txt"
        self.seconds = 0.9 * 60 * timeout_minutes if world.distributed else 0.0
        self._signal: int | None = None
        self._since, self._says = 0.0, world.primary

    def __enter__(self) -> Watch:
        self._old = {}
        if (
            threading.current_thread() is threading.main_thread()
        ):  # Python allows handlers nowhere else
            self._old = {
                number: signal.signal(number, self._note)
                for number in SIGNALS
                if signal.getsignal(number) != signal.SIG_IGN
            }
        if self.seconds:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("w")
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)
        if self.seconds:
            faulthandler.cancel_dump_traceback_later()
            self._file.close()
            if self.path.stat().st_size:
                print(
                    f"an iteration took longer than {self.seconds:.0f} s: {self.path.parent} says"
                    " where every rank stood",
                    file=sys.stderr,
                )
            else:
                self.path.unlink()

    def _note(self, number: int, frame) -> None:
        if (
            number == signal.SIGINT
            and self._signal is not None
            and time.monotonic() - self._since > AGAIN
        ):
            raise KeyboardInterrupt
        if self._signal is None:
            self._since = time.monotonic()
            if (
                self._says and number == signal.SIGINT
            ):  # not by print, which may be at work as the signal comes
                os.write(
                    2,
                    b"\nstopping after this iteration, whose state is saved; Ctrl-C again stops at"
                    b" once\n",
                )
        self._signal = number

    def beat(self, step: int) -> None:
        """An iteration begins."""
        if self.seconds:
            self._file.seek(0)
            self._file.truncate()
            faulthandler.dump_traceback_later(self.seconds, file=self._file)

    def told_to_stop(self) -> bool:
        """Whether any rank got a signal; all ranks ask together."""
        return not launch.all_agree(self._signal is None)
