"""Options of `tdmvid score` that a call would ignore are refused by name before any work."""

import json
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace

import pytest
from refusals import refused

from tdmvid.cli import conditions
from tdmvid.cli.main import main
from tdmvid.config import ImageConfig, TeacherSampling
from tdmvid.scoring import vbench_verify
from tdmvid.scoring.paired_samples import config_mismatches
from tdmvid.scoring.sample_folders import samples_of
from tdmvid.shapes.evaluate import Protocol


@pytest.mark.parametrize(
    "words, facts",
    [
        (["vbench", "--verify", "--lora", "x"], ["--lora='x'", "--verify"]),
        (["vbench", "--verify", "--out", "x"], ["--out='x'", "--verify"]),
        (["vbench", "--verify", "--stage", "all"], ["--stage='all'", "--verify"]),
        (["vbench", "--verify", "--download"], ["--download", "--verify"]),
        (["vbench", "--verify", "--set", "seeds=3"], ["--set seeds=3", "--verify", "environment"]),
        (["vbench", "--download", "--preflight"], ["--preflight", "--download"]),
        (["vbench", "--download", "--stage", "score"], ["--stage='score'", "--download"]),
        (["vbench", "--preflight", "--out", "x"], ["--out='x'", "--preflight"]),
        (["images", "--preflight", "--out", "x"], ["--out='x'", "--preflight"]),
        (["images", "--config", "images", "--preflight", "--lora", "nowhere"], ["nowhere"]),
        (["modes", "a", "b", "--out", "x", "--prompt", "y"], ["--prompt=['y']", "samples"]),
        (["modes", "a", "b", "--out", "x", "--count", "32"], ["--count=32", "samples"]),
        (["modes", "a", "b", "--out", "x", "--cfg", "2"], ["--cfg=2.0", "samples"]),
    ],
    ids=lambda value: "_".join(value) if isinstance(value, list) else "",
)
def test_an_option_without_effect_is_refused(words, facts, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with refused("error", *facts, error=SystemExit):
        main(["score", *words])


def test_the_check_of_vbench_reads_overrides_without_a_config(monkeypatch):
    seen = []
    monkeypatch.setattr(vbench_verify, "verify", lambda config: seen.append(config) or True)
    main(["score", "vbench", "--verify", "--set", "environment=mine", "--set", "cache=there"])
    assert (seen[0].environment, seen[0].cache) == ("mine", "there")


@pytest.mark.parametrize("name", ["captions", "reference"])
def test_the_shapes_world_scores_students_of_the_embedded_teacher_alone(name, tmp_path):
    args = Namespace(captions=64, reference=4096, given={name})
    with refused(f"--{name}={getattr(args, name)}", "teacher"):
        conditions._judged(SimpleNamespace(folder=Path(tmp_path)), args)
    args.given.clear()
    assert conditions._judged(SimpleNamespace(folder=Path(tmp_path)), args) is None


def test_results_say_that_the_teacher_is_guided_in_another_way_than_in_training(tmp_path):
    def notes(learned, **side):
        (tmp_path / "export.json").write_text(json.dumps({"teacher": learned}))
        config = ImageConfig(prompts="p.txt", teacher=TeacherSampling(**side))
        return config_mismatches(config, tmp_path)

    learned = {"guidance": 3.5, "negative_prompt": "blurry"}
    assert notes(learned, cfg=3.5, negative="blurry") == ()
    assert notes({"guidance": 1.0, "negative_prompt": "blurry"}, cfg=1.0) == ()
    [note] = notes(learned, cfg=7.5)
    assert "guidance 3.5 and the negative prompt 'blurry'" in note and "with guidance 7.5" in note
    [note] = notes(learned | {"guidance_2": 3.0, "use_dynamic_cfg": True}, cfg=3.5)
    assert "3.5 and 3 by expert, dynamic," in note


def test_results_say_that_the_teacher_has_another_flow_shift_than_in_training(tmp_path):
    def notes(here, **learned):
        facts = {"teacher": {"guidance": 3.0, "negative_prompt": ""} | learned}
        (tmp_path / "export.json").write_text(json.dumps(facts))
        side = TeacherSampling(cfg=3.0, shift=here)
        return config_mismatches(ImageConfig(prompts="p.txt", teacher=side), tmp_path)

    assert notes(3.0, shift=3.0) == notes(0.0, shift=0.0) == notes(3.0) == ()
    [note] = notes(0.0, shift=3.0)
    assert "flow shift 3," in note and "its scheduler's flow shift" in note


def test_a_file_is_no_folder_of_samples(tmp_path):
    (tmp_path / "a.png").touch()
    with refused(tmp_path / "a.png", "not a folder"):
        samples_of(tmp_path / "a.png")


def test_one_ground_truth_video_is_refused_before_anything_is_sampled():
    with refused("--reference 1", "two"):
        Protocol(reference=1)
