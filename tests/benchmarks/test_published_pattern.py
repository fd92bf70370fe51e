"""The published call pattern is as described, and updates the weights like ours."""

import copy
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from refusals import refused

from benchmarks import iteration, sampling, scaling, stopwatch
from benchmarks.published import published
from tdmvid.backbones.gaussian import ExactDenoiser, Mixture, VelocityNetwork
from tdmvid.config import OptimConfig, load_config
from tdmvid.diffusion.denoiser import Cond, Guided
from tdmvid.diffusion.grid import uniform
from tdmvid.diffusion.process import RectifiedFlow
from tdmvid.distill.iteration import iterate
from tdmvid.distill.objective import Roles
from tdmvid.distill.tdm import TDM
from tdmvid.parallel import launch
from tdmvid.parallel.engine import TorchEngine
from tdmvid.parallel.rng import Streams
from tdmvid.plan.make import make_plan

CPU = torch.device("cpu")


def moved(pattern, objective, steps=3):
    """Return the weights of student and fake after some iterations from the same start, and the
    last scalars.
    """
    process = RectifiedFlow()
    networks = {
        role: VelocityNetwork(process, width=16, seed=i)
        for i, role in enumerate(("student", "fake"))
    }
    engines = {
        role: TorchEngine(network, OptimConfig(lr=1e-2), total_steps=steps)
        for role, network in networks.items()
    }
    roles = Roles(
        *networks.values(), Guided(ExactDenoiser(Mixture.circle(), process), Cond({}), 3.0)
    )
    for step in range(steps):
        outcome = pattern(
            step,
            [Cond({})],
            (64, 2),
            objective=objective,
            roles=roles,
            engines=engines,
            grid=uniform(4, process),
            streams=Streams(0),
        )
    return {
        role: copy.deepcopy(network.state_dict()) for role, network in networks.items()
    }, outcome.scalars


def test_the_published_pattern_moves_the_weights_as_ours_does():
    (theirs, scalars), (ours, same) = (
        moved(pattern, TDM(rollout="full")) for pattern in (published, iterate)
    )
    earlier, _ = moved(iterate, TDM(rollout="full"), steps=1)
    for role in ours:
        for name, tensor in ours[role].items():
            torch.testing.assert_close(theirs[role][name], tensor, rtol=1e-5, atol=1e-6)
            assert "weight" not in name or not torch.equal(earlier[role][name], tensor)
    assert scalars["loss/student"] == pytest.approx(same["loss/student"], rel=1e-4)


@pytest.fixture(scope="module")
def tiny(tiny_json, tmp_path_factory):
    """A tiny guided run."""
    return load_config(
        tiny_json,
        [
            f"out={tmp_path_factory.mktemp('bench')}",
            "objective.cfg=3",
            "batch.micro=2",
            "lora.rank=3",
            "lora.alpha=3",
        ],
    )


@pytest.mark.slow
def test_the_calls_are_those_of_the_published_loop_and_of_ours(tiny):
    rows = {row[0]: row for row in iteration.compare(tiny, launch.start("none"), repeats=1)}
    assert {name: row[1] for name, row in rows.items()} == {
        "published pattern, library defaults": "11F 2B",
        "published pattern": "11F 2B",
        "full": "8F 2B",
        "full, shared draw": "7F 2B",
        "stream": "5F 2B",
        "stream, shared draw": "4F 2B",
        "stop": "6.5F 2B",
        "stop, shared draw": "5.5F 2B",
    }
    base = rows["published pattern"]
    assert base[3] == base[4] == base[7] == 1 and all(row[2] > 0 for row in rows.values())
    predicted = [rows[name][4] for name in ("stream, shared draw", "stream", "stop", "full")]
    assert predicted == sorted(predicted) and predicted[-1] < 1


def test_the_sum_of_calls_is_that_of_the_pattern():
    """If every call costs one and every step three, the sum is F + 2 B at K = 4."""
    alone = dict.fromkeys(("student", "fake", "branch"), 1.0)
    alone |= {"teacher": 2.0, "student step": 3.0, "fake step": 3.0}
    expected = {"published pattern": 15, "full": 12, "stop": 10.5, "stream": 9}
    expected |= {"full, shared draw": 11, "stop, shared draw": 9.5, "stream, shared draw": 8}
    assert {name: iteration.sum_of_calls(name, alone, 4) for name in expected} == expected


@pytest.mark.slow
def test_every_sampler_is_timed_a_call(tiny):
    rows = sampling.compare(tiny, launch.start("none"), [1], steps=3, repeats=1, random=False)
    assert [(row[1], row[2]) for row in rows] == [
        ("teacher", 6),
        ("student, LoRA", 4),
        ("student, fused", 4),
    ]
    assert rows[0][5] == 1 and all(row[4] == pytest.approx(1000 * row[3] / row[2]) for row in rows)


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_work_of_an_iteration_is_the_planned_one(tiny, checkpointing):
    config = replace(tiny, parallel=replace(tiny.parallel, gradient_checkpointing=checkpointing))
    plan, measured = make_plan(config), scaling.measure(config, launch.start("none"), repeats=1)
    # the last product of a checkpointed block is not recomputed, because no gradient needs it
    assert measured["flops"] == pytest.approx(plan.flops(), rel=0.03 if checkpointing else 0.02)
    if not checkpointing:
        assert measured["kept"] == pytest.approx(plan.activations(False), rel=0.05)


@pytest.mark.slow
def test_two_ranks_send_what_is_planned_of_sharded_weights(tmp_path):
    args = SimpleNamespace(repeats=1, work=tmp_path)
    planned = make_plan(scaling.prepare(scaling.SHARDED, tmp_path), ranks=2).traffic()
    measured = scaling.launched(2, scaling.SHARDED, args)
    assert measured["weights"] == pytest.approx(planned["weights"], rel=0.15)
    assert measured["trained"] == pytest.approx(planned["gradients"], rel=0.01)


def test_the_peak_is_that_of_tensors_alive_at_once():
    def call():
        for _ in range(3):  # a, and the new b next to the previous one
            a = torch.ones(1 << 20)
            b = a + a
            del a
            b.sum()

    assert stopwatch.peak_bytes(call, CPU) == pytest.approx(3 * 4 * 2**20, rel=0.01)


def test_autograd_s_tensors_count_while_they_are_held():
    x = torch.ones(1 << 18, requires_grad=True)
    with stopwatch.Kept([]) as kept:
        for _ in range(2):
            x.exp().exp().sum().backward()  # keeps both results
    assert kept.peak == 2 * 4 * 2**18 and kept.now == 0


def test_runs_alternate_and_the_first_round_is_not_timed():
    seen = []
    clocks = stopwatch.alternate(
        {name: lambda turn, name=name: seen.append((name, turn)) for name in "ab"},
        repeats=2,
        device=CPU,
    )
    assert seen == [
        ("a", 0),
        ("b", 0),
        ("a", 1),
        ("b", 1),
        ("a", 2),
        ("b", 2),
    ] and clocks.keys() == set("ab")
    with refused("repeats=0"):
        stopwatch.alternate({}, repeats=0, device=CPU)
