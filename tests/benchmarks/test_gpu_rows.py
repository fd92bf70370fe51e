"""The command for a GPU keeps measurements made before a job failed."""

import sys

import pytest

from benchmarks.gpu import NAMES, rows_of
from benchmarks.gpu_rows import JOBS

FIRST = 'print(\'ROW {"row": "a", "seconds": 1.5}\', flush=True);'


@pytest.mark.parametrize(
    "then, limit, error",
    [
        ("raise SystemExit('out of memory')", 30, "out of memory"),
        ("import time; time.sleep(30)", 0.5, "ended after"),
    ],
)
def test_a_job_that_fails_keeps_its_rows_and_says_why(then, limit, error):
    *rows, last = rows_of("2b", [sys.executable, "-c", FIRST + then], limit)
    assert limit < 1 or rows == [{"row": "a", "seconds": 1.5, "job": "2b"}]
    assert last["job"] == "2b" and error in last["error"]


def test_a_job_that_ends_well_adds_no_row():
    rows = list(rows_of("2b", [sys.executable, "-c", FIRST], 30))
    assert [row["seconds"] for row in rows] == [1.5]


def test_every_job_that_can_be_named_is_there():
    assert set(JOBS) == set(NAMES)
