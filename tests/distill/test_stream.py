"""Trajectories that continue between iterations: their cost and their positions."""

from collections import Counter
from dataclasses import replace

import pytest
import torch
from toy_world import BATCH, GRID, PROCESS, STREAM, Still, World, shrink, stream, walk

from tdmvid.data.prompts import PromptOrder
from tdmvid.diffusion.denoiser import STEPS, Cond
from tdmvid.diffusion.grid import uniform
from tdmvid.diffusion.sampler import sample
from tdmvid.distill.gan import GAN
from tdmvid.distill.iteration import iterate
from tdmvid.distill.objective import Roles
from tdmvid.distill.tdm import TDM
from tdmvid.parallel.rng import Streams

# What an iteration costs and computes


@pytest.mark.parametrize("draws, forwards", [("own", 5), ("shared", 4)])
@pytest.mark.parametrize("steps", [1, 4, 8])
def test_an_iteration_costs_the_same_for_any_number_of_steps(draws, forwards, steps):
    objective = TDM(rollout="stream", draws=draws)
    world = World(objective, stream=stream(objective, [uniform(steps, PROCESS)]))
    world.stream.begin(world.roles.student, [Cond({})])
    assert world.forwards() == steps - 1  # the first rollout, once a run
    for step in range(5):
        before = world.forwards(), world.backwards()
        assert world.iterate(step).failed is None
        assert (world.forwards() - before[0], world.backwards() - before[1]) == (forwards, 2)


@pytest.mark.parametrize("updates, forwards", [("sequential", 6), ("joint", 5)])
def test_with_accumulation_the_graded_call_is_made_once_only_if_updates_are_joint(
    updates, forwards
):
    world = World(TDM(rollout="stream", updates=updates), accumulation=2)
    world.iterate(0, micros=2)
    before = world.forwards(), world.backwards()
    world.iterate(1, micros=2)
    assert (world.forwards() - before[0]) / 2 == forwards
    assert (world.backwards() - before[1]) / 2 == 2


def test_from_the_same_states_it_moves_the_weights_as_a_full_rollout_does(monkeypatch):
    worlds = World(STREAM), World(TDM(rollout="full"))
    k = torch.tensor(worlds[0].stream.schedules[0].k)
    monkeypatch.setattr("tdmvid.distill.trajectories.pick_k", lambda *_: k)
    for world in worlds:
        world.iterate(0)
    for role in ("student", "fake"):
        start = World(STREAM).weights(role)
        moved = worlds[0].weights(role) - start
        assert moved.norm() > 0 and torch.equal(moved, worlds[1].weights(role) - start)


def test_joint_updates_compare_the_student_with_the_fake_of_before():
    """They equal sequential updates with a fixed fake."""
    moves = {}
    for updates in ("joint", "sequential"):
        world = World(TDM(rollout="stream", updates=updates))
        before = world.weights("student"), world.weights("fake")
        if updates == "sequential":
            fake = world.engines["fake"]
            fake.config = replace(fake.config, lr=1e-30)
        world.iterate()
        moves[updates] = world.weights("student") - before[0]
        assert updates == "sequential" or not torch.equal(world.weights("fake"), before[1])
    assert moves["joint"].norm() > 0 and torch.equal(moves["joint"], moves["sequential"])


@pytest.mark.parametrize("updates", ["sequential", "joint"])
@pytest.mark.parametrize("draws", ["own", "shared"])
def test_two_micro_batches_are_one_of_twice_the_size_on_two_ranks(updates, draws):
    """The update of one rank with two micro-batches is the mean of the updates of two ranks."""
    objective, moves = TDM(rollout="stream", updates=updates, draws=draws), {}
    for name, micros, first in (("both", 2, 0), ("first", 1, 0), ("second", 1, 1)):
        layout = {"micros": micros, "first_stream": first, "total_micros": 2}
        world = World(objective, accumulation=micros, stream=stream(objective, **layout))
        fake = world.engines["fake"]
        fake.config = replace(fake.config, lr=1e-30)  # or each rank meets its own
        before = world.weights("student").double()
        world.iterate(micros=micros, first_stream=first)
        moves[name] = world.weights("student").double() - before
    expected = (moves["first"] + moves["second"]) / 2
    assert (moves["first"] - moves["second"]).norm() > 0.1 * expected.norm() > 0
    torch.testing.assert_close(moves["both"], expected, rtol=1e-3, atol=1e-7)


# Where trajectories stand


@pytest.mark.parametrize("solver", ["ddim", "dpm++"])
@pytest.mark.parametrize("grids", [(GRID,), (uniform(2, PROCESS), GRID, uniform(8, PROCESS))])
def test_a_slot_walks_the_sampler_s_path_from_noise_to_its_end(solver, grids):
    slots = stream(TDM(rollout="stream", solver=solver, k_condition=False), grids)
    slots.begin(shrink, [Cond({})])
    fresh, noises, whole = [None] * BATCH, [], 0
    for step in range(24):
        schedule, path = slots.schedules[0], slots.path(0, Cond({}))
        for slot, (k, grid) in enumerate(zip(schedule.k, schedule.grid)):
            if k == grids[grid].steps:
                fresh[slot] = path.x[slot : slot + 1]
                noises.append(path.x[slot, 0].item())
        x0 = shrink(path.x, path.upper, path.cond)
        for slot, (k, grid) in enumerate(zip(schedule.k, schedule.grid)):
            if k == 1 and fresh[slot] is not None:
                end = sample(shrink, fresh[slot], Cond({}), grids[grid], solver=solver)
                torch.testing.assert_close(x0[slot : slot + 1], end)
                whole += 1
        slots.settle(slots.move(step, [[x0]], PROCESS, on=True).tolist(), on=True)
    assert whole >= 16 and len(set(noises)) == len(noises)


def test_a_slot_that_starts_again_has_other_noise_than_before():
    slots = stream(batch=64)
    slots.begin(shrink, [Cond({})])
    generator = Streams(0).generator(0, "z", 0)
    first = torch.randn(64, 2, generator=generator)
    starting = torch.tensor(slots.schedules[0].k) == 4
    assert torch.equal(slots.states[0].sets[0][starting], first[starting])
    again = torch.tensor(slots.schedules[0].k) == 1
    walk(slots, 1)
    correlation = torch.stack([slots.states[0].sets[0][again], first[again]]).flatten(1).corrcoef()
    assert abs(correlation[0, 1]) < 0.6 and again.sum() == 16


def test_renoised_states_have_fresh_noise_at_every_step():
    """The state is alpha x0 + sigma eps with normal eps, which is not the initial noise."""
    slots = stream(TDM(rollout="stream", solver="renoise"), batch=4000)
    slots.begin(shrink, [Cond({})])
    path = slots.path(0, Cond({}))
    x0 = shrink(path.x, path.upper, path.cond)
    slots.move(0, [[x0]], PROCESS, on=True)
    going = path.k > 1
    alpha, sigma = PROCESS.levels(path.lower, x0)
    eps = ((slots.states[0].sets[0] - alpha * x0) / sigma)[going]
    assert abs(eps.std().item() - 1) < 0.03 and abs(eps.mean().item()) < 0.03
    assert abs(torch.corrcoef(torch.stack([eps.flatten(), x0[going].flatten()]))[0, 1]) < 0.05


@pytest.mark.parametrize("slots, every", [(8, 1), (4, 1), (6, 2), (1, 4), (3, 4)])
def test_the_slots_cover_every_k_evenly(slots, every):
    """All k occur in each iteration if the batch is a multiple of K, otherwise within at most K
    iterations.
    """
    seen = walk(stream(batch=slots), 8 * 4)
    for first in range(0, 32, 4 if every > 1 else 1):
        span = seen[first : first + (4 if every > 1 else 1)]
        count = Counter(k for [schedule] in span for k in schedule.k)
        assert set(count) == {1, 2, 3, 4} and len(set(count.values())) == 1


def test_slots_without_a_stagger_stand_at_one_k():
    slots = stream(TDM(rollout="stream", stagger="none"))
    seen = [schedule.k for [schedule] in walk(slots, 9)]
    assert seen == [[k] * BATCH for k in (4, 3, 2, 1, 4, 3, 2, 1, 4)]
    several = stream(
        TDM(rollout="stream", stagger="none", k_condition=False), (GRID, uniform(2, PROCESS))
    )
    for [schedule] in walk(several, 40):
        assert len({*zip(schedule.k, schedule.grid)}) == 1
    assert several.schedules[0].starts[0] > 10


@pytest.mark.parametrize("micros", [1, 2])
@pytest.mark.parametrize("count", [3, 8, 50])
def test_prompts_are_used_evenly_and_stay_with_their_trajectory(count, micros):
    order, slots, used = PromptOrder(count, 0), stream(micros=micros), Counter()
    prompts = [None] * micros
    for _ in range(200):
        for micro, schedule in enumerate(slots.schedules):
            last, prompts[micro] = prompts[micro], [order.at(p) for p in slots.prompts(micro)]
            for slot, k in enumerate(schedule.k):
                if k == 4 or last is None:
                    used[prompts[micro][slot]] += 1
                else:
                    assert prompts[micro][slot] == last[slot]
        walk(slots, 1)
    assert len(used) == count and max(used.values()) - min(used.values()) <= 2


def test_a_run_with_many_numbers_of_steps_begins_amid_their_trajectories():
    """Each K, and each of its k, occurs equally often."""
    grids = [uniform(steps, PROCESS) for steps in (1, 2, 4)]
    [schedule] = stream(TDM(rollout="stream", step_set=(1, 2, 4)), grids, batch=1200).schedules
    found = Counter(zip(schedule.grid, schedule.k))
    for grid, steps in enumerate((1, 2, 4)):
        for k in range(1, steps + 1):
            assert found.pop((grid, k)) == pytest.approx(400 / steps, abs=60)
    assert not found


def test_each_number_of_steps_gets_the_same_share_of_graded_calls():
    objective = TDM(rollout="stream", step_set=(1, 2, 4))
    grids = [uniform(steps, PROCESS) for steps in objective.step_set]
    slots = stream(objective, grids, batch=64)
    calls, first, told = Counter(), Counter(), []

    def student(x_t, t, cond):
        told.append(cond[STEPS])
        return shrink(x_t, t, cond)

    student.process = PROCESS
    for step, [schedule] in enumerate(walk(slots, 150, student=student)):
        calls.update(schedule.grid)
        if step == 0:
            first.update(zip(schedule.grid, schedule.k))
    shares = [calls[grid] / (64 * 150) for grid in range(3)]
    assert shares == pytest.approx([1 / 3] * 3, abs=0.03)
    assert set(first) >= {(2, k) for k in (1, 2, 3, 4)} | {(1, 1), (1, 2), (0, 1)}
    assert {1.0, 2.0, 4.0} == set(told[-1].tolist())  # one call holds several K
    assert torch.equal(
        told[-1], torch.tensor([float(objective.step_set[g]) for g in schedule.grid])
    )


@pytest.mark.parametrize("randmid", [False, True])
@pytest.mark.parametrize("segments", ["separate", "to_terminal"])
def test_tau_lies_in_the_segment_of_each_slot_s_own_grid(segments, randmid):
    """One call contains several K: s_{k-1}, s_k and s_K belong to each sample."""
    starts = (0.9, 1.0)
    grids = [uniform(K, PROCESS, start=start) for K, start in zip((2, 4), starts)]
    objective = TDM(rollout="stream", step_set=(2, 4), segments=segments, randmid=randmid)
    slots = stream(objective, grids, batch=400)
    slots.begin(shrink, [Cond({})])
    path, schedule = slots.path(0, Cond({})), slots.schedules[0]
    x0 = shrink(path.x, path.upper, path.cond)
    draw = objective.draw(path, x0, torch.Generator().manual_seed(0), PROCESS)
    for slot, (k, grid) in enumerate(zip(schedule.k, schedule.grid)):
        times = grids[grid].times
        end = times[k] if segments == "separate" else starts[grid]
        assert times[k - 1] <= draw.s[slot] < times[k]
        assert draw.s[slot] + 0.02 - 1e-6 <= draw.tau[slot] <= end - 0.01 + 1e-6


def test_an_adversarial_method_s_turns_share_the_one_graded_call():
    """Fake, discriminator and student are updated; then the slots advance."""

    class Asked:
        def __init__(self, weight):
            self.process, self.calls = PROCESS, 0
            self.weight = torch.tensor(weight, requires_grad=True)

        def __call__(self, x_t, t, cond):
            self.calls += 1
            return self.weight * x_t

        def logits(self, x_t, t, cond):
            return self(x_t, t, cond).mean(1)

    student, fake, teacher, critic = map(Asked, (0.5, 0.6, 0.7, 0.8))
    roles = Roles(student, fake, teacher, critic.logits, lambda pick: torch.zeros(len(pick), 2))
    objective = GAN(rollout="stream")
    slots, before = stream(objective), stream(objective).schedules
    slots.begin(student, [Cond({})])
    begun = student.calls
    outcome = iterate(
        0,
        [Cond({})],
        (BATCH, 2),
        objective=objective,
        roles=roles,
        engines=dict.fromkeys(("student", "fake", "discriminator"), Still()),
        grid=GRID,
        streams=Streams(0),
        stream=slots,
    )
    assert outcome.failed is None and student.calls == begun + 1 and slots.schedules != before
