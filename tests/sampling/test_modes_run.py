"""`tdmvid score modes` samples students and their teacher, and compares what it was asked for."""

import json
import shutil

from tdmvid.cli.main import main
from tdmvid.scoring import modes_run
from tdmvid.scoring.modes_run import SharedShots


def modes(student, out, count):
    options = ["--prompt", "a red square", "--count", count, "--neighbours", 1]
    options += ["--steps", 2, "--cfg", 2, "--batch", 4, "--out", out]
    main(["score", "modes", *map(str, [student, *options])])
    return json.loads((out / "modes.json").read_text())["folders"]


def test_a_second_call_with_fewer_seeds_finds_what_a_first_one_finds(student, tmp_path):
    fresh = modes(student, tmp_path / "out", 3)
    assert [one["samples"] for one in modes(student, tmp_path / "out", 4)] == [4, 4]
    for folder in (tmp_path / "out").glob("*/"):  # of another prompt
        shutil.copy(min(folder.glob("*.mp4")), folder / "00001_a-blue-ring-0.mp4")
    assert modes(student, tmp_path / "out", 3) == fresh


def test_the_teacher_has_the_guidance_that_the_student_has_learned(tmp_path, monkeypatch):
    (tmp_path / "lora").mkdir()
    learned = {"guidance": 3.5, "negative_prompt": "blurry", "guidance_2": None, "shift": 8.0}
    facts = {"model": {"path": "shapes"}, "video": {}, "teacher": learned}
    (tmp_path / "lora" / "export.json").write_text(json.dumps(facts))
    drawn = []
    monkeypatch.setattr(modes_run, "load_for_sampling", lambda *_, **__: None)
    monkeypatch.setattr("tdmvid.sampling.side_by_side.stock_defaults", lambda _: (50, 6.0))
    monkeypatch.setattr(modes_run, "sample_videos", lambda *_, sampler, **__: drawn.append(sampler))
    for cfg in (None, 2.0):
        modes_run.sample_students([tmp_path / "lora"], tmp_path, SharedShots([], cfg=cfg))
    of_training, given = drawn[::2]
    assert (of_training.cfg, of_training.negative, of_training.steps) == (3.5, "blurry", 50)
    assert (given.cfg, given.negative) == (2.0, "blurry")
    assert (of_training.shift, given.shift) == (8.0, 8.0)
