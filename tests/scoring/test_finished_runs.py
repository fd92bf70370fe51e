"""By default the newest finished run is scored, with the evaluation of its model family."""

import json
import os

import pytest
from refusals import refused

from tdmvid.cli.main import main
from tdmvid.config import ImageConfig, from_dict, load_config, read_settings, to_dict
from tdmvid.config.resources import find_evaluation
from tdmvid.scoring.finished_runs import (
    evaluation_of,
    image_overrides,
    newest_student,
    read_student,
    size_overrides,
)

VIDEO = {"frames": 49, "height": 480, "width": 720, "fps": 8}


def finish(folder, age, *, video=VIDEO, student="lora", config=None, **facts):
    """Write the files of a run that finished some seconds ago."""
    path = folder / student / "export.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"video": video, **facts}))
    (folder / "config.json").write_text(json.dumps(config or {}))
    os.utime(path, (10**9 - age, 10**9 - age))
    return folder


@pytest.fixture
def runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs"


def test_the_newest_finished_run_of_a_video_model_is_taken(runs):
    finish(runs / "old", 50)
    finish(runs / "group" / "new", 10, student="student")
    finish(runs / "image", 5, video={"frames": 1, "height": 512, "width": 512, "fps": 8})
    (runs / "unfinished" / "checkpoints").mkdir(parents=True)
    (finish(runs / "broken", 1) / "lora" / "export.json").write_text("{")
    student, count = newest_student("vbench", runs)
    assert (student.folder, count) == (runs / "group" / "new" / "student", 2)
    student, count = newest_student("image", runs)
    assert (student.folder, count) == (runs / "image" / "lora", 1)


@pytest.mark.parametrize("command", ["vbench", "images"])
def test_with_nothing_to_score_one_line_says_what_to_train_or_name(runs, command):
    for _ in range(2):
        with refused("runs/", "tdmvid train --config", "--lora", error=SystemExit):
            main(["score", command])
        runs.mkdir(exist_ok=True)


def test_an_image_student_is_compared_with_the_teacher_that_it_has_learned(runs):
    learned = {"guidance": 5.0, "negative_prompt": "a, b=c", "shift": 3.0}
    size = {"frames": 1, "height": 1024, "width": 768, "fps": 8}
    run = finish(runs / "a", 0, video=size, teacher=learned)
    found = image_overrides(read_student(run / "lora"))
    config = from_dict(ImageConfig, read_settings(find_evaluation("images"), found))
    assert (config.video.height, config.video.width) == (1024, 768)
    assert (config.teacher.cfg, config.teacher.negative) == (5.0, "a, b=c")
    assert config.teacher.shift == 3.0
    plain = finish(runs / "b", 0, video={}, teacher={"guidance": 1.0, "negative_prompt": "x"})
    assert image_overrides(read_student(plain / "lora")) == ["teacher.cfg=1.0"]


@pytest.mark.parametrize("name", ["cogvideox5b_4nfe", "cogvideox1.5_5b_4nfe", "wan14b_4nfe"])
def test_a_run_is_scored_by_its_own_evaluation_or_by_that_of_its_model(runs, name):
    config = to_dict(load_config(name))
    own = config["evaluate"]["config"]
    model = {"path": f"/data/{config['model']['path'].split('/')[1]}"}
    run = finish(runs / "a", 0, config=config, model=model, video=config["video"])
    assert evaluation_of(read_student(run / "lora"), "vbench") == own
    run = finish(runs / "b", 0, config={"evaluate": {"program": ""}}, model=model)
    assert evaluation_of(read_student(run / "lora"), "vbench") == own
    assert not size_overrides(config["video"], own)


def test_a_model_that_nobody_knows_is_scored_as_its_family_or_has_to_be_named(runs):
    student = finish(runs / "a", 0, model={"path": "x/y"}, pipeline="WanPipeline") / "lora"
    assert evaluation_of(read_student(student), "vbench") == "vbench_wan1.3b"
    student = finish(runs / "b", 0, model={"path": "x/y"}) / "lora"
    with refused(student, "--config", "vbench_cogvideox2b"):
        evaluation_of(read_student(student), "vbench")


def test_a_student_is_scored_at_the_size_that_it_was_trained_on(runs, tmp_path):
    assert size_overrides(VIDEO | {"frames": 17}, "vbench_cogvideox2b") == ["video.frames=17"]
    (tmp_path / "mine.json").write_text(json.dumps({"video": VIDEO}))
    assert not size_overrides(VIDEO | {"frames": 17}, str(tmp_path / "mine.json"))


def test_what_was_chosen_is_said(runs, capsys):
    config = to_dict(load_config("cogvideox5b_4nfe"))
    run = finish(runs / "mine", 0, config=config, video=VIDEO | {"frames": 17})
    with refused(error=SystemExit):  # there is no such model
        main(["score", "vbench", "--set", "environment=nowhere"])
    said = capsys.readouterr().out
    for word in (f"{run.relative_to(runs.parent)}/lora", "vbench_cogvideox5b", "video.frames=17"):
        assert word in said
