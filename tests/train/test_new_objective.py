"""A method that shares nothing with TDM can be run like any other: own settings, own draw, no
fake.
"""

import json
from dataclasses import dataclass
from typing import ClassVar, Literal

import pytest
import torch
from refusals import refused

from tdmvid.config import ObjectiveSettings, at_least, load_config
from tdmvid.config.objectives.base import SETTINGS
from tdmvid.distill.objective import REGISTRY, Draw, build_objective
from tdmvid.plan.describe import describe
from tdmvid.plan.make import make_plan
from tdmvid.train.trainer import train


@dataclass(frozen=True)
class RegressionSettings(ObjectiveSettings):
    """Settings of a regression on the teacher's prediction at the student's own states."""

    kind: Literal["regression"] = "regression"
    power: float = 2.0
    rules: ClassVar = (at_least("objective.power", 1),)

    @property
    def roles(self):
        return ("student",)


class Regression(RegressionSettings):
    """Evaluates the teacher at the student's state without adding noise."""

    def draw(self, path, x0_hat, generator, process):
        nothing, beta = torch.zeros_like(path.x), torch.zeros_like(path.upper)
        return Draw(x0_hat, path.x, path.upper, path.upper, nothing, nothing, beta)

    def loss(self, role, roles, draw, cond):
        assert role == "student" and roles.fake is None
        with torch.no_grad():
            target = roles.teacher(draw.x_tau, draw.tau, cond)
        return {"loss": (draw.x0_hat - target).abs().pow(self.power).mean()}


@pytest.fixture
def regression(monkeypatch):
    """Register the method for one test."""
    monkeypatch.setitem(SETTINGS, "regression", RegressionSettings)
    monkeypatch.setitem(REGISTRY, "regression", Regression)


def test_it_is_chosen_by_its_kind_and_has_its_own_rules(tiny_run, tmp_path, regression):
    config = tiny_run(tmp_path, "objective.kind=regression", "objective.power=3")
    assert config.objective == RegressionSettings(power=3.0)
    assert type(build_objective(config.objective)) is Regression
    with refused("objective.power=0.5"):
        tiny_run(tmp_path, "objective.kind=regression", "objective.power=0.5")
    with refused("'objective.fake_updates'", "'tdm'"):
        tiny_run(tmp_path, "objective.kind=regression", "objective.fake_updates=2")


def test_it_trains_and_is_exported(tiny_run, tmp_path, regression):
    changes = ("objective.kind=regression", "objective.cfg=2", "steps=3", "grid.steps=2")
    run = train(tiny_run(tmp_path, *changes))
    lines = (run / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["loss/student"] > 0 for line in lines] == [True] * 3
    assert not any("fake" in line for line in lines)
    assert list((run / "lora").glob("*.safetensors"))
    assert load_config(run / "config.json").objective == RegressionSettings(cfg=2.0)


def test_its_plan_counts_no_fake(tiny_run, tmp_path, regression):
    tdm, own = (
        make_plan(tiny_run(tmp_path, f"objective.kind={kind}")) for kind in ("tdm", "regression")
    )
    fewer = tdm.calls.forwards - own.calls.forwards, tdm.calls.backwards - own.calls.backwards
    assert fewer == (2, 1)  # two forward passes and one backward pass of the fake
    assert 2 * own.weights.trained == tdm.weights.trained
    assert "fake" not in describe(own).replace(str(tmp_path), "")
