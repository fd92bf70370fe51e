"""Which trajectories an iteration rolls out: their noise, their steps, and what is told to whom."""

import pytest
import torch

from tdmvid.diffusion.denoiser import STEPS, Cond
from tdmvid.diffusion.grid import uniform
from tdmvid.diffusion.process import RectifiedFlow
from tdmvid.distill.dmd2 import DMD2
from tdmvid.distill.gan import GAN
from tdmvid.distill.iteration import Place, advance, iterate, pick_grid
from tdmvid.distill.objective import Roles
from tdmvid.distill.tdm import TDM
from tdmvid.parallel.engine import StepResult
from tdmvid.parallel.rng import Streams

PROCESS, GRID = RectifiedFlow(), uniform(4, RectifiedFlow())


class Recorder:
    """A network that predicts `weight * x_t`, with a graph, and keeps all that it is asked."""

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


class Still:
    """An engine that steps nothing."""

    def backward(self, loss):
        pass

    def step(self, *, skip=False):
        return StepResult(True, 0.0, 0.0)


def roll_out(objective, step=0, *, micro=0, stream=0, number=0, shape=(8, 2), student=None):
    roles = Roles(student or Recorder(), None, None)
    place = Place(step, micro, stream, number)
    return advance(place, Cond({}), shape, objective, roles, GRID, Streams(0))


def recorded(objective, *, micros=1, first_stream=0, step=0, shape=(8, 2), grid=GRID):
    """The networks of one iteration, which moved nothing."""
    student, fake, teacher, critic = (Recorder(weight) for weight in (0.5, 0.6, 0.7, 0.8))
    roles = Roles(student, fake, teacher, critic.logits, lambda pick: torch.zeros(len(pick), 2))
    iterate(
        step,
        [Cond({})] * micros,
        shape,
        objective=objective,
        roles=roles,
        engines=dict.fromkeys(("student", "fake", "discriminator"), Still()),
        grid=grid,
        streams=Streams(0),
        first_stream=first_stream,
    )
    return student, fake, teacher, critic


def correlation(a, b):
    return torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1].item()


# k


@pytest.mark.parametrize("rollout", ["stop", "full"])
def test_every_step_of_the_grid_is_drawn_as_often(rollout):
    steps = 1600 if rollout == "stop" else 200
    k = torch.cat([roll_out(TDM(rollout=rollout), step).k for step in range(steps)])
    k = k.view(steps, 8)[:, :1] if rollout == "stop" else k
    counts = torch.bincount(k.flatten(), minlength=5)
    assert len(counts) == 5 and counts[0] == 0
    assert (counts[1:] - 400).abs().max() < 5 * (1600 * 0.25 * 0.75) ** 0.5


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
    """Zero predicted, a state is its noise alone: nothing of z or of another state is left."""
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
    places = [{"step": 1}, {"stream": 1}, {"number": 1}, {"number": 2}, {}]
    students = [Recorder() for _ in places]
    for place, student in zip(places, students):
        roll_out(TDM(rollout="full"), **place, shape=(4000, 2), student=student)
    for a in range(len(places)):
        for b in range(a):
            assert abs(correlation(students[a].states[0], students[b].states[0])) < 0.06


# Trajectories of the fake's own


def starts(student):
    """The noise that each rollout of a student started from, in order, and its steps."""
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
