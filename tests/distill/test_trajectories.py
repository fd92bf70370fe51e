"""Trajectories that an iteration rolls out: their noise, their steps, and the conditions of the
networks.
"""

from typing import ClassVar

import pytest
import torch
from toy_world import Still

from tdmvid.diffusion.denoiser import STEPS, Cond
from tdmvid.diffusion.grid import uniform
from tdmvid.diffusion.process import RectifiedFlow
from tdmvid.distill.dmd2 import DMD2
from tdmvid.distill.gan import GAN
from tdmvid.distill.iteration import iterate
from tdmvid.distill.objective import Roles
from tdmvid.distill.tdm import TDM
from tdmvid.distill.trajectories import Place, advance, pick_grid
from tdmvid.parallel.engine import StepResult
from tdmvid.parallel.rng import Streams

PROCESS, GRID = RectifiedFlow(), uniform(4, RectifiedFlow())


class Recorder:
    """Network that predicts `weight * x_t` with a graph, and records its inputs."""

    def __init__(self, weight=0.0):
        self.process = PROCESS
        self.weight = torch.tensor(weight, requires_grad=True)
        self.states, self.times, self.conds = [], [], []

    def __call__(self, x_t, t, cond):
        self.states.append(x_t.detach())
        self.times.append(t)
        self.conds.append(cond)
        return self.weight * x_t

    def logits(self, x_t, t, cond):
        return self(x_t, t, cond).mean(1)


def roll_out(objective, step=0, *, micro=0, stream=0, number=0, shape=(8, 2), student=None):
    roles = Roles(student or Recorder(), None, None)
    place = Place(step, micro, stream, number)
    return advance(place, Cond({}), shape, objective, roles, GRID, Streams(0))


def outcome(
    objective,
    *,
    micros=1,
    first_stream=0,
    step=0,
    shape=(8, 2),
    grid=GRID,
    networks=None,
    engine=None,
):
    """Return the result of one iteration of networks that are not updated."""
    student, fake, teacher, critic = networks or four_networks()
    roles = Roles(student, fake, teacher, critic.logits, lambda pick: torch.zeros(len(pick), 2))
    return iterate(
        step,
        [Cond({})] * micros,
        shape,
        objective=objective,
        roles=roles,
        engines=dict.fromkeys(("student", "fake", "discriminator"), engine or Still()),
        grid=grid,
        streams=Streams(0),
        first_stream=first_stream,
    )


def four_networks():
    return [Recorder(weight) for weight in (0.5, 0.6, 0.7, 0.8)]


def recorded(objective, **options):
    """Return student, fake, teacher and discriminator after one iteration."""
    networks = four_networks()
    outcome(objective, networks=networks, **options)
    return networks


def correlation(a, b):
    return torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1].item()


# k


@pytest.mark.parametrize("rollout", ["stop", "full"])
def test_every_step_of_the_grid_is_drawn_as_often(rollout):
    steps = 800 if rollout == "stop" else 100
    k = torch.cat([roll_out(TDM(rollout=rollout), step).k for step in range(steps)])
    k = k.view(steps, 8)[:, :1] if rollout == "stop" else k
    counts = torch.bincount(k.flatten(), minlength=5)
    assert len(counts) == 5 and counts[0] == 0
    assert (counts[1:] - 200).abs().max() < 5 * (800 * 0.25 * 0.75) ** 0.5


def test_where_the_rollout_stops_each_micro_batch_has_a_k_that_all_ranks_share():
    drawn = {
        rank: torch.tensor(
            [
                [
                    int(roll_out(TDM(), step, micro=micro, stream=3 * rank + micro).k.unique())
                    for micro in range(3)
                ]
                for step in range(200)
            ]
        )
        for rank in (0, 1)
    }
    assert torch.equal(drawn[0], drawn[1])
    for a, b in ((0, 1), (0, 2), (1, 2)):
        equal = (drawn[0][:, a] == drawn[0][:, b]).float().mean().item()
        assert equal == pytest.approx(0.25, abs=0.16)  # 5 deviations: they are independent


@pytest.mark.parametrize("objective", [TDM(), DMD2(fake_updates=3)], ids=["tdm", "dmd2"])
def test_all_ranks_make_the_same_calls_of_every_network(objective):
    ranks = [recorded(objective, micros=2, first_stream=first, step=5) for first in (0, 2)]
    for one, other in zip(*ranks):
        assert [x.shape for x in one.states] == [x.shape for x in other.states]
    one, other = (student for student, *_ in ranks)
    assert all(torch.equal(a, b) for a, b in zip(one.times, other.times))
    assert not any(torch.equal(a, b) for a, b in zip(one.states, other.states))


def test_a_full_rollout_draws_a_k_for_each_sample_that_follows_the_micro_batch_alone():
    full = TDM(rollout="full")
    first = roll_out(full, micro=0, stream=3, shape=(64, 2))
    assert len(first.k.unique()) == 4
    assert torch.equal(roll_out(full, micro=1, stream=3, shape=(64, 2)).k, first.k)
    assert not torch.equal(roll_out(full, micro=0, stream=4, shape=(64, 2)).k, first.k)


def test_the_student_is_called_at_the_times_of_the_grid_down_to_its_own_step():
    for step in range(8):
        student, *_ = recorded(TDM(), step=step)
        times = [t.unique().item() for t in student.times]
        k = int(roll_out(TDM(), step).k[0])
        assert times == list(GRID.descending()[: 5 - k])
        student, *_ = recorded(TDM(rollout="full"), step=step)
        k = roll_out(TDM(rollout="full"), step).k
        assert torch.equal(student.times[-1], GRID.tensor()[k])
        for row, own in enumerate(k.tolist()):
            if own > 1:  # the rollout has been there
                assert torch.equal(student.states[-1][row], student.states[4 - own][row])


def test_every_grid_is_trained_as_often():
    grids = [uniform(steps, PROCESS) for steps in (1, 2, 4)]
    drawn = [pick_grid(grids, Streams(0).generator(step, "K")).steps for step in range(900)]
    assert all(abs(drawn.count(steps) - 300) < 5 * 200**0.5 for steps in (1, 2, 4))


@pytest.mark.parametrize("rollout", ["stop", "full"])
@pytest.mark.parametrize("steps", [2, 4])
def test_the_networks_are_told_the_number_of_steps_of_the_grid(rollout, steps):
    objective = GAN(step_set=(2, 4), rollout=rollout)
    for step in range(6):
        networks = recorded(objective, step=step, grid=uniform(steps, PROCESS))
        for network in networks:
            assert network.conds
            for x, cond in zip(network.states, network.conds):
                assert torch.equal(cond[STEPS], torch.full((len(x),), float(steps)))


def test_without_a_set_or_its_condition_nothing_is_told():
    for objective in (TDM(), TDM(step_set=(2, 4), k_condition=False)):
        assert all(not cond for network in recorded(objective) for cond in network.conds)


# Noise


def test_every_state_of_a_stochastic_trajectory_has_noise_of_its_own():
    """If the prediction is zero, a state is only its noise, without any part of z or of another
    state.
    """
    student = Recorder()
    path = roll_out(DMD2(rollout="full"), shape=(4000, 2), student=student)
    assert len(student.states) == 3
    for a in range(3):
        for b in range(a):
            assert abs(correlation(student.states[a], student.states[b])) < 0.06
    z = student.states[0]
    at_noise = path.k == 4
    assert torch.equal(path.x[at_noise], z[at_noise])
    assert abs(correlation(path.x[~at_noise], z[~at_noise])) < 0.06


def test_the_noise_of_two_iterations_micro_batches_and_trajectories_differs():
    """This includes the noise between the steps of a stochastic sampler."""
    noise = []
    for place in ({"step": 1}, {"stream": 1}, {"number": 1}, {"number": 2}, {}):
        student = Recorder()
        roll_out(DMD2(rollout="full"), **place, shape=(4000, 2), student=student)
        noise += student.states
    found = torch.corrcoef(torch.stack([x.flatten() for x in noise]))
    assert (found - torch.eye(len(noise))).abs().max() < 0.06


class Drawn(TDM):
    """TDM that records its draws."""

    kept: ClassVar[list] = []

    def draw(self, *args):
        self.kept.append(super().draw(*args))
        return self.kept[-1]


def test_every_turn_of_every_micro_batch_and_iteration_has_noise_of_its_own():
    Drawn.kept.clear()
    for step in (0, 1):
        recorded(Drawn(fake_updates=2), micros=2, step=step, shape=(4000, 2))
    assert len(Drawn.kept) == 2 * 2 * 3
    eps = torch.corrcoef(torch.stack([draw.eps.flatten() for draw in Drawn.kept]))
    assert (eps - torch.eye(12)).abs().max() < 0.06
    place = [(draw.tau - draw.s) / (draw.tau - draw.s).max() for draw in Drawn.kept]
    assert (torch.corrcoef(torch.stack(place)) - torch.eye(12)).abs().max() < 0.09


def test_own_trajectories_have_steps_of_their_own():
    drawn = torch.stack(
        [
            torch.cat([roll_out(DMD2(), step, number=number).k[:1] for step in range(100)])
            for number in range(5)
        ]
    ).float()
    assert (torch.corrcoef(drawn) - torch.eye(5)).abs().max() < 0.5
    full = [roll_out(DMD2(rollout="full"), number=number, shape=(500, 2)).k for number in range(5)]
    assert (torch.corrcoef(torch.stack(full).float()) - torch.eye(5)).abs().max() < 0.25


# What an iteration reports


def test_what_is_reported_is_the_mean_over_the_micro_batches():
    def scalars(micros, first_stream):
        return outcome(TDM(rollout="full"), micros=micros, first_stream=first_stream).scalars

    both, first, second = scalars(2, 0), scalars(1, 0), scalars(1, 1)
    for name in ("loss/fake", "loss/student", "ess/fake", "gap/student"):
        assert first[name] != second[name]
        assert both[name] == pytest.approx((first[name] + second[name]) / 2, rel=1e-5)


def test_an_overflow_of_the_loss_scale_alone_does_not_end_the_iteration():
    class Overflows(Still):
        def step(self, *, skip=False):
            return StepResult(applied=False, grad_norm=0.0, lr=0.0, rescaled=True)

    found = outcome(TDM(), engine=Overflows())
    assert found.failed is None and "loss/student" in found.scalars


@pytest.mark.parametrize("bad", [0, 1])
def test_one_micro_batch_that_is_not_finite_skips_the_step(bad):
    class Poisoned(TDM):
        calls: ClassVar[list] = []

        def loss(self, role, roles, draw, cond):
            self.calls.append(role)
            terms = super().loss(role, roles, draw, cond)
            return terms | {
                "loss": terms["loss"] * (torch.nan if len(self.calls) == bad + 1 else 1)
            }

    assert outcome(Poisoned(), micros=2).failed == "fake" and Poisoned.calls == ["fake"] * 2


# Trajectories of the fake's own


def starts(student):
    """Return the initial noise of each rollout of a student in order, and its steps."""
    rollouts = []
    for x, t in zip(student.states, student.times):
        if t[0] == 1 and not any(torch.equal(x, known) for known, _ in rollouts):
            rollouts.append((x, []))
        rollouts[-1][1].append(t[0].item())
    return rollouts


@pytest.mark.parametrize("rollout", ["stop", "full"])
def test_dmd2_rolls_out_fresh_trajectories_for_all_but_the_last_update_of_its_fake(rollout):
    student, fake, *_ = recorded(DMD2(rollout=rollout), step=3, shape=(64, 2))
    begun = starts(student)
    assert len(begun) == 5  # five updates of the fake; the student shares the last one's
    for a in range(5):
        for b in range(a):
            assert abs(correlation(begun[a][0], begun[b][0])) < 0.45
    assert len(fake.states) == 6


def test_the_student_s_trajectory_is_the_same_with_one_update_of_the_fake_or_five():
    one, five = (DMD2(rollout="full", fake_updates=updates) for updates in (1, 5))
    z = [starts(recorded(objective, step=3)[0])[-1][0] for objective in (one, five)]
    assert torch.equal(*z)


def test_tdm_s_further_updates_draw_again_on_the_student_s_trajectory():
    student, fake, *_ = recorded(TDM(fake_updates=3, rollout="full"))
    assert len(starts(student)) == 1 and len(student.states) == 4 and len(fake.states) == 4
    assert not torch.equal(fake.times[0], fake.times[1])
