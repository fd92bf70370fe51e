"""Results of two machines are compared, or rejected with the difference in their protocols."""

import copy
import json
import re
from dataclasses import replace

import pytest
from refusals import refused

from tdmvid.cli.main import main
from tdmvid.sampling.shots import Shot
from tdmvid.scoring.paired_samples import sample_metadata


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


@pytest.mark.parametrize("lacking", [{"value": 0.9}, {"value": 0.9, "low": None, "high": None}])
def test_a_score_without_an_interval_has_no_verdict(compare, lacking):
    one = results()
    one["samplers"][0]["scores"]["scene"] = lacking
    for table in (compare(one, results()), compare(results(), one), compare(one, one)):
        assert "no interval" in table and table.count("agree") == 1  # the teacher's


def test_what_changes_no_figure_may_differ(compare):
    other = results()
    other["config"]["batch"], other["model"]["path"] = 8, "/mnt/CogVideoX-2b"
    assert "agree" in compare(results(), other)


@pytest.mark.parametrize(
    "place",
    [
        "THUDM/CogVideoX-2b",
        "/mnt/CogVideoX-2b/",
        "/hub/models--THUDM--CogVideoX-2b/snapshots/0a",
    ],
)
def test_a_copy_of_the_base_is_the_same_base(compare, place):
    other = results()
    other["model"]["path"] = place
    assert "agree" in compare(results(), other)
    other["model"]["path"] = place.replace("2b", "5b")
    with refused("model.path", error=SystemExit):
        compare(results(), other)


def test_a_setting_that_an_older_version_lacked_has_its_default(compare):
    newer, older = results(), results()
    newer["config"]["model"] = {"quantize": "none", "tiling": False}
    assert "agree" in compare(older, newer) and "agree" in compare(newer, older)
    newer["config"]["model"]["tiling"] = True
    with refused("config.model.tiling", "True", "False", error=SystemExit):
        compare(older, newer)


def test_another_lora_in_the_base_is_another_teacher(compare):
    other = results()
    other["model"]["adapters"] = [{"path": "style.safetensors", "scale": 1.0}]
    with refused("model.adapters", error=SystemExit):
        compare(results(), other)
    other["model"]["adapters"] = []
    assert "agree" in compare(results(), other)


def i2v_results(place, **digest):
    """Results of VBench-I2V on a base with a LoRA, all files in one place."""
    adapters = [{"path": f"{place}/style.safetensors", "path_2": f"{place}/low", "scale": 0.5}]
    config = {
        "suite": "i2v",
        "prompts": f"{place}/own.csv",
        "augmented": f"{place}/long.txt",
        "images": f"{place}/vbench2_beta_i2v",
        "model": {"path": f"{place}/base", "adapters": adapters},
    }
    protocol = f"9 prompts of {place}/own.csv, sampled from {place}/long.txt; vbench 0.1.5; 95 %"
    return results() | {"protocol": protocol, "config": config} | digest


@pytest.mark.parametrize("digest", [{}, {"prompts": "0f"}], ids=["older", "with digest"])
def test_files_may_be_in_other_places(compare, digest):
    assert "agree" in compare(i2v_results("/data", **digest), i2v_results("x/y", **digest))
    other = i2v_results("x/y", **digest)
    other["config"]["model"]["adapters"][0]["scale"] = 1.0
    with refused("config.model.adapters.0.scale", "1.0", "0.5", error=SystemExit):
        compare(i2v_results("/data", **digest), other)
    other["config"]["model"]["adapters"][0] |= {"scale": 0.5, "path": "x/y/other.safetensors"}
    with refused("adapters.0.path", "'other.safetensors'", error=SystemExit):
        compare(i2v_results("/data", **digest), other)
    other = i2v_results("x/y", **digest)
    other["protocol"] = other["protocol"].replace("0.1.5", "0.1.6")
    with refused("vbench", "'0.1.6'", "'0.1.5'", error=SystemExit):
        compare(i2v_results("/data", **digest), other)


def test_equal_prompts_may_have_another_name_and_others_are_refused(compare):
    one, other = (i2v_results("/data", prompts=digest) for digest in ("0f", "1e"))
    with refused("prompts", "'1e'", "'0f'", error=SystemExit):
        compare(one, other)
    other |= {"prompts": "0f", "config": other["config"] | {"prompts": "p.jsonl"}}
    assert "agree" in compare(one, other)
    del other["prompts"]  # as an earlier version wrote it
    assert "agree" in compare(i2v_results("x/y", prompts="0f"), i2v_results("/data"))
    with refused("config.prompts", "'p.jsonl'", "'own.csv'", error=SystemExit):
        compare(one, other)


def test_the_digest_of_the_prompts_covers_texts_and_first_frames(tmp_path):
    (tmp_path / "student").mkdir()
    (tmp_path / "student/sampling.json").write_text('{"weights": "abc", "model": {}}')
    shots = [Shot("a cat", 0, "a-0.mp4", "/data/a.png", "12"), Shot("a dog", 1, "b-1.mp4")]
    moved = [replace(shots[0], image="/mnt/a.png"), shots[1]]
    others = [[replace(shots[0], image_sha256="34"), shots[1]]]
    others += [[replace(shots[0], **{name: "x"}), shots[1]] for name in ("prompt", "file")]
    first, same, *changed = (
        sample_metadata(tmp_path, each)["prompts"] for each in (shots, moved, *others)
    )
    assert first == same and len({first, *changed}) == 4


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
        (("protocol",), "20 prompts", ("number of prompts", "'20'", "'944'")),
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
