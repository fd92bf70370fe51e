"""Fill every open row about GPUs in one go: under 9 minutes on one bare H100 or H200.

    python -m benchmarks.gpu --json gpu.json
    python -m benchmarks.gpu --jobs 2b 5b
    python -m benchmarks.gpu --small --pretend    # a trial on a CPU, on the pretended device

Every job is a process of its own. A row is written as soon as it is done; a job that fails or takes
too long leaves a row that says so, and the next one starts. Networks have random weights, made on
the device: nothing is downloaded, and nothing but the rows is written.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.options import parse
from tdmvid.cli.leave import Parser, run_program
from tdmvid.data.files import write_json

NAMES = (
    *("machine", "attention", "2b", "5b", "2b-kept", "2b-compiled", "2b-int8", "zero3"),
    *("sampling", "2b-sdpa"),
)
COLUMNS = (
    *("row", "seconds", "ratio", "share", "TFLOP/s", "GB/s", "forwards"),
    *("peak GiB", "planned GiB", "reserved GiB", "error"),
)
MARK = "ROW "


def arguments() -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument(
        "--seconds",
        type=float,
        help="of all jobs together; a job gets a third (default: 520; with --pretend 3600)",
    )
    parser.add_argument("--json", type=Path, default=Path("gpu.json"), help="where rows are kept")
    parser.add_argument("--small", action="store_true", help="short clips: a trial of the program")
    parser.add_argument("--pretend", action="store_true", help="on a device that computes nothing")
    parser.add_argument("--job", choices=NAMES, help=argparse.SUPPRESS)
    args = parse(parser)
    args.seconds = args.seconds or (3600 if args.pretend else 520)
    return args


def run_job(name: str, args: argparse.Namespace) -> None:
    """Measure one job in this process, and print its rows."""
    if args.pretend:
        from benchmarks.pretended import pretended

        context: Any = pretended()
    else:
        context = contextlib.nullcontext()
    with context:
        from benchmarks.gpu_rows import JOBS

        for row in JOBS[name][0](args.small):
            print(MARK + json.dumps(row), flush=True)


def command_of(name: str, args: argparse.Namespace) -> list[str]:
    """The command of one job."""
    words = [sys.executable, "-u", "-m", "benchmarks.gpu", "--job", name]
    return [*words, *["--small"] * args.small, *["--pretend"] * args.pretend]


def rows_of(name: str, command: list[str], limit: float) -> Iterator[dict[str, Any]]:
    """Run a job in a process of its own.

    Yields:
        Its rows as they come; at last one with an error, if it failed or was ended at the limit.
    """
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    )
    late = threading.Event()

    def end() -> None:
        late.set()
        process.kill()

    timer = threading.Timer(limit, end)
    timer.start()
    last = ""
    assert process.stdout
    for line in process.stdout:
        if line.startswith(MARK):
            yield json.loads(line[len(MARK) :]) | {"job": name}
        elif line.strip():
            last = line.strip()
            print(f"  {last[:160]}", file=sys.stderr)
    timer.cancel()
    if process.wait():
        reason = f"ended after {limit:.0f} s" if late.is_set() else last[:120]
        yield {"row": name, "job": name, "error": reason}


def main() -> None:
    args = arguments()
    if args.job:
        run_job(args.job, args)
        return
    end, rows = time.monotonic() + args.seconds, list[dict[str, Any]]()
    for name in args.jobs:
        left = end - time.monotonic()
        if left < 20:
            found = iter([{"row": name, "job": name, "error": "no time left"}])
        else:
            found = rows_of(name, command_of(name, args), min(left, args.seconds / 3))
        for row in found:
            rows.append(row)
            print(row, flush=True)
            write_json(args.json, {"rows": rows})
    print_table(rows)


def print_table(rows: list[dict[str, Any]]) -> None:
    """Print all rows; a column that no row has is left out."""
    from benchmarks.stopwatch import table  # which imports torch: a pretended device comes first

    shown = [column for column in COLUMNS if any(column in row for row in rows)]
    print("\n" + table(shown, [[row.get(column, "") for column in shown] for row in rows]))


if __name__ == "__main__":
    run_program(main)
