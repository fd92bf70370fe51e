"""Rewards act through the fake: exp(-tilt) weights its loss."""

import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from toy_world import BATCH, GRID, PROCESS, World, shrink, stream, walk

from tdmvid.diffusion.denoiser import Cond
from tdmvid.diffusion.grid import uniform
from tdmvid.diffusion.sampler import Trajectory, finish, rollout, sample
from tdmvid.distill.iteration import GradedPath
from tdmvid.distill.objective import Draw, Roles
from tdmvid.distill.reward import RunningMean
from tdmvid.distill.tdm import TDM

ROLES = ["fake", "student"]

# The fixed point


class Affine:
    """The exact x0 prediction of N(mean, spread^2), plus an error with a gradient."""

    def __init__(self, mean, spread):
        self.process, self.mean, self.spread = PROCESS, mean, spread
        self.error = torch.zeros(2, 2, requires_grad=True)  # of the offset, and of the slope

    def __call__(self, x_t, t, cond):
        alpha, sigma = (each[:, None] for each in PROCESS.alpha_sigma(t))
        gain = self.spread**2 * alpha / (alpha**2 * self.spread**2 + sigma**2)
        x0 = self.mean + gain * (x_t - alpha * self.mean)
        return x0 + self.error[0] + self.error[1] * x_t


@pytest.mark.parametrize("strength", [0.7, -0.4])
def test_the_weighted_fake_is_the_score_of_the_tilted_gaussian(strength):
    """Student N(m, S), reward c.x, last step: the optimum is the score of N(m - lam S c, S)."""
    mean, spread, reward = torch.tensor([0.3, -0.5]), 0.8, torch.tensor([1.0, -2.0])
    draws = torch.Generator().manual_seed(0)
    finished = mean + spread * torch.randn(400_000, 2, generator=draws)
    k, t = torch.ones(len(finished), dtype=torch.long), torch.full((len(finished),), 0.25)
    path = Trajectory(finished, k, torch.zeros_like(t), t, Cond({}))  # x is not used at s = 0
    tilts = strength * (finished @ reward)
    [weights], _ = RunningMean(dict).weigh([tilts])
    objective = TDM(importance="none")

    def gradient(fake):
        roles = Roles(fake, fake, None)  # the student gives its process only
        call = GradedPath.of_past(path, finished, weights, roles)
        noise = torch.Generator().manual_seed(1)
        draw = call.draw(objective, noise, graded=False)
        loss = objective.loss("fake", roles, draw, Cond({}))["loss"]
        return torch.autograd.grad(loss, fake.error)

    [at_optimum] = gradient(Affine(mean - strength * spread**2 * reward, spread))
    [without_reward] = gradient(Affine(mean, spread))
    assert at_optimum.abs().max() < 0.06 * without_reward.abs().max()


# The weights


def test_weights_are_divided_by_the_mean_of_earlier_batches():
    """After the first batch, the divisor does not contain the weight of the sample itself."""
    mean, draws = RunningMean(dict, decay=0.5), torch.Generator().manual_seed(0)
    first, second = torch.randn(2, 6, generator=draws).double()
    [weights], _ = mean.weigh([first])
    assert float(weights.mean()) == pytest.approx(1)
    expected = float((-first).exp().mean())
    [weights], share = mean.weigh([second])
    torch.testing.assert_close(weights, ((-second).exp() / expected).float())
    assert share == pytest.approx(float(weights.sum() ** 2 / weights.square().sum() / 6))
    [weights], _ = mean.weigh([first])
    expected = 0.5 * expected + 0.5 * float((-second).exp().mean())
    torch.testing.assert_close(weights, ((-first).exp() / expected).float())


def test_ranks_divide_by_the_mean_of_the_global_batch():
    draws = torch.Generator().manual_seed(0)
    batches = [3 * torch.randn(4, 5, generator=draws).double() for _ in range(3)]
    whole, met = RunningMean(dict), threading.Barrier(2, timeout=30)
    passed = [{}, {}]

    def work(rank):
        def over_ranks(scalars):
            passed[rank] = scalars
            met.wait()
            found = {name: (passed[0][name] + passed[1][name]) / 2 for name in scalars}
            met.wait()
            return found

        mean = RunningMean(over_ranks)
        return [mean.weigh([*batch.chunk(2)[rank]]) for batch in batches]

    expected = [whole.weigh([*batch]) for batch in batches]
    with ThreadPoolExecutor(2) as pool:
        ranks = list(pool.map(work, range(2)))
    for step, (weights, share) in enumerate(expected):
        found = [*ranks[0][step][0], *ranks[1][step][0]]
        torch.testing.assert_close(found, weights)
        assert [rank[step][1] for rank in ranks] == pytest.approx([share, share])


def test_an_outlier_at_most_doubles_the_divisor():
    mean, plain = RunningMean(dict), torch.zeros(16)
    mean.weigh([plain])
    mean.weigh([torch.tensor([-15.0, *[0.0] * 15])])
    [weights], _ = mean.weigh([plain])
    assert float(weights.min()) > 0.49


def test_weights_of_extreme_tilts_are_finite():
    for scale in (1e3, -1e3):
        mean = RunningMean(dict)
        for _ in range(3):
            [weights], share = mean.weigh([scale * torch.linspace(0.9, 1, 8)])
            assert weights.isfinite().all() and 0 < share <= 1


@pytest.mark.parametrize("where", ["fake", "student"])
def test_a_reward_weights_the_samples_of_one_loss(where):
    """A sample of weight 3 counts as three samples of weight 1, in the loss that is chosen."""
    generator = torch.Generator().manual_seed(0)
    x, x0 = torch.randn(2, 3, 2, generator=generator)
    k, t = torch.ones(3, dtype=torch.long), torch.full((3,), 0.25)
    path = Trajectory(x, k, torch.zeros(3), t, Cond({}))
    objective = TDM(importance="none", reward_weights=where)
    fake, teacher = Affine(0.1, 0.8), Affine(-0.2, 0.9)
    roles = Roles(fake, fake, teacher)

    def losses(weight, rows):
        noise = torch.Generator().manual_seed(1)
        draw = objective.draw(path, x0, noise, PROCESS)
        values = {
            name: None if value is None else value[rows] for name, value in vars(draw).items()
        }
        draw = Draw(**values | {"weight": weight})
        return [objective.loss(role, roles, draw, Cond({}))["loss"].item() for role in ROLES]

    each = [losses(torch.ones(1), slice(i, i + 1)) for i in range(3)]
    weights = torch.tensor([3.0, 1.0, 0.5])
    for role, found in zip(ROLES, losses(weights, slice(0, 3))):
        counted = weights if role == where else torch.ones(3)
        mine = torch.tensor([values[ROLES.index(role)] for values in each])
        assert found == pytest.approx(float((counted * mine).mean()), rel=1e-5)


# Where the rewards are known: ended trajectories


@pytest.mark.parametrize("stagger", ["even", "none"])
@pytest.mark.parametrize("solver", ["ddim", "dpm++"])
@pytest.mark.parametrize("steps", [(4,), (1, 2, 4)])
def test_an_ended_trajectory_is_the_sampler_s(stagger, solver, steps):
    """Its states and its finished sample equal those of a sampler from the same noise."""
    objective = TDM(rollout="stream", stagger=stagger, solver=solver, step_set=steps[1:] and steps)
    grids = [uniform(count, PROCESS) for count in steps]
    slots = stream(objective, grids, rewards=1)
    for iterations in (1, 9):
        walk(slots, iterations)
        [ended] = slots.ended
        for slot in range(BATCH):
            grid, one = grids[ended.grid[slot]], slice(slot, slot + 1)
            found = {}
            z = ended.past.x[grid.steps - 1, one]
            last = sample(shrink, z, Cond({}), grid, solver=solver, on_step=found.__setitem__)
            torch.testing.assert_close(ended.past.x0[0, one], last)
            for k, x0 in found.items():
                torch.testing.assert_close(ended.past.x0[k - 1, one], x0)


@pytest.mark.parametrize("solver", ["ddim", "dpm++"])
def test_the_fake_learns_from_each_step_of_an_ended_trajectory(solver):
    slots = stream(TDM(rollout="stream", solver=solver), rewards=1)
    walk(slots, 5)
    [ended], seen = slots.ended, set()
    for step in range(20):
        path, x0 = slots.past(step, 0, Cond({}))
        for slot, k in enumerate(path.k.tolist()):
            seen.add((slot, k))
            torch.testing.assert_close(path.x[slot], ended.past.x[k - 1, slot])
            torch.testing.assert_close(x0[slot], ended.past.x0[k - 1, slot])
            assert float(path.upper[slot]) == GRID.times[k]
            if solver == "dpm++" and k < 4:
                torch.testing.assert_close(path.before.x0[slot], ended.past.x0[k, slot])
                assert float(path.before.t[slot]) == GRID.times[k + 1]
    assert seen == {(slot, k) for slot in range(BATCH) for k in range(1, 5)}


def test_with_two_experts_the_fake_learns_on_the_student_s_side_of_the_boundary():
    grid = replace(GRID, boundary=0.6)
    slots = stream(TDM(rollout="stream", stagger="none"), [grid], rewards=1)
    sides = set()
    for step in range(12):
        walk(slots, 1)
        now, past = slots.path(0, Cond({})), slots.past(step, 0, Cond({}))[0]
        [high] = {bool(upper >= 0.6) for upper in now.upper}
        assert ((past.upper >= 0.6) == high).all()
        sides |= {(high, float(upper)) for upper in past.upper}
    assert sides == {(True, 1.0), (True, 0.75), (False, 0.5), (False, 0.25)}


def test_the_fake_learns_of_each_number_of_steps_as_often_as_the_student():
    """A slot starts K with a probability proportional to 1 / K; finished trajectories are weighted
    by K.
    """
    steps, counted = (1, 2, 4), Counter()
    grids = [uniform(count, PROCESS) for count in steps]
    slots = stream(TDM(rollout="stream", step_set=steps), grids, batch=64, rewards=1)
    for _ in range(60):
        walk(slots, 1)
        for grid, share in zip(slots.ended[0].grid, slots.past_share(0).tolist()):
            counted[grid] += share
    total = sum(counted.values())
    assert total / 60 / 64 == pytest.approx(1, abs=0.1)
    for grid in range(3):
        assert counted[grid] / total == pytest.approx(1 / 3, abs=0.05)


def test_a_trajectory_keeps_its_prompt_when_its_slot_goes_on_with_another():
    slots = stream(rewards=1)
    slots.begin(shrink, [Cond({})])
    for _ in range(12):
        before, prompts = slots.schedules[0], slots.prompts(0)
        walk(slots, 1)
        for slot, k in enumerate(before.k):
            if k == 1:
                assert slots.ended[0].position[slot] == prompts[slot]
                assert slot in slots.ended[0].unscored
        slots.ended[0].rewards[:] = 0.0
        assert not slots.ended[0].unscored


def test_a_slot_that_is_not_finite_ends_no_trajectory():
    slots = stream(rewards=1)
    walk(slots, 3)
    slots.ended[0].rewards[:] = 1.0
    path, last = slots.path(0, Cond({})), slots.ended[0].past.x0.clone()
    x0 = shrink(path.x, path.upper, path.cond)
    x0[path.k == 1] = float("nan")
    slots.settle(slots.move(3, [[x0]], PROCESS, on=True).tolist(), on=True)
    assert torch.equal(slots.ended[0].past.x0, last) and not slots.ended[0].unscored


def test_ended_trajectories_are_part_of_what_a_checkpoint_keeps():
    first, second = stream(rewards=2), stream(rewards=2)
    walk(first, 6)
    first.ended[0].rewards[:3] = 0.5
    second.restore([first.tensors(0)])
    for slots in (first, second):
        walk(slots, 5)
    kept, again = (slots.tensors(0) for slots in (first, second))
    assert kept.keys() == again.keys()
    for name, tensor in kept.items():
        torch.testing.assert_close(again[name], tensor, rtol=0, atol=0, equal_nan=True)


# What it costs


@pytest.mark.parametrize("stagger", ["even", "none"])
@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("renewed", [False, True])
def test_a_stream_pays_for_its_rewards_only_to_renew_predictions(stagger, accumulation, renewed):
    objective = TDM(rollout="stream", stagger=stagger)
    slots = stream(objective, rewards=1, micros=accumulation)
    world = World(objective, stream=slots, accumulation=accumulation)
    slots.begin(world.roles.student, [Cond({})] * accumulation)

    def learn(number, calls):
        past = (slots.past(0, micro, Cond({})) for micro in range(accumulation))
        weight = torch.ones(BATCH)
        return [
            GradedPath.of_past(path, None if renewed else x0, weight, world.roles)
            for path, x0 in past
        ]

    for step in range(5):
        before = world.forwards(), world.backwards()
        world.iterate(step, micros=accumulation, reweigh=learn)
        counts = world.forwards() - before[0], world.backwards() - before[1]
        assert counts == ((5 + renewed) * accumulation, 2 * accumulation)


@pytest.mark.parametrize("solver", ["ddim", "dpm++"])
@pytest.mark.parametrize("calls", [0, 2, 3])
def test_a_finished_rollout_is_the_sampler_s(solver, calls):
    z = torch.randn(BATCH, 2, generator=torch.Generator().manual_seed(0))
    k = torch.full((BATCH,), 4 - calls)
    path = rollout(shrink, z, Cond({}), GRID, k, calls=calls, solver=solver)
    known = shrink(path.x, path.upper, path.cond)
    expected = sample(shrink, z, Cond({}), GRID, solver=solver)
    for x0_hat in (None, known):
        found = finish(shrink, path, GRID, x0_hat=x0_hat, solver=solver)
        torch.testing.assert_close(found, expected)
