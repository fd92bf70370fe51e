"""Loading for sampling: from a student that names its base, or from arguments."""

import argparse
import json
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from refusals import refused

from tdmvid.cli.main import main
from tdmvid.cli.sampler_options import add_sampler, sampler_of
from tdmvid.config import embedded
from tdmvid.parallel.launch import World
from tdmvid.sampling.student import find_size, load_for_sampling
from tdmvid.shapes import evaluate

ONE = World(0, 1, 0, torch.device("cpu"))


@pytest.mark.parametrize(
    "given, facts",
    [
        ({}, ("model",)),
        ({"model": "x/y"}, ("size",)),
        ({"model": "x/y", "size": "512"}, ("size='512'", "49x480x720")),
        ({"student": "/nowhere"}, ("/nowhere",)),
    ],
)
def test_what_is_missing_is_named(given, facts):
    with refused(*facts):
        load_for_sampling(ONE, **given)


def test_a_student_whose_base_is_elsewhere_names_the_option_of_its_place(tmp_path, monkeypatch):
    """As after a copy of the student to another machine; the user has set no model.path."""
    monkeypatch.chdir(tmp_path)
    facts = {"model": {"path": "/old/base"}, "video": {"frames": 9, "height": 32, "width": 32}}
    Path("student").mkdir()
    Path("student/export.json").write_text(json.dumps(facts))
    with refused("student/export.json", "'/old/base'", "--model") as caught:
        load_for_sampling(ONE, student=Path("student"))
    assert "model.path" not in str(caught.value)
    for command in ("score modes student --prompt a", "score conditions student --prompt a"):
        with refused("names the base" if "modes" in command else "other numbers", error=SystemExit):
            main([*command.split(), "--out", "o"])


SIZE, STEPS = ["--size", "9x32x32"], ["--steps", "4"]


@pytest.mark.parametrize("given", [[], ["--model", "x/y"], SIZE + STEPS, ["--model", "x", *SIZE]])
def test_a_student_without_facts_names_everything_that_replaces_them(tmp_path, monkeypatch, given):
    monkeypatch.chdir(tmp_path)
    Path("p.txt").write_text("a ring")
    Path("cut").mkdir()
    Path("cut/scheduler_config.json").write_text("{}")
    remedies = ("export.json", "tdmvid export --run RUN", "--model", "--size", "--steps")
    with refused("cut", *remedies, error=SystemExit):
        main(["sample", "--lora", "cut", "--prompts", "p.txt", "--out", "o", *given])


@pytest.mark.parametrize(
    "command", ["latency", "score shapes", "score vbench --config vbench_wan1.3b"]
)
def test_a_student_that_only_its_files_make_loadable_names_no_option(tmp_path, command):
    """Without the scheduler, or a network's times, no option helps."""
    remedy = "copy them too, or write the student again with `tdmvid export --run RUN`"
    with refused(tmp_path, "export.json", "scheduler_config.json", remedy, error=SystemExit) as end:
        main([*command.split(), "--lora", str(tmp_path)])
    assert str(end.value).endswith("RUN`")
    (tmp_path / "diffusion_pytorch_model.safetensors").touch()
    with refused(tmp_path, "export.json", "copy it too", error=SystemExit) as end:
        main([*command.split(), "--lora", str(tmp_path)])
    assert str(end.value).endswith("RUN`")


def test_an_embedded_teacher_has_its_own_size():
    assert asdict(evaluate.SIZE) == embedded.SIZE | {"fps": 8}
    for name in ("shapes", str(embedded.TEACHER)):
        assert find_size(None, None, name) == embedded.SIZE
    assert find_size(None, "9x32x32", "shapes")["height"] == 32
    with refused("--size", "49x480x720"):
        find_size(None, None, "x/y")


@pytest.mark.parametrize("name", ["lora", "student"])
def test_a_run_s_folder_is_told_from_its_student_s(tmp_path, name):
    (tmp_path / name).mkdir()
    (tmp_path / name / "export.json").write_text("{}")
    with refused(tmp_path, tmp_path / name):
        load_for_sampling(ONE, student=tmp_path)


@pytest.fixture
def set_of_students(tmp_path):
    """The folders of a run over K = 1, 2 and 4, as it writes them at its end."""
    for name, steps in (("lora", 4), ("lora_1steps", 1), ("lora_2steps", 2)):
        (tmp_path / name).mkdir()
        facts = {"steps": steps, "set": ["lora", "lora_1steps", "lora_2steps"]}
        (tmp_path / name / "export.json").write_text(json.dumps(facts))
    return tmp_path


def chosen(*options):
    parser = argparse.ArgumentParser()
    add_sampler(parser)
    return sampler_of(parser.parse_args([str(option) for option in options]))


@pytest.mark.parametrize("beside", ["lora", "lora_2steps"])
def test_any_number_of_steps_is_sampled_under_the_condition_on_another(set_of_students, beside):
    for told, folder in ((1, "lora_1steps"), (2, "lora_2steps"), (4, "lora")):
        options = ("--lora", set_of_students / beside, "--condition-steps", told, "--steps", 8)
        sampler = chosen(*options)
        assert (sampler.student, sampler.steps) == (set_of_students / folder, 8)


def test_the_students_of_a_run_are_found_from_inside_a_folder(set_of_students, monkeypatch):
    monkeypatch.chdir(set_of_students / "lora")
    assert chosen("--lora", ".", "--condition-steps", 1).student == set_of_students / "lora_1steps"


def test_a_student_of_another_run_with_a_similar_name_is_not_taken(set_of_students):
    """Many folders are named by a number of steps; export.json says which belong together."""
    for name, steps in (("lora_8steps", 8), ("style_4steps", 4), ("style_8steps", 8)):
        (set_of_students / name).mkdir()
        (set_of_students / name / "export.json").write_text(json.dumps({"steps": steps}))
    with refused("condition_steps=8", "1, 2, 4"):
        chosen("--lora", set_of_students / "lora", "--condition-steps", 8)
    with refused("condition_steps=8", "choose one of: 4"):
        chosen("--lora", set_of_students / "style_4steps", "--condition-steps", 8)


def test_a_condition_that_was_not_trained_is_refused_with_those_that_were(set_of_students):
    with refused("condition_steps=3", "1, 2, 4"):
        chosen("--lora", set_of_students / "lora", "--condition-steps", 3)
    with refused("--condition-steps=4", "--lora"):
        chosen("--condition-steps", 4)


def test_options_replace_the_facts_of_a_student(student, backbone, tmp_path):
    cut = shutil.copytree(student, tmp_path / "cut")
    (cut / "export.json").unlink()
    (tmp_path / "p.txt").write_text("a ring")
    words = ["sample", "--lora", cut, "--prompts", tmp_path / "p.txt", "--out", tmp_path / "o"]
    words += ["--cache", tmp_path / "cache", "--model", backbone.folder, *SIZE, "--steps", 2]
    main([str(word) for word in words])
    assert len(list((tmp_path / "o").glob("*.mp4"))) == 1


@pytest.mark.parametrize(
    "given, facts",
    [
        ({"size": "10x64x64"}, ("video.frames=10",)),
        ({"size": "9x64x60"}, ("video.width=60",)),
        ({"guidance": 3.0}, ("--guidance=3", "CogVideoXPipeline", "--cfg")),
    ],
    ids=str,
)
def test_what_a_model_cannot_have_is_refused_before_its_weights_are_loaded(
    monkeypatch, given, facts
):
    monkeypatch.setattr(
        "tdmvid.sampling.student.load_teacher", lambda *_, **__: pytest.fail("loads")
    )
    with refused(*facts):
        load_for_sampling(ONE, model="shapes", **given)


def test_tiling_may_be_chosen_for_sampling_alone(monkeypatch):
    loaded = []
    monkeypatch.setattr(
        "tdmvid.sampling.student.load_teacher", lambda config, *_, **__: loaded.append(config)
    )
    for tiling in (None, True, False):
        load_for_sampling(ONE, model="shapes", tiling=tiling)
    assert [config.tiling for config in loaded] == [False, True, False]


def test_a_copy_of_the_base_keeps_the_pipeline_of_the_student(tmp_path, monkeypatch):
    """The model_index.json of TI2V names the pipeline without images."""
    facts = {"path": "owner/base", "pipeline": "WanImageToVideoPipeline", "revision": "0a"}
    video = {"frames": 9, "height": 32, "width": 32, "fps": 8}
    (tmp_path / "export.json").write_text(json.dumps({"model": facts, "video": video}))
    loaded = []
    monkeypatch.setattr("tdmvid.sampling.student._check_base", lambda *_: None)
    monkeypatch.setattr(
        "tdmvid.sampling.student.load_teacher", lambda config, *_, **__: loaded.append(config)
    )
    load_for_sampling(ONE, student=tmp_path, model="/data/base")
    assert (loaded[0].path, loaded[0].revision) == ("/data/base", None)
    assert loaded[0].pipeline == "WanImageToVideoPipeline"
