"""The demo suite compares students with their teacher video by video, in equal processor time."""

import json

import pytest

from ablations import demo, shapes
from ablations.consistency import consistency
from ablations.demo import CAPTIONS, DEMO_ROW, EACH, EVALUATIONS, TEACHER_ROW, DemoSuite
from benchmarks.stopwatch import Clock
from tdmvid.config import load_config
from tdmvid.shapes import score


def student(wrong, frechet=0.2, diversity=2.0, seed=3):
    """Figures of a sampler that fails for the first `wrong` captions."""
    digits = "0" * (EACH * wrong) + "1" * (EACH * (CAPTIONS - wrong))
    found = {"seed": seed}
    for each in EVALUATIONS:
        found |= {f"frechet/{each}": frechet, f"diversity/{each}": diversity}
        found[f"videos/{each}"] = digits
    return found


def test_a_difference_is_that_of_the_shares_with_captions_resampled():
    found = demo.difference(student(0), student(16), 0)
    assert found.value == pytest.approx(16 / CAPTIONS)
    assert 0 < found.low < found.value < found.high
    same = demo.difference(student(16), student(16), 1)
    assert (same.low, same.value, same.high) == (0, 0, 0)


def test_copies_of_a_caption_are_one_group_of_the_interval():
    """One-object captions repeat in an evaluation, so there are fewer captions than rows."""
    groups = score.number_captions(score.evaluation_set(CAPTIONS, EACH, 0))
    assert 2 < int(groups.max()) + 1 < CAPTIONS


def test_the_page_counts_how_often_the_goals_are_reached():
    results = {
        TEACHER_ROW: [student(8, 0.4, 2.5)],
        DEMO_ROW: [student(0, 0.2, 2.5), student(64, 0.4, 2.4, seed=4)],
        "other": [],
    }
    lines = DemoSuite(5).sections(results)
    text = "\n".join(lines)
    assert f"| {DEMO_ROW} | 3 | 0 | +3.1 [" in text and "| 0.50 x | 1.00 x |" in text
    assert f"| {DEMO_ROW} | 4 | 1 | -21.9 [" in text
    (line,) = [line for line in lines if line.startswith("* ")]
    assert "on average -9.4 points, 0.75 x the distance and 0.98 x the diversity" in line
    assert "Of 4 evaluations, 2 are not clearly below the teacher, 2 have at most 0.8 x" in line
    assert line.endswith("2 at least its diversity.")
    assert DemoSuite(5).sections({DEMO_ROW: [student(0)]}) == [], "nothing to compare with"


@pytest.mark.parametrize("row", demo.ROWS[1:], ids=lambda row: row.name)
def test_every_row_is_a_valid_run(row):
    config = load_config(demo.DEMO, [*row.changes])
    assert config.steps == 650
    streams = not isinstance(row, demo.Other)
    assert (config.objective.rollout == "stream") == streams, "variants are the demo otherwise"


def test_the_page_states_the_rate_of_the_demo_s_fake():
    config = load_config(demo.DEMO)
    assert f"fake has {config.fake.lr / config.student.lr:g} times" in DemoSuite.note


@pytest.mark.slow
@pytest.mark.parametrize("row", demo.ROWS[2:4], ids=lambda row: row.name)
def test_slower_iterations_get_fewer_of_them(row, tmp_path, monkeypatch):
    calls = []

    def alternate(named, *, repeats, device):
        for name, call in named.items():
            call(0)
            calls.append(name)
        return {"demo": Clock(1.0, 1.0, 1.0), "other": Clock(4.0, 4.0, 1.0)}

    monkeypatch.setattr(demo, "ITERATIONS", 1)
    monkeypatch.setattr(demo, "alternate", alternate)
    monkeypatch.setattr(shapes, "consistency", lambda run, prompts: consistency(run, prompts, 4))
    config = load_config(demo.DEMO, [f"out={tmp_path / 'run'}", "batch.micro=2", *row.changes])
    assert demo.fitting(config, row.method, 100) == 25 and calls == ["demo", "other"]


@pytest.mark.slow
def test_the_demo_is_trained_and_scored_with_every_evaluation(tmp_path, monkeypatch):
    for name, value in (("CAPTIONS", 3), ("EACH", 2), ("REFERENCE", 32), ("ROOT", tmp_path)):
        monkeypatch.setattr(demo, name, value)
    settings = json.loads(demo.DEMO.read_text()) | {"batch": {"micro": 2}}
    monkeypatch.setattr(demo, "DEMO", tmp_path / "demo.json")
    demo.DEMO.write_text(json.dumps(settings))
    row = next(row for row in demo.ROWS if row.name == DEMO_ROW)
    found = DemoSuite(2).measure(row, 5)
    assert (found["seed"], found["iterations"]) == (5, 2.0) and found["seconds"] > 0
    for seed in EVALUATIONS:
        digits = found[f"videos/{seed}"]
        assert len(digits) == 6 and set(digits) <= {"0", "1"}
        assert found[f"all/{seed}"] == pytest.approx(digits.count("1") / 6)
        assert found[f"frechet/{seed}"] > 0 and found[f"diversity/{seed}"] > 0
    assert not any(tmp_path.glob("runs/ablations/demo_runs/*"))
