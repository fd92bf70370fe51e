"""Results of two machines are compared, or rejected with the difference in their protocols."""

import copy
import json
import re

import pytest
from refusals import refused

from tdmvid.cli.main import main


def results(value=0.97):
    score = {"value": value, "low": value - 0.01, "high": value + 0.01}
    return {
        "title": "VBench: a run",
        "protocol": "944 prompts",
        "notes": [],
        "samplers": [{"name": name, "scores": {"scene": score}} for name in ("student", "teacher")],
        "differences": {},
        "weights": "abc",
        "model": {"path": "/data/one/CogVideoX-2b", "dtype": "bfloat16"},
        "config": {"seeds": 5, "batch": 1, "teacher": {"cfg": 6.0}},
    }


@pytest.fixture
def compare(tmp_path, capsys):
    def compare(one, other):
        for name, content in (("a", one), ("b", other)):
            (tmp_path / name).mkdir(exist_ok=True)
            (tmp_path / name / "results.json").write_text(json.dumps(content))
        main(["score", "--compare", str(tmp_path / "a"), str(tmp_path / "b" / "results.json")])
        return capsys.readouterr().out

    return compare


def test_scores_within_each_other_s_interval_agree(compare):
    assert "agree" in compare(results(), results(0.975)) and "DIFFER" not in compare(
        results(), results(0.975)
    )
    table = compare(results(), results(0.95))
    assert "DIFFER" in table and "-0.0200" in table


def test_what_changes_no_figure_may_differ(compare):
    other = results()
    other["config"]["batch"], other["model"]["path"] = 8, "/mnt/CogVideoX-2b"
    assert "agree" in compare(results(), other)


def test_how_many_videos_show_the_object_or_stand_still_may_differ(compare):
    """VBench leaves out the other videos, so the count is a result and not a setting."""
    one, other = results(), results(0.975)
    one["videos_scored"] = {"scene": [5, 5], "color": [4, 5], "temporal_flickering": [3, 3]}
    other["videos_scored"] = {"scene": [5, 5], "color": [5, 5]}
    one["samplers"][0]["scores"]["temporal_flickering"] = {"value": 0.9, "low": 0.8, "high": 1.0}
    assert "agree" in compare(one, other) and "agree" in compare(other, one)


def image_results(fid, reference):
    """Results of metrics=["fid"], which has no score of single images."""
    samplers = [{"name": name, "scores": {}} for name in ("student", "teacher")]
    sets = {"student to teacher": {"fid": fid}, f"student to {reference}": {"fid": 2 * fid}}
    config = {"metrics": ["fid"], "reference": reference}
    return results() | {"samplers": samplers, "sets": sets, "config": config}


def test_metrics_of_whole_sets_are_listed_without_a_verdict(compare):
    table = compare(image_results(12.5, "/data/real"), image_results(13.25, "real"))
    rows = [re.split("  +", line.strip()) for line in table.splitlines()[-2:]]
    assert rows == [
        ["student to teacher", "fid", "12.5000", "13.2500", "+0.7500"],
        ["student to real", "fid", "25.0000", "26.5000", "+1.5000"],
    ]
    lacking = image_results(12.5, "real")
    del lacking["sets"]["student to teacher"]
    with refused("'fid of student to teacher'", error=SystemExit):
        compare(lacking, image_results(12.5, "real"))


@pytest.mark.parametrize(
    "place, value, facts",
    [
        (("config", "seeds"), 1, ("config.seeds", "1", "5")),
        (("config", "teacher", "cfg"), 4.5, ("config.teacher.cfg", "4.5", "6.0")),
        (("model", "dtype"), "float32", ("model.dtype", "'float32'", "'bfloat16'")),
        (("protocol",), "20 prompts", ("'20 prompts'", "'944 prompts'")),
        (("title",), "VBench-Long: a run", ("'VBench-Long'", "'VBench'")),
        (("videos_scored",), {"scene": [4, 5]}, ("videos_scored.scene", "[4, 5]")),
    ],
)
def test_another_protocol_is_refused_by_what_differs(compare, place, value, facts):
    other = copy.deepcopy(results())
    inner = other
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    with refused(*facts, error=SystemExit):
        compare(results(), other)


def test_what_holds_no_results_is_refused(tmp_path):
    with refused("results.json", error=SystemExit):
        main(["score", "--compare", str(tmp_path), str(tmp_path)])
    with refused("--compare", error=SystemExit):
        main(["score"])
