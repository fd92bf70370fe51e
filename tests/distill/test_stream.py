"""Trajectories that go on from iteration to iteration: where they stand, what they cost, and that
neither ranks nor failures lose them.
"""

from collections import Counter
from dataclasses import replace

import pytest
import torch
from refusals import refused
from toy_world import BATCH, GRID, PROCESS, World

from tdmvid.data.prompts import PromptOrder
from tdmvid.diffusion.denoiser import STEPS, Cond
from tdmvid.diffusion.grid import uniform
from tdmvid.diffusion.sampler import sample
from tdmvid.distill.dmd2 import DMD2
from tdmvid.distill.stream import Stream
from tdmvid.distill.tdm import TDM
from tdmvid.parallel.rng import Streams

STREAM = TDM(rollout="stream")


def stream(objective=STREAM, grids=(GRID,), *, batch=BATCH, **layout):
    return Stream(objective, grids, Streams(0), (batch, 2), **layout)


def shrink(x_t, t, cond):
    """A student that is no linear function of time alone."""
    return x_t * (0.3 + 0.5 * t[:, None]) + 0.1


shrink.process = PROCESS


def walk(slots, iterations, *, student=shrink, on=True):
    """Iterations without turns; the schedules before each."""
    seen = []
    conds = [Cond({})] * len(slots.schedules)
    slots.begin(student, conds)
    for step in range(iterations):
        seen.append(list(slots.schedules))
        predictions = []
        for micro, cond in enumerate(conds):
            paths = [slots.path(micro, cond, number) for number in slots.numbers]
            predictions.append([student(path.x, path.upper, path.cond) for path in paths])
        finite = slots.move(step, predictions, PROCESS, on=on)
        slots.settle(finite.tolist(), on=on)
    return seen


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
    """As sequential ones do whose fake stands still."""
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
    """The move of one rank's two micro-batches is the mean of the moves of two ranks."""
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
    """alpha x0 + sigma eps with eps normal and not that of the start."""
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
    """In each iteration where the batch is a multiple of K, else over at most K of them."""
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
    """Each K as often, and each of its k."""
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


# Failures


@pytest.mark.parametrize("role", ["fake", "student"])
def test_a_turn_that_is_skipped_leaves_its_slots_where_they_are(role):
    class Bad(TDM):
        bad = False

        def loss(self, which, *args):
            terms = super().loss(which, *args)
            spoilt = Bad.bad and which == role
            return terms | {"loss": terms["loss"] * float("nan")} if spoilt else terms

    world = World(Bad(rollout="stream"))
    world.iterate(0)
    state, schedule = world.stream.states[0], world.stream.schedules[0]
    Bad.bad = True
    assert world.iterate(1).failed == role
    assert torch.equal(world.stream.states[0].sets[0], state.sets[0])
    assert world.stream.schedules[0] == schedule
    Bad.bad = False
    assert world.iterate(2).failed is None
    assert world.stream.schedules[0] != schedule


def test_a_slot_whose_state_is_not_finite_starts_again_from_noise_with_its_prompt():
    slots = stream()
    walk(slots, 3)
    path, before = slots.path(0, Cond({})), slots.schedules[0]
    x0 = shrink(path.x, path.upper, path.cond)
    going = next(slot for slot, k in enumerate(before.k) if k == 3)
    x0[going] = float("inf")
    finite = slots.move(3, [[x0]], PROCESS, on=True)
    slots.settle(finite.tolist(), on=True)
    state, after = slots.states[0], slots.schedules[0]
    assert finite[0].tolist() == [slot != going for slot in range(BATCH)]
    assert after.k[going] == 4 and after.starts == [
        start + (k == 1) for start, k in zip(before.starts, before.k)
    ]
    assert state.k.tolist() == after.k and state.sets[0].isfinite().all()
    assert [k for slot, k in enumerate(after.k) if slot != going] == [
        k - 1 or 4 for slot, k in enumerate(before.k) if slot != going
    ]


def test_where_a_prediction_fails_the_iteration_the_others_stay():
    """Or the same state would fail it again and again."""
    slots = stream()
    walk(slots, 3)
    path, before, x = slots.path(0, Cond({})), slots.schedules[0], slots.states[0].sets[0]
    x0 = shrink(path.x, path.upper, path.cond)
    x0[2] = float("nan")
    slots.settle(slots.move(3, [[x0]], PROCESS, on=False).tolist(), on=False)
    state, after = slots.states[0], slots.schedules[0]
    others = [slot for slot in range(BATCH) if slot != 2]
    assert torch.equal(state.sets[0][others], x[others]) and state.sets[0].isfinite().all()
    assert not torch.equal(state.sets[0][2], x[2]) and after.k[2] == state.k[2] == 4
    assert [after.k[slot] for slot in others] == [before.k[slot] for slot in others]


# Layouts and checkpoints


@pytest.mark.parametrize(
    "objective, steps",
    [
        (STREAM, (4,)),
        (TDM(rollout="stream", stagger="none", solver="dpm++"), (4,)),
        (TDM(rollout="stream", step_set=(2, 4)), (2, 4)),
        (TDM(rollout="stream", solver="renoise"), (4,)),
    ],
)
def test_another_number_of_ranks_goes_on_with_the_same_trajectories(objective, steps):
    """Two ranks, one rank of two micro-batches, and two again after a checkpoint of the one."""
    grids = [uniform(K, PROCESS) for K in steps]
    whole = stream(objective, grids, micros=2)
    parts = [stream(objective, grids, first_stream=rank, total_micros=2) for rank in (0, 1)]
    for rank, part in enumerate(parts):
        walk(part, 5)
        if rank == 0:
            walk(whole, 5)
        assert part.schedules == whole.schedules[rank : rank + 1]
        assert part.prompts(0) == whole.prompts(rank)
        assert torch.equal(part.states[0].sets[0], whole.states[rank].sets[0])
    for rank in (0, 1):
        again = stream(objective, grids, first_stream=rank, total_micros=2)
        again.restore([whole.tensors(rank)])
        walk(again, 5), walk(parts[rank], 5)
        assert again.schedules == parts[rank].schedules
        assert torch.equal(again.states[0].sets[0], parts[rank].states[0].sets[0])


def test_states_of_another_shape_or_solver_are_refused():
    slots = stream()
    walk(slots, 2)
    with refused("x/0", "(8, 2)", "(4, 2)"):
        stream(batch=4).restore(
            [
                {
                    **slots.tensors(0),
                    "k": torch.ones(4),
                    "grid": torch.ones(4),
                    "starts": torch.ones(4),
                }
            ]
        )
    with refused("before/0", "not there"):
        stream(TDM(rollout="stream", solver="dpm++")).restore([slots.tensors(0)])


def test_turns_with_trajectories_of_their_own_have_states_of_their_own():
    """DMD2's fresh ones: the same k and prompts, other noise."""
    objective = DMD2(rollout="stream", fake_updates=3)
    world = World(objective, stream=stream(objective))
    world.stream.begin(world.roles.student, [Cond({})])
    assert world.forwards() == 3 * 3
    for step in range(6):
        before = world.forwards()
        assert world.iterate(step).failed is None
        assert world.forwards() - before == 2 * 2 + 5  # student and fake of the two other sets
    a, b, c = world.stream.states[0].sets
    assert not (torch.isclose(a, b).any() or torch.isclose(b, c).any())


@pytest.mark.parametrize(
    "change, setting",
    [
        ({"stagger": "none"}, "objective.stagger='none'"),
        ({"updates": "joint", "fake_updates": 2}, "objective.updates='joint'"),
    ],
)
def test_what_has_no_effect_is_refused(change, setting):
    with refused(setting):
        TDM(**change)
