"""Options of `tdmvid score shapes`: what --run would ignore, the steps and base of a student."""

import json

import pytest
from refusals import refused

from tdmvid.cli.main import main
from tdmvid.config.resources import find_model
from tdmvid.shapes import TEACHER, evaluate


@pytest.mark.parametrize(
    "option, fact",
    [
        (["--lora", "x/lora"], "--lora='x/lora'"),
        (["--steps", "50"], "--steps=50"),
        (["--cfg", "1"], "--cfg=1.0"),
        (["--model", "base"], "--model='base'"),
    ],
)
def test_options_that_a_run_has_itself_are_refused(option, fact):
    with refused("error", fact, "--run", error=SystemExit):
        main(["score", "shapes", "--run", "runs/x", *option])


def test_a_run_that_cannot_be_written_is_refused_before_sampling(monkeypatch, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setattr("tdmvid.data.files.why_unwritable", lambda _: "Read-only file system")
    with refused("error", f"--run='{tmp_path}'", "Read-only file system", error=SystemExit):
        main(["score", "shapes", "--run", str(tmp_path)])


def called(monkeypatch, *words):
    """Return the settings of the base that a command loads, and the samplers that it scores."""
    seen = []
    monkeypatch.setattr("tdmvid.adapters.teacher.load_teacher", lambda config, *_, **__: config)
    monkeypatch.setattr(evaluate, "evaluate", lambda *given: seen.append(given) or {})
    main(["score", "shapes", *map(str, words)])
    [(base, samplers, _)] = seen
    return base, samplers


def sampled(monkeypatch, *words):
    """Return the samplers that a command scores."""
    return [(one.steps, one.cfg, one.name) for one in called(monkeypatch, *words)[1]]


def test_a_student_is_sampled_in_the_steps_that_it_states(monkeypatch, tmp_path):
    (tmp_path / "export.json").write_text(json.dumps({"steps": 3}))
    student = ["--lora", tmp_path]
    assert sampled(monkeypatch, *student) == [(3, 1.0, "3 steps, cfg 1")]
    assert sampled(monkeypatch, *student, "--steps", 8) == [(8, 1.0, "8 steps, cfg 1")]
    assert sampled(monkeypatch) == [(50, 1.0, "50 steps, cfg 1")]


def test_a_student_that_states_no_steps_needs_the_option(monkeypatch, tmp_path):
    (tmp_path / "export.json").write_text("{}")
    with refused("error", "--steps", tmp_path, error=SystemExit):
        sampled(monkeypatch, "--lora", tmp_path)
    assert sampled(monkeypatch, "--lora", tmp_path, "--steps", 4)[0][0] == 4


def test_a_student_is_scored_on_the_base_that_it_names(monkeypatch, tmp_path):
    model = {"path": "mine/teacher", "variant": "fp16", "dtype": "bfloat16"}
    (tmp_path / "export.json").write_text(json.dumps({"steps": 4, "model": model}))
    student = ["--lora", tmp_path]
    base, _ = called(monkeypatch, *student)
    assert (base.path, base.variant, base.dtype) == ("mine/teacher", "fp16", "float32")
    base, _ = called(monkeypatch, *student, "--model", "other/teacher")
    assert (base.path, base.variant) == ("other/teacher", None)
    assert called(monkeypatch, "--model", "other/teacher")[0].path == "other/teacher"


def test_a_base_that_is_not_on_this_machine_is_asked_for(monkeypatch, tmp_path):
    facts = {"steps": 4, "model": {"path": "/elsewhere/teacher"}}
    (tmp_path / "export.json").write_text(json.dumps(facts))
    with refused("error", tmp_path, "'/elsewhere/teacher'", "--model", error=SystemExit):
        called(monkeypatch, "--lora", tmp_path)


@pytest.mark.parametrize("facts", [{}, {"model": {"path": "shapes"}}])
def test_a_student_that_names_no_other_base_is_scored_on_the_embedded_teacher(
    monkeypatch, tmp_path, facts
):
    (tmp_path / "export.json").write_text(json.dumps({"steps": 4} | facts))
    assert find_model(called(monkeypatch, "--lora", tmp_path)[0].path) == str(TEACHER)
    assert find_model(called(monkeypatch)[0].path) == str(TEACHER)
