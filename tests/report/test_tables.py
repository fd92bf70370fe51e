"""Score tables: the student first, the best of each column marked."""

import json
import re

import pytest
from run_folder import Page, scores, vbench, write

from tdmvid.report.page import write_report


def test_the_student_is_the_first_row(tmp_path):
    scores(tmp_path)
    page = write_report(tmp_path).read_text()
    assert re.findall(r'<th scope="row">([^<]*)<', page) == ["student", "teacher", "data"]


def test_the_best_sampler_of_each_column_is_marked_and_the_data_is_out_of_competition(page):
    assert re.findall(r'class="best">([^<]*)<', page) == ["95.0", "8.00"]
    assert "93.0 to 97.0" in page and "97.0" in page


def test_an_evaluation_s_table_is_shown_for_the_student_that_it_scored_alone(tmp_path):
    vbench(tmp_path)
    text = Page(write_report(tmp_path).read_text()).text
    assert "VBench <i>" in text and "scene 97.5 97.2 to 97.7" in text and "Partial." in text
    results = json.loads((tmp_path / "vbench/results.json").read_text())
    write(tmp_path / "vbench/results.json", results | {"weights": "of another student"})
    assert "VBench" not in Page(write_report(tmp_path).read_text()).text


def test_metrics_of_whole_sets_are_listed_below_the_table_or_alone(tmp_path):
    score = {"value": 0.25, "low": 0.2, "high": 0.3}
    results = {"title": "Images", "protocol": "2 prompts", "notes": [], "differences": {}}
    results["sets"] = {"student to teacher": {"fid": 12.345, "precision": 0.5}}
    for shown in ({"clip": score}, {}):  # with metrics=["fid"] there are no others
        samplers = [{"name": name, "scores": shown} for name in ("student", "teacher")]
        write(tmp_path / "images/results.json", results | {"samplers": samplers})
        page = Page(write_report(tmp_path).read_text())
        assert "student to teacher: fid 12.35, precision 0.5" in page.text
        assert ("table" in dict(page.elements)) == bool(shown)


@pytest.mark.parametrize("ends", [{}, {"low": None, "high": None}])
def test_a_score_without_an_interval_stands_alone(tmp_path, ends):
    metrics = [{"right": {"value": 0.5} | ends}, {"right": {"value": 0.25, "low": 0, "high": 0.5}}]
    samplers = [
        {"name": name, "nfe": 4, "metrics": found}
        for name, found in zip(("student", "teacher"), metrics, strict=True)
    ]
    columns = [{"key": "right", "label": "right", "unit": "%", "better": "high"}]
    write(tmp_path / "scores.json", {"columns": columns, "samplers": samplers})
    vbench(tmp_path)
    path = tmp_path / "vbench/results.json"
    results = json.loads(path.read_text())
    results["samplers"][0]["scores"] = {"scene": {"value": 0.5} | ends}
    write(path, results)
    page = Page(write_report(tmp_path).read_text()).text
    assert re.search(r"student 4 \S+ 50\.0 teacher 4 \S+ 25\.0 0\.0 to 50\.0", page)
    assert "scene 50.0 97.5 97.2 to 97.7" in page


def test_a_column_of_equal_scores_has_its_dots_in_the_middle(tmp_path):
    """At its lower end they would say that all are bad."""
    score = {"value": 1.0, "low": 1.0, "high": 1.0}
    samplers = [
        {"name": name, "nfe": 4, "metrics": {"right": score}} for name in ("teacher", "student")
    ]
    write(
        tmp_path / "scores.json",
        {
            "columns": [{"key": "right", "label": "right", "unit": "%", "better": "high"}],
            "samplers": samplers,
        },
    )
    assert re.findall(r'<b style="left: ([\d.]+)%', write_report(tmp_path).read_text()) == [
        "50.0",
        "50.0",
    ]
