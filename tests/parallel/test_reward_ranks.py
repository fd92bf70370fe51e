"""Runs with rewards: two sharded ranks are one process, also after a crash."""

from __future__ import annotations

import json

import pytest
import torch
from ranks import run_ranks

from tdmvid.config import load_config
from tdmvid.train import trainer

STEPS, CRASH = 4, 3
FULL = ("objective.rollout=full",)
STREAM = ("objective.rollout=stream",)
SHARDED = ("parallel.backend=deepspeed", "parallel.zero_stage=3")


class Crash(Exception):
    """Ends a run in the middle of an iteration."""


def learn(path: str, changes: tuple[str, ...], resume: str = "", crash: int = STEPS) -> dict:
    """Train, and return the trained weights by name and the last iteration's rewards.

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
        found["means"] = run.rewards.means.values
        found["divisor"] = [run.rewards.mean.log]
        found["share"] = [run.rewards.scalars["ess/reward"]]
        found["failed"] = run.rewards.scalars["failed/rank_rewards:sometimes"]

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
    folder, base = tmp_path_factory.mktemp("rewards"), tiny_cogvideox("sincos")
    (folder / "prompts.txt").write_text("a red circle\na blue square\na lake\n")
    optimizer = {"lr": 1e-2, "algorithm": "sgd", "clip": 0}
    settings = {
        "model": {"path": str(base)},
        "video": {"frames": 9, "height": 32, "width": 32},
        "prompts": {"path": str(folder / "prompts.txt"), "cache": str(folder / "cache")},
        "objective": {"cfg": 2.0},
        "steps": STEPS,
        "batch": {"total": 4},
        "lora": {"rank": 2, "alpha": 4},
        "student": optimizer,
        "fake": optimizer,
        "ema": 0.5,
        "rewards": [
            {"function": "saturation", "strength": 2.0, "normalise": "prompt"},
            {"function": "rank_rewards:sometimes", "strength": 20.0, "on_failure": "mean"},
        ],
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
        if (ranks, changes) not in made:
            out = tmp_path_factory.mktemp("whole")
            made[ranks, changes] = run_ranks(ranks, learn, config, (f"out={out}", *changes))
        return made[ranks, changes]

    return of


def assert_equal(found, expected, **tolerance):
    assert found.keys() == expected.keys()
    for key in expected.keys() - {"failed"}:
        torch.testing.assert_close(
            torch.tensor(found[key]), torch.tensor(expected[key]), **tolerance
        )


@pytest.mark.slow
@pytest.mark.parametrize(
    "rollout, sequence", [(STREAM, 1), (FULL, 1), (STREAM, 2)], ids=["stream", "full", "sequence"]
)
def test_two_sharded_ranks_with_rewards_are_one_process(learned, rollout, sequence):
    [expected] = learned(1, *rollout)
    moved = {key.partition("/")[0] for key, x in expected.items() if "lora_B" in key and any(x)}
    assert moved == {"student", "fake"} and expected["share"][0] < 0.99
    ranks = learned(2, *rollout, *SHARDED, f"parallel.sequence={sequence}")
    for found in ranks:
        assert_equal(found, expected, rtol=1e-3, atol=1e-5)
    # What is logged is the mean over the ranks: the number of failed samples of the whole batch.
    assert 0 < expected["failed"] == sum(found["failed"] for found in ranks) / 2


@pytest.mark.slow
def test_sharded_ranks_resume_a_crashed_run_with_rewards_bit_for_bit(config, learned, tmp_path):
    changes = (*STREAM, *SHARDED, "parallel.sequence=1")
    crashed = (f"out={tmp_path}", *changes)
    assert run_ranks(2, learn, config, crashed, "", CRASH) == [{}, {}]
    resumed = run_ranks(2, learn, config, crashed, "auto")
    for found, expected in zip(resumed, learned(2, *changes), strict=True):
        assert_equal(found, expected, rtol=0, atol=0)
