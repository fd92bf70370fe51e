"""Tell the script of a cluster's job that work was saved, which the run's next job does not repeat.

A job that is stopped before it has saved anything is queued again only a few times, because the
next one would probably end in the same way.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

MARKER = "TDMVID_SAVED"
"""Environment variable with the file to create; set by launch/slurm/node.sh."""


def note_saved_work() -> None:
    """Create the file that `MARKER` names, if it is set.

    Call this after a part of a long task is on disk, from which the task continues: a checkpoint, a
    shard of a cache, a sample, or scores.
    """
    if path := os.environ.get(MARKER):
        with suppress(OSError):  # the work itself is saved
            Path(path).touch()
