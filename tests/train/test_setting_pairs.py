"""Any two settings can be combined, or the combination is rejected: the run is as planned, finite,
changes its student, and resumes bit-identically.
"""

import itertools
import json
import math
import random
import shutil

import pytest
import torch
from safetensors.torch import load_file

from tdmvid.config import RunConfig, from_dict
from tdmvid.distill.trajectories import Place, pick_grid, pick_k
from tdmvid.plan.make import make_plan
from tdmvid.roles.rules import check_settings
from tdmvid.train.monitor import read_metrics
from tdmvid.train.trainer import train


class Rewards(list):
    """A list of rewards that is hashable."""

    def __init__(self, *rewards):
        super().__init__(rewards)

    def __hash__(self):
        return hash(json.dumps(self))


CHOICES = {
    "objective.kind": ("tdm", "fisher", "dmd2"),
    "objective.solver": ("ddim", "dpm++", "renoise"),
    "objective.step_set": ((), (2, 4)),
    "objective.rollout": ("stop", "full", "stream"),
    "objective.stagger": ("even", "none"),
    "objective.updates": ("sequential", "joint"),
    "objective.cfg": (1, 3),
    "training": ("lora", "full"),
    "ema": (0, 0.9),
    "rewards": (Rewards(), Rewards({"function": "saturation", "strength": 3.0})),
    "batch.accumulation": (1, 2),
    "parallel.gradient_checkpointing": (False, True),
    "model.dtype": ("float32", "bfloat16"),
    "student.schedule": ("constant", "cosine"),
}


def refused(row):
    """Return whether the settings of a row contradict each other."""
    data = {}
    for name, value in row.items():
        *group, last = name.split(".")
        (data.setdefault(group[0], {}) if group else data)[last] = value
    try:
        check_settings(from_dict(RunConfig, data), distributed=False)
    except ValueError:
        return True
    return False


def covering():
    """Return few rows of CHOICES that contain every pair of values that is not rejected."""
    generator, rows = random.Random(0), []

    def pairs(row):
        return set(itertools.combinations(row.items(), 2))

    left = {
        ((a, x), (b, y))
        for a, b in itertools.combinations(CHOICES, 2)
        for x in CHOICES[a]
        for y in CHOICES[b]
        if not refused({a: x, b: y})
    }
    while left:
        drawn = (
            {name: generator.choice(values) for name, values in CHOICES.items()}
            | dict(min(left, key=repr))
            for _ in range(60)
        )
        rows.append(
            max((row for row in drawn if not refused(row)), key=lambda row: len(pairs(row) & left))
        )
        left -= pairs(rows[-1])
    return rows


def planned_calls(plan, run, step):
    """Return the planned calls of a step. A plan has the mean over K and k, but a step knows its
    own.
    """
    steps = pick_grid(run.grids, run.streams.generator(step, "K", device="cpu"))
    mean, objective = sum(grid.steps for grid in run.grids) / len(run.grids), run.config.objective
    if objective.rollout == "stream":
        return plan.calls.forwards
    if objective.rollout == "full" or run.config.rewards:  # which finish a rollout that stops
        rollouts = objective.own_trajectories + 1
        return plan.calls.forwards + rollouts * (steps.steps - mean)
    micros = range(run.config.batch.accumulation)
    made = [
        steps.steps - int(pick_k(Place(step, micro, micro, own), objective, steps, 1, run.streams))
        for micro in micros
        for own in range(objective.own_trajectories + 1)
    ]
    return plan.calls.forwards + (sum(made) - len(made) * (mean - 1) / 2) / len(micros)


ROWS = [  # three of them are in the quick suite
    pytest.param(row, id="-".join(map(str, row.values())), marks=pytest.mark.slow if n > 2 else ())
    for n, row in enumerate(covering())
]


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.slow
def test_any_two_settings_train_as_planned_and_resume_to_the_digit(
    tiny_run, tmp_path, loop_only, row
):
    changes = (
        "steps=2",
        "log.checkpoint_every=1",
        *(f"{name}={json.dumps(value)}" for name, value in row.items()),
    )
    config, kept = tiny_run(tmp_path / "whole", *changes), []
    plan = make_plan(config)
    train(config, at_end=kept.append)
    record = read_metrics(tmp_path / "whole" / "metrics.jsonl")
    assert all(math.isfinite(value) for values in record.values() for value in values)
    assert record["calls"] == pytest.approx(
        [planned_calls(plan, kept[0], step) for step in range(2)]
    )
    assert {
        sum(p.numel() for p in engine.trainable.values()) for engine in kept[0].engines.values()
    } == {plan.weights.trainable}
    shutil.copytree(tmp_path / "whole", tmp_path / "parts")
    shutil.rmtree(tmp_path / "parts" / "checkpoints" / "step_000002")
    train(tiny_run(tmp_path / "parts", *changes), resume="auto", at_end=kept.append)
    again = read_metrics(tmp_path / "parts" / "metrics.jsonl")
    assert all(again[name] == record[name] for name in record if name != "seconds")
    first, last, resumed = (
        load_file(tmp_path / folder / "checkpoints" / step / "student" / "weights.safetensors")
        for folder, step in (
            ("whole", "step_000001"),
            ("whole", "step_000002"),
            ("parts", "step_000002"),
        )
    )
    assert all(torch.equal(resumed[name], tensor) for name, tensor in last.items()) and any(
        not torch.equal(first[name], tensor) for name, tensor in last.items()
    )
