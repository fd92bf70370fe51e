"""What a run says about itself: metrics.jsonl, TensorBoard, a tracker and a progress bar.

metrics.jsonl is the record (one JSON object a step, appended, one line each); TensorBoard and the
experiment tracker of `log.tracker` get the same numbers. None is ever read by the training.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from ..data.files import write_text

if TYPE_CHECKING:
    from .tracker import Tracker

METRICS = "metrics.jsonl"
ON_THE_BAR = ("loss/fake", "loss/student", "seconds")


class Monitor:
    """Logs the scalars of steps `start` .. `total` - 1 under `out`; silent unless `primary`.

    What an earlier run logged at or after `start` is dropped first, so the record of a
    run that was killed and resumed is the record of one that never stopped. What it lacks before
    `start` is taken from `saved`, a folder with a copy, and what is in neither is named.
    """

    def __init__(
        self,
        out: Path,
        *,
        total: int,
        start: int = 0,
        primary: bool = True,
        saved: Path | None = None,
        tracker: Tracker | None = None,
    ):
        self._primary, self._tracker, self._path = primary, tracker, Path(out) / METRICS
        if not primary:
            return
        out = Path(out)
        out.mkdir(parents=True, exist_ok=True)
        _restore(self._path, saved / METRICS if saved else None, start)
        self._file = self._path.open("a", encoding="utf-8")
        self._board = SummaryWriter(str(out / "tensorboard"), purge_step=start)
        # A log file is no terminal: a line every half minute is enough there.
        patience = 0.2 if sys.stderr.isatty() else 30.0
        self._bar = tqdm(
            total=total,
            initial=start,
            unit="step",
            mininterval=patience,
            delay=0.0,  # shown at once, whatever the default is
            dynamic_ncols=True,
        )

    def log(self, step: int, scalars: dict[str, float]) -> None:
        """Record one step's scalars, plain floats (not finite ones as NaN and Infinity, as Python's
        json does).
        """
        if not self._primary:
            return
        assert "step" not in scalars, "the step is given on its own"
        self._file.write(as_row(step, scalars))
        self._file.flush()  # a killed run loses no finished step
        for name, value in scalars.items():
            self._board.add_scalar(name, value, step)
        if self._tracker:
            self._tracker.log(step, scalars)
        shown = {name: f"{scalars[name]:.3g}" for name in ON_THE_BAR if name in scalars}
        self._bar.set_postfix(shown, refresh=False)
        self._bar.update(step + 1 - self._bar.n)

    def add(self, step: int, scalars: dict[str, float]) -> None:
        """Add scalars to the last step that was logged."""
        if not self._primary:
            return
        self.log(step, scalars)
        self._file.close()
        _restore(self._path, None, step + 1, report=False)  # merges the two lines
        self._file = self._path.open("a", encoding="utf-8")

    def warn(self, step: int, lines: Sequence[str]) -> None:
        """Show warnings in TensorBoard, beside the curves."""
        if not self._primary:
            return
        for number, line in enumerate(lines):
            self._board.add_text(f"warning/{number}", line, step)

    def close(self) -> None:
        """Flush and release everything; the monitor logs no more."""
        if not self._primary:
            return
        self._bar.close()
        self._board.close()
        self._file.close()
        if self._tracker:
            self._tracker.close()


def as_row(step: int, scalars: dict[str, float]) -> str:
    """Return the line of one step in metrics.jsonl.

    Args:
        step: The step.
        scalars: Its scalars.

    Returns:
        A line of JSON.
    """
    return json.dumps({"step": step, **scalars}) + "\n"


def read_metrics(path: Path) -> dict[str, list[float]]:
    """The columns of a metrics.jsonl: "step" and every scalar, all equally long, NaN where a step
    lacks one.

    A last line that a kill tore is left out. Raises ValueError for any other bad line.
    """
    rows = _rows(Path(path))
    names = dict.fromkeys(name for row in rows for name in row)
    return {"step": [], **{name: [row.get(name, math.nan) for row in rows] for name in names}}


def count_logged(path: Path) -> int:
    """Return the iteration behind the last one in a metrics.jsonl, 0 if there is none."""
    rows = (row for _, row in _lines(path) if _is_row(row)) if path.exists() else ()
    return max((row["step"] + 1 for row in rows), default=0)


def _restore(path: Path, copy: Path | None, start: int, *, report: bool = True) -> None:
    """Leave the record of the steps before `start` in a file, as far as it or its copy has them."""
    kept: dict[int, dict] = {}
    for source in (copy, path):
        if source and source.exists():
            kept |= _merged(row for _, row in _lines(source) if _is_row(row))
    rows = [json.dumps(kept[step]) + "\n" for step in sorted(kept) if step < start]
    if path.exists() or rows:
        write_text(path, "".join(rows))
    missing = start - len(rows)
    if missing and report:
        print(
            f"{path} lacks {missing:,} of the {start:,} steps so far: it was changed or lost, and"
            " the report leaves them out",
            file=sys.stderr,
        )


def _merged(rows: Iterable[dict]) -> dict[int, dict]:
    """Return one row per step, with the scalars of all its lines."""
    found: dict[int, dict] = {}
    for row in rows:
        found[row["step"]] = found.get(row["step"], {}) | row
    return found


def _is_row(row: Any) -> bool:
    return isinstance(row, dict) and type(row.get("step")) is int and row["step"] >= 0


def _rows(path: Path) -> list[dict[str, float]]:
    lines = _lines(path)
    for number, row in lines[:-1]:
        if not _is_row(row):
            raise ValueError(
                f"{path}:{number} is no line of a record, or a damaged one: remove that line"
            )
    return [row for _, row in lines if _is_row(row)]


def _lines(path: Path) -> list[tuple[int, Any]]:
    """The number and the value of every line; None where that is no JSON."""
    found = []
    # Bytes, since a tear may also split a character.
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            found.append((number, json.loads(line)))
        except ValueError:
            found.append((number, None))
    return found
