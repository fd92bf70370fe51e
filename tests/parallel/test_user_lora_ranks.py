"""Runs with `model.adapters`: two sharded ranks are one process, also after a crash."""

from __future__ import annotations

import json

import pytest
import torch
from diffusers import CogVideoXTransformer3DModel
from lora_makers import write_diffusers
from ranks import run_ranks

from tdmvid.config import load_config
from tdmvid.train import trainer

STEPS, CRASH = 4, 3
FULL = ("objective.rollout=full",)
STREAM = ("objective.rollout=stream", "objective.stagger=none")


class Crash(Exception):
    """Ends a run in the middle of an iteration."""


def learn(path: str, changes: tuple[str, ...], resume: str = "", crash: int = STEPS) -> dict:
    """Train, and return the trained weights and the teacher's output, by name.

    Args:
        path: The config file.
        changes: Settings to change.
        resume: As in `train`.
        crash: Iteration that fails; from STEPS on, none does.
    """
    found, iteration = {}, trainer._iteration

    def collect(run) -> None:
        for role, engine in run.engines.items():
            for name, tensor in engine.weights(averaged=role == "student").items():
                found[f"{role}/{name}"] = tensor.cpu().flatten().tolist()
        x = torch.randn(1, *run.backbone.latent_shape(), generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            x0 = run.networks["teacher"](x, torch.tensor([0.5]), run.conds([0]))
        found["teacher"] = x0.flatten().tolist()

    def fail(run, step):
        if step == crash:
            raise Crash
        return iteration(run, step)

    trainer._iteration = fail
    try:
        trainer.train(load_config(path, list(changes)), resume=resume, at_end=collect)
    except Crash:
        return {}
    return found


@pytest.fixture(scope="module")
def config(tiny_cogvideox, tmp_path_factory):
    folder, base = tmp_path_factory.mktemp("user_lora"), tiny_cogvideox("sincos")
    network = CogVideoXTransformer3DModel.from_pretrained(base / "transformer")
    styles = [
        write_diffusers(network, folder / "style"),
        write_diffusers(network, folder / "motion", r=1, target_modules=["to_v"], lora_bias=True),
    ]
    (folder / "prompts.txt").write_text("a red circle\na blue square\n")
    optimizer = {"lr": 1e-2, "algorithm": "sgd", "clip": 0}
    settings = {
        "model": {
            "path": str(base),
            "adapters": [{"path": str(path), "scale": 0.05} for path in styles],
        },
        "video": {"frames": 9, "height": 32, "width": 32},
        "prompts": {"path": str(folder / "prompts.txt"), "cache": str(folder / "cache")},
        "objective": {"cfg": 2.0},
        "steps": STEPS,
        "batch": {"total": 2},
        "lora": {"rank": 2, "alpha": 4},
        "student": optimizer,
        "fake": optimizer,
        "ema": 0.5,
        "parallel": {"timeout_minutes": 1},
        "log": {"checkpoint_every": 2, "sample_every": 0, "sample_prompts": ["a circle"]},
    }
    (folder / "tiny.json").write_text(json.dumps(settings))
    return str(folder / "tiny.json")


@pytest.fixture(scope="module")
def learned(config, tmp_path_factory):
    """`learned(ranks, *changes)`: what each rank of an uninterrupted run learns, trained once."""
    made = {}

    def of(ranks, *changes):
        if changes not in made:
            out = tmp_path_factory.mktemp("whole")
            made[changes] = run_ranks(ranks, learn, config, (f"out={out}", *changes))
        return made[changes]

    return of


def sharded(stage, sequence=1):
    return (
        "parallel.backend=deepspeed",
        f"parallel.zero_stage={stage}",
        f"parallel.sequence={sequence}",
    )


def assert_equal(found, expected, **tolerance):
    assert found.keys() == expected.keys() and "teacher" in found
    for key, value in expected.items():
        torch.testing.assert_close(torch.tensor(found[key]), torch.tensor(value), **tolerance)


@pytest.mark.slow
@pytest.mark.parametrize(
    "stage, sequence, rollout",
    [(3, 1, STREAM), (2, 1, FULL), (3, 2, STREAM)],
    ids=["zero3", "zero2", "sequence"],
)
def test_two_ranks_with_a_user_s_loras_are_one_process(learned, stage, sequence, rollout):
    [expected] = learned(1, *rollout)
    moved = {key.partition("/")[0] for key, x in expected.items() if "lora_B" in key and any(x)}
    assert moved == {"student", "fake"}
    for found in learned(2, *rollout, *sharded(stage, sequence)):
        assert_equal(found, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_sharded_ranks_resume_a_crashed_run_with_a_user_s_loras_bit_for_bit(
    config, learned, tmp_path
):
    changes = (*STREAM, *sharded(3))
    crashed = (f"out={tmp_path}", *changes)
    assert run_ranks(2, learn, config, crashed, "", CRASH) == [{}, {}]
    resumed = run_ranks(2, learn, config, crashed, "auto")
    for found, expected in zip(resumed, learned(2, *changes), strict=True):
        assert_equal(found, expected, rtol=0, atol=0)
