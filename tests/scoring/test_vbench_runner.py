"""The worker runs the real package, if its environment exists, and failures are caught."""

import json
import os
import stat
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from refusals import refused

from tdmvid.config import ClipSize, VBenchConfig
from tdmvid.data.saved_work import MARKER
from tdmvid.data.video import read_video, write_video
from tdmvid.scoring import vbench_run
from tdmvid.scoring import vbench_runner as package
from tdmvid.scoring.vbench_runner import Environment, _static, ready, score_folder
from tdmvid.scoring.vbench_scores import DIMENSIONS, read_scores
from tdmvid.scoring.vbench_suite import Entry, check_videos, load_suite, shots_of

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = Path(os.environ.get("TDMVID_VBENCH", ROOT / ".venv-vbench"))
needs_vbench = pytest.mark.skipif(
    not (ENVIRONMENT / "bin" / "python").exists(),
    reason=(
        f"VBench itself was left out: no environment in {ENVIRONMENT} (eval/setup_vbench.sh"
        " makes it)"
    ),
)
PROMPTS = ["a red ring", "a blue square"]


@pytest.fixture
def suite(tmp_path):
    """`suite(environment, frames)`: config, entries, preflight and digests of four moving squares
    in `tmp_path`/videos.
    """
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))

    def make(environment, frames=9):
        size = ClipSize(frames, 64, 64, 8)
        config = VBenchConfig(
            prompts=str(tmp_path / "prompts.txt"),
            dimensions=("temporal_flickering",),
            seeds=2,
            video=size,
            environment=str(environment),
            cache=str(tmp_path / "cache"),
        )
        entries = load_suite(config)
        files = [shot.file for shot in shots_of(entries, frames)]
        for index, file in enumerate(files):
            video = torch.full((3, frames, 64, 64), -0.5)
            for frame in range(frames):
                video[index % 3, frame, 20:40, frame % 40 : frame % 40 + 6 * (index + 1)] = 0.8
            write_video(tmp_path / "videos" / file, video, fps=8)
        return (
            config,
            entries,
            ready(config, entries),
            check_videos(tmp_path / "videos", files, size),
        )

    return make


def score(tmp_path, made, devices=("cpu",)):
    config, entries, checked, digests = made
    return score_folder(
        tmp_path / "videos", tmp_path / "scoring", config, entries, checked, digests, list(devices)
    )


@pytest.mark.slow
@needs_vbench
def test_the_package_s_flickering_is_what_its_paper_defines(tmp_path, suite):
    """1 minus the mean absolute difference between successive frames of the decoded file over
    255.
    """
    scores = score(tmp_path, suite(ENVIRONMENT))["temporal_flickering"]
    assert len(scores) == 4
    for file, found in scores.items():
        frames = ((read_video(tmp_path / "videos" / file) + 1) * 127.5).round().numpy()
        assert found == pytest.approx(1 - np.abs(np.diff(frames, axis=1)).mean() / 255, abs=1e-3)


@pytest.mark.slow
@needs_vbench
def test_vbench_long_scores_every_clip_of_a_long_video(tmp_path, suite):
    made = suite(ENVIRONMENT, frames=41)
    scores = score(tmp_path, made)["temporal_flickering"]
    clips = json.loads((tmp_path / "scoring/temporal_flickering/scores_full_info.json").read_text())
    assert (
        made[0].long
        and len(scores) == 4
        and all(len(entry["video_list"]) == 2 * 3 for entry in clips)
    )  # 41 frames in clips of 16


@needs_vbench
def test_vbench_s_own_suite_is_whole_and_its_names_fit_a_file_system():
    config = VBenchConfig(environment=str(ENVIRONMENT))
    entries = load_suite(config, Environment(ENVIRONMENT).full_info)
    assert len(entries) == 946 and len({entry.prompt for entry in entries}) == 944
    assert len(shots_of(entries, 49)) == 944 * 5 + 75 * 20
    assert sum("temporal_flickering" in entry.dimensions for entry in entries) == 75


RAFT = """
import argparse, sys, torch
from vbench.third_party.RAFT.core.raft import RAFT

torch.manual_seed(0)
options = argparse.Namespace(small=False, mixed_precision=False, alternate_corr=False)
state = torch.nn.DataParallel(RAFT(options)).state_dict()
state["module.update_block.flow_head.conv2.bias"].fill_(0.3)
torch.save(state, sys.argv[1])
"""


@pytest.mark.slow
@needs_vbench
def test_the_package_s_filter_may_keep_no_video(tmp_path):
    """Random weights of its RAFT, changed so that it sees motion everywhere."""
    weights, videos = (
        tmp_path / "cache" / "raft_model" / "models" / "raft-things.pth",
        tmp_path / "videos",
    )
    weights.parent.mkdir(parents=True)
    subprocess.run(
        [ENVIRONMENT / "bin" / "python", "-W", "ignore", "-c", RAFT, weights], check=True
    )
    config = VBenchConfig(
        dimensions=("temporal_flickering",),
        seeds=1,
        static_seeds=1,
        video=ClipSize(9, 128, 128, 8),
        environment=str(ENVIRONMENT),
        cache=str(tmp_path / "cache"),
    )
    entries = [Entry("a red ring", ("temporal_flickering",), "a red ring", 1)]
    files = [shot.file for shot in shots_of(entries, 9)]
    for file in files:  # RAFT computes nothing for 64 pixels
        write_video(videos / file, torch.rand(3, 9, 128, 128) * 2 - 1, fps=8)
    checked = ready(config, entries)
    assert checked.whole and score(
        tmp_path, (config, entries, checked, check_videos(videos, files, config.video))
    ) == {"temporal_flickering": {}}


def stand_in(folder: Path, body: str) -> Path:
    """An environment whose interpreter runs `body`, with the request in `request` and its folder in
    `out`.
    """
    (folder / "bin").mkdir(parents=True)
    python = folder / "bin" / "python"
    python.write_text(
        f"#!{sys.executable}\nimport json, pathlib, sys\nrequest ="
        " json.loads(pathlib.Path(sys.argv[2]).read_text())\nout ="
        f" pathlib.Path(request['out'])\n{body}\n"
    )
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    return folder


ANSWER = """
videos = [path for entry in request["entries"] for path in entry["video_list"]]
(out / "runs").open("a").write("run\\n")
result = [{"video_path": path, "video_results": 0.5} for path in videos]
scores = {name: [0.5, result] for name in request["dimensions"]}
(out / "scores_eval_results.json").write_text(json.dumps(scores))
"""


@pytest.mark.parametrize(
    "body, facts",
    [
        (
            "sys.exit('no room on the device')",
            ("temporal_flickering", "1", "no room on the device"),
        ),
        ("print('CUDA is not available')", ("0", "CUDA is not available", "log.txt")),
    ],
)
def test_a_worker_that_crashes_is_an_error_even_if_it_says_all_is_well(
    tmp_path, suite, body, facts
):
    with refused(*facts, error=RuntimeError):
        score(tmp_path, suite(stand_in(tmp_path / "env", body)))


def test_an_old_result_does_not_hide_a_crash(tmp_path, suite):
    environment = stand_in(tmp_path / "env", ANSWER)
    score(tmp_path, suite(environment))
    (environment / "bin" / "python").write_text("#!/bin/sh\nexit 3\n")
    write_video(tmp_path / "videos" / "a red ring-0.mp4", torch.rand(3, 9, 64, 64), fps=8)
    config, entries, checked, digests = suite(environment)
    with refused("3", error=RuntimeError):
        score(tmp_path, (config, entries, checked, digests | {"a red ring-0.mp4": "another"}))


def test_a_video_that_the_package_leaves_out_is_an_error(tmp_path, suite):
    body = ANSWER.replace(
        'for entry in request["entries"] for path in',
        'for entry in request["entries"][1:] for path in',
    )
    with refused("2", "4", "'a red ring-0.mp4'", error=RuntimeError):
        score(tmp_path, suite(stand_in(tmp_path / "env", body)))


def test_what_was_scored_is_not_scored_again_unless_a_video_changed(tmp_path, suite):
    config, entries, checked, digests = suite(stand_in(tmp_path / "env", ANSWER))

    def runs():
        return (tmp_path / "scoring/temporal_flickering/runs").read_text().count("run")

    score(tmp_path, (config, entries, checked, digests))
    score(tmp_path, (config, entries, checked, digests))
    assert runs() == 1
    score(tmp_path, (config, entries, checked, digests | {"a red ring-1.mp4": "another"}))
    assert runs() == 2


def test_the_script_of_a_job_learns_that_a_dimension_was_scored(tmp_path, suite, monkeypatch):
    monkeypatch.setenv(MARKER, str(tmp_path / "saved"))
    made = suite(stand_in(tmp_path / "env", ANSWER))
    score(tmp_path, made)
    (tmp_path / "saved").unlink()
    score(tmp_path, made)
    assert not (tmp_path / "saved").exists()  # nothing was new


def test_a_missing_video_of_the_teacher_is_told_before_the_student_is_scored(tmp_path, suite):
    config, entries, checked, _ = suite(stand_in(tmp_path / "env", ANSWER))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "student").symlink_to(tmp_path / "videos")
    with refused("teacher", "4"):
        vbench_run.score(tmp_path / "out", config, entries, checked)
    assert not (tmp_path / "out" / "scoring").exists()


def test_an_interrupt_begins_no_further_dimension(tmp_path, suite, monkeypatch):
    """Ctrl-C also reaches the running worker. Each of the others could take hours."""
    config, entries, checked, digests = suite(stand_in(tmp_path / "env", ANSWER))
    begun = []

    def interrupted(name, *_):
        begun.append(name)
        time.sleep(0.2)
        raise KeyboardInterrupt

    monkeypatch.setattr(package, "_score_dimension", interrupted)
    with pytest.raises(KeyboardInterrupt):
        score(tmp_path, (config, entries, replace(checked, ready=tuple(DIMENSIONS)), digests))
    assert len(begun) <= 2


def test_an_environment_that_is_not_there_is_named(tmp_path, suite):
    with refused("bin/python", "eval/setup_vbench.sh"):
        score(tmp_path, suite(tmp_path / "nowhere"))


def test_a_part_of_the_suite_says_so_and_shows_no_total(tmp_path, suite):
    config, entries, checked, _ = suite(stand_in(tmp_path / "env", ANSWER))
    for name in vbench_run.NAMES:
        (tmp_path / name).symlink_to(tmp_path / "videos")
    (tmp_path / "videos" / "sampling.json").write_text(
        json.dumps({"weights": "0123", "model": {"path": "x"}})
    )
    scores = {
        name: {
            "temporal_flickering": {
                f"{prompt}-{seed}.mp4": 0.9 + shift for prompt in PROMPTS for seed in range(2)
            }
        }
        for name, shift in (("student", 0.01), ("teacher", 0))
    }
    page = vbench_run.compare(tmp_path, config, entries, checked, scores)
    found = json.loads((tmp_path / "results.json").read_text())
    assert (
        found["differences"]["temporal_flickering"]["value"] == pytest.approx(0.01)
        and found["weights"] == "0123"
    )
    assert (
        found["notes"][0].startswith("Partial: 1 of 16 dimensions")
        and "no total" in found["notes"][-1]
    )
    assert (
        "total" not in found["differences"]
        and "| total" not in (tmp_path / "results.md").read_text()
    )
    assert (
        page.read_text().count("<video") == 4
    )  # the best and the worst of two prompts, for both sides


def test_all_dimensions_of_a_limited_run_make_no_total_either(tmp_path, suite):
    _config, *_ = suite(tmp_path)
    from tdmvid.scoring.preflight import Preflight
    from tdmvid.scoring.vbench_scores import DIMENSIONS

    whole = Preflight(tuple(DIMENSIONS), {}, tmp_path)
    assert vbench_run.notes(VBenchConfig(), whole) == ()
    assert vbench_run.notes(VBenchConfig(limit=3), whole)[0].startswith("Only the first 3 prompts")
    assert "unfiltered" in vbench_run.notes(VBenchConfig(static_filter=False), whole)[0]
    assert vbench_run.notes(VBenchConfig(seeds=1), whole)[0].startswith(
        "1 videos per prompt and 25 for the static filter: VBench's protocol uses 5 and 25"
    )


def test_of_filtered_videos_only_those_that_were_kept_count(tmp_path):
    files = {"a-0.mp4": "x", "a-1.mp4": "y", "b-0.mp4": "z"}
    listed = tmp_path / "scores_full_info.json"
    listed.write_text(
        json.dumps(
            [{"video_list": ["/v/a-1.mp4"]}, {"video_list": ["/v/split_clip/b-0/b-0_001.mp4"]}]
        )
    )
    assert _static(tmp_path, files) == ["a-1.mp4", "b-0.mp4"]
    listed.write_text(json.dumps([{"video_list": []}]))
    assert _static(tmp_path, files) == []


@pytest.mark.parametrize(
    "static, told",
    [
        ({"student": [], "teacher": ["a red ring-0.mp4"]}, "no video of the student is static"),
        ({"student": [], "teacher": []}, "no video of the student or the teacher is static"),
        (
            {"student": ["a red ring-0.mp4"], "teacher": ["a blue square-1.mp4"]},
            "no prompt has scored videos of both",
        ),
    ],
)
def test_a_dimension_that_cannot_be_compared_is_named_and_the_others_go_on(
    tmp_path, suite, static, told
):
    config, entries, checked, _ = suite(stand_in(tmp_path / "env", ANSWER))
    for name in vbench_run.NAMES:
        (tmp_path / name).symlink_to(tmp_path / "videos")
    (tmp_path / "videos" / "sampling.json").write_text(
        json.dumps({"weights": "0123", "model": {"path": "x"}})
    )
    all_files = [f"{prompt}-{seed}.mp4" for prompt in PROMPTS for seed in range(2)]
    scores = {
        name: {
            "temporal_flickering": dict.fromkeys(static[name], 0.9),
            "motion_smoothness": dict.fromkeys(all_files, 0.8),
        }
        for name in vbench_run.NAMES
    }
    entries = [
        replace(entry, dimensions=("temporal_flickering", "motion_smoothness")) for entry in entries
    ]
    vbench_run.compare(
        tmp_path, config, entries, checked, scores, said=("The student was trained on size x.",)
    )
    found = json.loads((tmp_path / "results.json").read_text())
    assert found["differences"].keys() == {"motion_smoothness"} and any(
        told in note for note in found["notes"]
    )
    assert found["notes"][-1] == "The student was trained on size x."
    assert ["temporal_flickering" in side["scores"] for side in found["samplers"]] == [
        bool(static[name]) for name in vbench_run.NAMES
    ]
    assert ("| temporal_flickering |" in (tmp_path / "results.md").read_text()) == any(
        static.values()
    )


def test_a_filter_that_keeps_no_video_gives_no_score_and_no_error(tmp_path, suite):
    path = tmp_path / "scores_eval_results.json"
    path.write_text(json.dumps({"temporal_flickering": [None, []]}))
    assert read_scores(path, {"temporal_flickering": []}) == {"temporal_flickering": {}}
