"""Options of `tdmvid score shapes`: what --run would ignore, and the steps of a student."""

import json

import pytest
from refusals import refused

from tdmvid.cli.main import main
from tdmvid.shapes import evaluate


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


def sampled(monkeypatch, *words):
    """Return the samplers that a command scores."""
    seen = []
    monkeypatch.setattr("tdmvid.adapters.teacher.load_teacher", lambda *_, **__: None)
    monkeypatch.setattr(evaluate, "evaluate", lambda _, samplers, __: seen.extend(samplers) or {})
    main(["score", "shapes", *map(str, words)])
    return [(one.steps, one.cfg, one.name) for one in seen]


def test_a_student_is_sampled_in_the_steps_that_it_states(monkeypatch, tmp_path):
    (tmp_path / "export.json").write_text(json.dumps({"steps": 3}))
    student = ["--lora", tmp_path]
    assert sampled(monkeypatch, *student) == [(3, 1.0, "3 steps, cfg 1")]
    assert sampled(monkeypatch, *student, "--steps", 8) == [(8, 1.0, "8 steps, cfg 1")]
    assert sampled(monkeypatch) == [(50, 1.0, "50 steps, cfg 1")]


def test_a_student_that_states_no_steps_needs_the_option(monkeypatch, tmp_path):
    with refused("error", "--steps", tmp_path, error=SystemExit):
        sampled(monkeypatch, "--lora", tmp_path)
    assert sampled(monkeypatch, "--lora", tmp_path, "--steps", 4)[0][0] == 4
