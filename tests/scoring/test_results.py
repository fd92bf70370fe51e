"""The table, the page, and the shipped configs."""

import json
from pathlib import Path

import pytest
import torch

from tdmvid.config import VBenchConfig, from_dict, read_settings
from tdmvid.data.video import write_image
from tdmvid.scoring.intervals import Measure
from tdmvid.scoring.results import Pair, Result, best_and_worst, describe_sets, write_result
from tdmvid.scoring.vbench_suite import load_suite

ROOT = Path(__file__).resolve().parents[2]


def pairs(*gains):
    return [Pair(f"p{i}", gain, (Path("a"), Path("b"))) for i, gain in enumerate(gains)]


def test_the_extreme_pairs_come_first_and_none_comes_twice():
    best, worst = best_and_worst(pairs(0.1, 0.5, -0.3, 0.0, -0.2), 2)
    assert [pair.prompt for pair in best] == ["p1", "p0"] and [pair.prompt for pair in worst] == [
        "p2",
        "p4",
    ]
    assert [len(group) for group in best_and_worst(pairs(1.0, 2.0, 3.0), 5)] == [1, 1]
    assert best_and_worst(pairs(1.0), 5) == ([], [])


def test_json_table_and_page_say_the_same(tmp_path):
    for name in ("a", "b", "c", "d"):
        write_image(tmp_path / f"{name}.png", torch.zeros(3, 4, 4))
    score = {"scene": Measure(0.5, 0.4, 0.6)}
    result = Result(
        "A <title>",
        "How it was done.",
        ("Partial.",),
        ("student", "teacher"),
        (score, {"scene": Measure(0.45, 0.3, 0.6)}),
        {"scene": Measure(0.05, -0.01, 0.1)},
        figures=("student to teacher: fid 3.2",),
    )
    shown = [
        Pair("worse", -0.1, (tmp_path / "a.png", tmp_path / "b.png")),
        Pair("better", 0.1, (tmp_path / "c.png", tmp_path / "d.png")),
    ]
    page = write_result(tmp_path / "out", result, shown, shown=3).read_text()
    row = "| scene | 50.00 [40.00, 60.00] | 45.00 [30.00, 60.00] | +5.00 [-1.00, +10.00] |"
    text = (tmp_path / "out" / "results.md").read_text()
    assert row in text and "**Partial.**" in text and "* student to teacher: fid 3.2" in text
    assert (
        "<td>+5.00 [-1.00, +10.00]</td>" in page
        and "A &lt;title&gt;" in page
        and page.index("worse") < page.index("better")
        and page.count("<img") == 4
    )
    assert (
        json.loads((tmp_path / "out" / "results.json").read_text())["differences"]["scene"]["low"]
        == -0.01
    )
    assert "http:" not in page and "https:" not in page  # nothing is fetched


def test_metrics_of_whole_sets_alone_make_no_empty_table(tmp_path):
    figures = describe_sets({"student to teacher": {"fid": 12.345, "precision": 0.5}})
    result = Result("A", "How.", (), ("student", "teacher"), ({}, {}), {}, figures=figures)
    page = write_result(tmp_path, result, [], shown=3).read_text()
    text = (tmp_path / "results.md").read_text()
    assert text == "# A\n\nHow.\n\n* student to teacher: fid 12.35, precision 0.5\n"
    assert "<p>student to teacher: fid 12.35, precision 0.5</p>" in page and "<td" not in page
    assert "<table>" not in page


def test_a_score_without_an_interval_stands_alone(tmp_path):
    one, other = {"text": Measure(0.5)}, {"text": Measure(0.25, 0.0, 0.5)}
    result = Result("T", "One prompt.", (), ("student", "teacher"), (one, other), one)
    page = write_result(tmp_path, result, [], shown=3).read_text()
    row = "| text | 50.00 | 25.00 [0.00, 50.00] | +50.00 |"
    assert row in (tmp_path / "results.md").read_text() and "<td>+50.00</td>" in page
    assert json.loads((tmp_path / "results.json").read_text())["differences"]["text"] == {
        "value": 0.5,
        "low": None,
        "high": None,
    }


@pytest.mark.parametrize(
    "path",
    [*sorted((ROOT / "eval/configs").glob("vbench*.json")), ROOT / "eval/configs/shapes.json"],
    ids=lambda path: path.stem,
)
def test_every_vbench_config_that_ships_is_one(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    config = from_dict(VBenchConfig, read_settings(path))
    # 49 frames at 8 fps are 6.1 seconds; VBench-I2V has no version for long videos
    assert config.long == (path.stem != "shapes" and config.suite != "i2v")
    if config.custom:
        assert all("temporal_flickering" in entry.dimensions for entry in load_suite(config))
