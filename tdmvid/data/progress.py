"""Progress of what takes long: a bar on stderr with the time left.

    with progress("decoding", total=len(clips)) as bar:
        for clip in clips:
            decode(clip)
            bar.update()

A bar appears after QUICK seconds and is gone when its block ends. It is drawn again while a single
step takes long. Where stderr is no terminal, a line is written every PATIENCE seconds instead.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tqdm import tqdm

QUICK = 5.0
"""Seconds that a task takes without a bar."""
PATIENCE = 30.0
"""Seconds between two lines where stderr is no terminal."""


@contextmanager
def progress(what: str, total: float = 0, unit: str = "step") -> Iterator[tqdm]:
    """Show the progress of a block; of several ranks the first one shows it.

    Args:
        what: What the block does, e.g. "decoding".
        total: The number of steps; 0 if there is no such number. Then the bar has only the elapsed
            time.
        unit: What is counted; bytes ("B") get a prefix.

    Yields:
        The bar; call its `update` after each step.
    """
    from tqdm import tqdm  # it reads the environment then, which the command line sets first

    show = os.environ.get("RANK", "0") in ("", "0")
    interval = 1.0 if sys.stderr.isatty() else PATIENCE
    bar = tqdm(
        desc=what,
        total=total or None,
        unit=unit,
        unit_scale=unit == "B",
        bar_format=None if total else "{desc}: {elapsed}",
        leave=False,
        delay=QUICK,
        mininterval=interval if not sys.stderr.isatty() else 0.1,
        dynamic_ncols=True,
        **({} if show else {"disable": True}),
    )
    ended = threading.Event()
    thread = threading.Thread(target=_redraw, args=(bar, ended, interval), daemon=True)
    if show:
        thread.start()
    try:
        yield bar
    finally:
        ended.set()
        if show:
            thread.join()
        bar.close()


def _redraw(bar: tqdm, ended: threading.Event, interval: float) -> None:
    """Draw a bar now and then until its block ends."""
    wait = QUICK
    while not ended.wait(wait):
        bar.delay = 0.0  # a bar that was drawn must be cleared when it is closed
        bar.refresh()
        wait = interval
