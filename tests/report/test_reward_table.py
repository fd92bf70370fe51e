"""The report shows rewards with intervals, and the guard's measures beside them."""

import re

import numpy as np
import pytest
from run_folder import Page

from tdmvid.guard.record import GuardCheck, GuardRecord
from tdmvid.report.page import write_report
from tdmvid.report.reward_table import reward_table


def record(**last):
    checks = [
        GuardCheck(step, {}, {"seeds": 1.0, "motion": 1.0} | measures, 0.0, ())
        for step, measures in ((10, {}), (20, last))
    ]
    return GuardRecord(tuple(checks))


def metrics(count=400, high=0.9):
    noise = np.random.default_rng(0).normal(0, 0.1, count)
    return {
        "step": list(range(count)),
        "loss/fake": [1.0] * count,
        "reward/motion": (np.linspace(0.1, high, count) + noise).tolist(),
        "ess/reward": [0.5] * count,
    }


def test_a_reward_s_rise_has_intervals_and_the_guard_s_measures_follow():
    rows = {row.name: row for row in reward_table(metrics(), record(seeds=0.5))}
    assert list(rows) == ["reward/motion", "ess/reward", "guard/seeds", "guard/motion"]
    start, low, high = map(float, re.findall(r"[\d.]+", rows["reward/motion"].start))
    assert low < start < high and start == pytest.approx(0.14, abs=0.05)
    end = float(rows["reward/motion"].end.split()[0])
    assert end == pytest.approx(0.86, abs=0.05)
    assert (rows["guard/seeds"].start, rows["guard/seeds"].end) == ("1", "0.5")
    assert "band" in rows["guard/seeds"].note


def test_an_interval_covers_the_mean_as_often_as_it_says():
    covered = 0
    for seed in range(200):
        values = np.random.default_rng(seed).normal(0.5, 1.0, 640).tolist()
        [row] = reward_table({"reward/motion": values}, GuardRecord())
        _, low, high = map(float, re.findall(r"-?[\d.]+(?:e-?\d+)?", row.start))
        covered += low <= 0.5 <= high
    assert 180 <= covered <= 199


def test_short_runs_and_failed_steps_have_no_interval():
    values = {"reward/motion": [float("nan"), float("nan"), *[0.5] * 18]}
    [row] = reward_table(values, GuardRecord())
    assert (row.start, row.end) == ("–", "0.5")


def test_a_run_without_rewards_has_no_table(tmp_path):
    assert reward_table({"step": [0], "loss/fake": [1.0]}, record()) == []


def test_the_page_shows_the_table(tmp_path):
    lines = (f'{{"step": {step}, "reward/motion": {step / 100}}}' for step in range(100))
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    record(motion=2.0).write(tmp_path)
    text = Page(write_report(tmp_path).read_text()).text
    assert "Rewards" in text and "reward/motion Mean reward" in text and "guard/motion" in text
