"""Acceptance test of the method: a mixture of Gaussians, and mutants of TDM that must do worse."""

import sys
from dataclasses import replace

import pytest
import torch
from refusals import refused

from benchmarks import toy
from tdmvid.backbones.gaussian import ExactDenoiser, Mixture
from tdmvid.distill.tdm import TDM

TARGET = 0.05


def teacher_distance(process):
    return toy.score(ExactDenoiser(Mixture.circle(), process), 4)


@pytest.mark.slow
def test_the_yardstick_is_the_one_of_the_table():
    assert 0.02 < toy.floor() < 0.045
    assert teacher_distance(toy.stable_diffusion()) == pytest.approx(0.22, abs=0.02)


def test_every_row_and_column_of_the_grid_has_every_weight():
    weights = (31 * 5 * Mixture.grid().weights).reshape(5, 5)
    for line in [*weights, *weights.T]:
        assert sorted(line.tolist()) == pytest.approx([1, 2, 4, 8, 16])


def test_a_benchmark_of_no_seeds_is_refused_before_it_works(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["toy.py", "--seeds", "0"])
    monkeypatch.setattr(toy, "floor", lambda: pytest.fail("it works"))
    with refused("--seeds 0", error=SystemExit):
        toy.main()


@pytest.mark.parametrize(
    "pair, fact",
    [
        (
            "distance=foo",
            "objective.distance='foo'",
        ),
        ("snr_ceiling=abc", "objective.snr_ceiling='abc'"),
        ("snr=5", "--set snr=5"),
        ("kind=fisher", "--set kind=fisher"),
    ],
)
def test_an_option_that_tdm_does_not_have_is_refused_before_the_benchmark_works(
    monkeypatch, pair, fact
):
    monkeypatch.setattr(sys, "argv", ["toy.py", "--set", pair])
    monkeypatch.setattr(toy, "floor", lambda: pytest.fail("it works"))
    with refused("error", fact, error=SystemExit):
        toy.main()


def test_the_benchmark_s_options_are_read_as_a_config_s():
    assert toy._objective(["draws=shared", "fresh_noise=0.5", "randmid=true"]) == replace(
        toy.OBJECTIVE, draws="shared", fresh_noise=0.5, randmid=True
    )


@pytest.mark.slow
def test_student_and_fake_start_from_a_score_that_parts_narrow_modes():
    process, generator = toy.stable_diffusion(), torch.Generator().manual_seed(0)
    network, t = toy.pretrained(process, toy.Recipe()), torch.full((5000,), 0.05)
    x_t = process.noise(
        Mixture.circle().sample(5000, generator), torch.randn(5000, 2, generator=generator), t
    )
    exact = ExactDenoiser(Mixture.circle(), process)(x_t, t, toy.NULL)
    with torch.no_grad():
        error = (network(x_t, t, toy.NULL) - exact).square().mean().sqrt()
    assert error < 0.1 * (exact - x_t).square().mean().sqrt()


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", toy.PROCESSES)
def test_four_student_steps_reach_the_data(name, seed):
    recipe = toy.Recipe(seed=seed, shift=toy.SHIFTS[name])
    assert toy.score(toy.distil(toy.PROCESSES[name](), recipe), 4, shift=recipe.shift) <= TARGET


class WrongSign(TDM):
    """Mutant that moves the student along fake - teacher."""

    def loss(self, role, roles, draw, cond):
        if role == "student":
            roles = type(roles)(roles.student, roles.teacher, roles.fake)
        return super().loss(role, roles, draw, cond)


class WrongSegment(TDM):
    """Mutant that draws tau below the state it starts from, in [0, s], which does not belong to
    step k.
    """

    def _times(self, path, u, process):
        s = path.lower
        return s, process.snap((u[0] * s).clamp(min=0.02))


class StaleFake(TDM):
    """Mutant that never updates the fake."""

    roles = ("student",)


@pytest.mark.slow
def test_a_wrong_sign_segment_or_fake_is_clearly_worse():
    process = toy.stable_diffusion()
    small = toy.Recipe(iterations=400, width=64, batch=256, lr_student=3e-4, ema=0.98)
    found = {}
    for kind in (
        TDM,
        WrongSign,
        WrongSegment,
        StaleFake,
    ):  # x0_hat as target: the exact one has no tau below s
        objective = kind(rollout="full", distance="l2", snr_ceiling=50.0)
        found[kind.__name__] = toy.score(
            toy.distil(process, replace(small, objective=objective)), 4
        )
    assert all(
        found[name] > 1.25 * found["TDM"] for name in ("WrongSign", "WrongSegment", "StaleFake")
    ), found
