"""What a run says about itself: metrics.jsonl, TensorBoard and a progress bar.

metrics.jsonl is the record (one JSON object a step, appended, one line each); TensorBoard
holds the same numbers for those who like to watch. Neither is ever read by the training.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from ..data.files import write_text

METRICS = "metrics.jsonl"
ON_THE_BAR = ("loss/fake", "loss/student", "seconds")


class Monitor:
    """Logs the scalars of steps `start` .. `total` - 1 under `out`; silent unless `primary`.

    What an earlier run logged at or after `start` is dropped first, so the record of a
    run that was killed and resumed is the record of one that never stopped.
    """

    def __init__(self, out: Path, *, total: int, start: int = 0, primary: bool = True):
        self._primary = primary
        if not primary:
            return
        out = Path(out)
        out.mkdir(parents=True, exist_ok=True)
        _truncate(out / METRICS, start)
        self._file = (out / METRICS).open("a", encoding="utf-8")
        self._board = SummaryWriter(str(out / "tensorboard"), purge_step=start)
        # A log file is no terminal: a line every half minute is enough there.
        patience = 0.2 if sys.stderr.isatty() else 30.0
        self._bar = tqdm(
            total=total, initial=start, unit="step", mininterval=patience, dynamic_ncols=True
        )

    def log(self, step: int, scalars: dict[str, float]) -> None:
        """Record one step's scalars, plain floats (not finite ones as NaN and Infinity, as Python's
        json does).
        """
        if not self._primary:
            return
        assert "step" not in scalars, "the step is given on its own"
        self._file.write(json.dumps({"step": step, **scalars}) + "\n")
        self._file.flush()  # a killed run loses no finished step
        for name, value in scalars.items():
            self._board.add_scalar(name, value, step)
        shown = {name: f"{scalars[name]:.3g}" for name in ON_THE_BAR if name in scalars}
        self._bar.set_postfix(shown, refresh=False)
        self._bar.update(step + 1 - self._bar.n)

    def close(self) -> None:
        """Flush and release everything; the monitor logs no more."""
        if not self._primary:
            return
        self._bar.close()
        self._board.close()
        self._file.close()


def read_metrics(path: Path) -> dict[str, list[float]]:
    """The columns of a metrics.jsonl: "step" and every scalar, all equally long, NaN where a step
    lacks one.

    A last line that a kill tore is left out. Raises ValueError for any other bad line.
    """
    rows = _rows(Path(path))
    names = dict.fromkeys(name for row in rows for name in row)
    return {"step": [], **{name: [row.get(name, math.nan) for row in rows] for name in names}}


def _truncate(path: Path, start: int) -> None:
    if not path.exists():
        return
    kept = [row for row in _rows(path) if row["step"] < start]
    write_text(path, "".join(json.dumps(row) + "\n" for row in kept))


def _rows(path: Path) -> list[dict[str, float]]:
    # Bytes, since a tear may also split a character.
    lines = path.read_bytes().splitlines()
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(json.loads(line))
        except ValueError:
            if number < len(lines):
                raise ValueError(
                    f"{path}:{number} is not JSON: {line[:80]!r}; remove that line"
                ) from None
    return rows
