"""The main workflow on the embedded teacher with the programs that users run, shortened."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from refusals import refused

from tdmvid.cli.main import main
from tdmvid.shapes import TEACHER, evaluate

ROOT = Path(__file__).resolve().parent.parent


def program(*words: str, cwd: Path = ROOT) -> str:
    """Return the output of a program of the project. The test fails with that output if the program
    fails.
    """
    done = subprocess.run(
        [sys.executable, *words], cwd=cwd, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of two steps on the shapes teacher with a short gallery."""
    out = tmp_path_factory.mktemp("demo") / "run"
    program(
        "launch/train.py",
        "--config",
        "configs/shapes_4nfe.json",
        "--out",
        str(out),
        "--set",
        "steps=2",
        "--set",
        "batch.micro=4",
        "--set",
        "model.dtype=float32",  # quick on every machine
        "--set",
        "log.teacher_steps=6",
        "--set",
        f"prompts.cache={out.parent / 'cache'}",
        "--set",
        "prompts.limit=20",
        "--set",
        "evaluate={}",
    )
    return out


@pytest.mark.parametrize("training, student", [("lora", "lora"), ("full", "student")])
def test_a_run_is_scored_in_the_steps_of_its_grid_whatever_it_exports(tmp_path, training, student):
    config = {
        "objective": {"cfg": 2.0},
        "log": {"teacher_steps": 50},
        "training": training,
        "grid": {"kind": "explicit", "timesteps": [999, 600, 300], "steps": 4},
    }
    with pytest.raises(ValueError, match=f"has no {student}/: finish the training first"):
        evaluate.run_samplers(tmp_path, config)
    (tmp_path / student).mkdir()
    assert [
        (sampler.steps, sampler.student) for sampler in evaluate.run_samplers(tmp_path, config)
    ] == [(50, None), (3, None), (3, None), (3, tmp_path / student)]


@pytest.mark.parametrize("option", [["--seeds", "1"], ["--captions", "0"]])
def test_too_few_videos_are_refused_before_any_is_made(monkeypatch, option):
    monkeypatch.setattr(evaluate, "evaluate", lambda *_: pytest.fail("it works"))
    with refused("error", option[0], error=SystemExit):
        main(["score", "shapes", *option])


@pytest.mark.slow
def test_a_run_of_two_steps_still_leaves_all_that_a_user_takes_away(run):
    for name in (
        "config.json",
        "metrics.jsonl",
        "report.html",
        "lora/pytorch_lora_weights.safetensors",
        "lora/scheduler_config.json",
        "samples/step_000002.png",
    ):
        assert (run / name).stat().st_size > 0
    facts = json.loads((run / "lora" / "export.json").read_text())
    assert facts["error"] < facts["tolerance"] == 1e-5 and facts["timesteps"] == [
        999,
        749,
        499,
        249,
    ]


@pytest.mark.slow
def test_its_lora_needs_diffusers_alone_and_is_not_a_no_op(run):
    """In a stock pipeline, two steps of training already change the latents."""
    from diffusers import CogVideoXDDIMScheduler, CogVideoXPipeline

    pipe = CogVideoXPipeline.from_pretrained(TEACHER, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)

    def latents():
        return pipe(
            "a red ring moving left",
            num_inference_steps=4,
            guidance_scale=1.0,
            max_sequence_length=16,
            num_frames=9,
            height=64,
            width=64,
            output_type="latent",
            generator=torch.Generator().manual_seed(0),
        ).frames

    base = latents()
    pipe.load_lora_weights(run / "lora")
    pipe.scheduler = CogVideoXDDIMScheduler.from_pretrained(run / "lora")
    assert (latents() - base).abs().max() > 1e-4


@pytest.mark.slow
def test_the_scores_stand_in_the_report_with_the_truth_ahead_of_every_sampler(run):
    program(
        "eval/shapes_run.py",
        "--run",
        str(run),
        "--captions",
        "4",
        "--seeds",
        "2",
        "--reference",
        "512",
    )
    scores = json.loads((run / "scores.json").read_text())
    assert [row["name"].split(",")[0] for row in scores["samplers"]] == [
        "ground truth",
        "teacher",
        "teacher",
        "teacher",
        "student",
    ]
    assert [row.get("nfe") for row in scores["samplers"]] == [None, 12, 8, 4, 4]
    truth, *others = (row["metrics"] for row in scores["samplers"])
    assert truth["all"]["value"] >= max(other["all"]["value"] for other in others)
    assert (
        len(scores["checks"]) == 4
        and scores["checks"][0]["claim"][:30] in (run / "report.html").read_text()
    )
