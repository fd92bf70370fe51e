"""Slow steps are marked with what happened just before them."""

import pytest

from tdmvid.report import plots
from tdmvid.report.slow_steps import UNKNOWN, find_slow_steps, summarize

LOG = {"checkpoint_every": 10, "sample_every": 15}


def columns(slow, *, count=40, compared=()):
    """Metrics of a run with steps of one second, and some of ten."""
    return {
        "step": list(range(count)),
        "seconds": [10.0 if step in slow else 1.0 for step in range(count)],
        "guard/distance": [1.0 if step in compared else float("nan") for step in range(count)],
    }


@pytest.mark.parametrize(
    "step, cause",
    [
        (0, "first step"),
        (5, UNKNOWN),
        (10, "checkpoint"),
        (11, "checkpoint"),
        (12, UNKNOWN),
        (15, "samples"),
        (30, "samples, checkpoint"),
    ],
)
def test_a_step_follows_what_the_run_did_after_the_same_number_of_iterations(step, cause):
    median, (slow,) = find_slow_steps(columns([step]), LOG)
    assert (median, slow.step, slow.seconds, slow.cause) == (1.0, step, 10.0, cause)


def test_a_comparison_of_the_guard_is_found_in_its_numbers():
    _, (slow,) = find_slow_steps(columns([8], compared=[7]), {})
    assert slow.cause == "samples, guard"


def test_three_times_the_median_is_not_slow():
    metrics = {"step": [0, 1, 2], "seconds": [1.0, 1.0, 3.0]}
    assert find_slow_steps(metrics, LOG)[1] == []
    metrics["seconds"][2] = 3.01
    assert [one.step for one in find_slow_steps(metrics, LOG)[1]] == [2]


def test_steps_without_a_time_are_left_out():
    assert find_slow_steps({"step": [0, 1]}, LOG) == (0.0, [])
    metrics = {"step": [0, 1], "seconds": [float("nan"), 2.0]}
    assert find_slow_steps(metrics, LOG) == (2.0, [])


def test_many_slow_steps_are_summed_up_by_cause():
    _, slow = find_slow_steps(columns(range(10, 400, 10), count=400), {"checkpoint_every": 10})
    assert summarize(slow) == ["checkpoint: steps 10, 20, 30, 40, 50, 60 and 33 more"]


def test_marks_lie_on_the_curve_of_seconds_alone():
    panels = {panel.title: panel for panel in plots.panels(columns([20]), LOG)}
    (mark,) = panels["seconds"].marks
    assert mark.text == "step 20: 10 s (checkpoint)" and plots.TOP <= mark.y < plots.BOTTOM
    assert pytest.approx(mark.x, abs=0.1) == plots.LEFT + 20 / 39 * (plots.RIGHT - plots.LEFT)
    assert panels["seconds"].marked[1:] == ("checkpoint: step 20",)
    assert not panels["guard/distance"].marks
