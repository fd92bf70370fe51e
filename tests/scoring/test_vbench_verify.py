"""The VBench pipeline against known answers: correct, wrong, and not run."""

import sys

import pytest
from refusals import refused
from vbench_stand_in import write_stand_in

from tdmvid.cli.main import main
from tdmvid.scoring.vbench_published import PUBLISHED

FLICKERING = """import json, pathlib, sys
import av, numpy
request = json.loads(pathlib.Path(sys.argv[2]).read_text())
rows = []
for path in [path for entry in request["entries"] for path in entry["video_list"]]:
    with av.open(path) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    change = numpy.abs(numpy.diff(numpy.float32(frames), axis=0)).mean()
    rows.append({"video_path": path, "video_results": float((255 - change) / 255)})
result = [sum(row["video_results"] for row in rows) / len(rows), rows]
file = pathlib.Path(request["out"]) / "scores_eval_results.json"
file.write_text(json.dumps({"temporal_flickering": result}))
"""
"""temporal_flickering as the package computes it: 1 minus the mean absolute change between
frames.
"""

TOTALS = sum(len(entry.totals) for entry in PUBLISHED)


def verify(environment, cache):
    places = [f"--set=environment={environment}", f"--set=cache={cache}"]
    main(["score", "vbench", "--verify", "--config", "shapes", *places])


def test_known_answers_are_right_and_what_lacks_weights_is_named(tmp_path, capsys):
    environment = write_stand_in(tmp_path / "environment")
    (environment / "bin/python").write_text(f"#!{sys.executable}\n{FLICKERING}")
    verify(environment, tmp_path / "cache")
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("right") for line in lines) == TOTALS + 3  # of flickering
    assert not any(line.startswith("WRONG") for line in lines)
    assert any(line.startswith("not run") and "imaging_quality" in line for line in lines)


def test_a_chain_that_scores_all_videos_alike_is_wrong(tmp_path, capsys):
    with refused("WRONG", error=SystemExit):
        verify(write_stand_in(tmp_path / "environment"), tmp_path / "cache")
    assert "flickering video" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["temporal_flickering", "imaging_quality"])
def test_without_the_environment_the_totals_are_checked_alone(tmp_path, capsys, name):
    verify(tmp_path / "none", tmp_path)
    out = capsys.readouterr().out
    assert out.count("right") == TOTALS and f"not run  {name}" in out
