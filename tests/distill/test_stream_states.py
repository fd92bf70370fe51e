"""Trajectories that continue between iterations survive failures, other numbers of ranks, and
checkpoints.
"""

import pytest
import torch
from refusals import refused
from toy_world import BATCH, PROCESS, STREAM, World, shrink, stream, walk

from tdmvid.diffusion.denoiser import Cond
from tdmvid.diffusion.grid import uniform
from tdmvid.distill.dmd2 import DMD2
from tdmvid.distill.tdm import TDM

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
    """Otherwise the same state would fail again and again."""
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
    """Two ranks, one rank with two micro-batches, and two ranks again after a checkpoint of the
    one.
    """
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
    with refused("before/0", "missing"):
        stream(TDM(rollout="stream", solver="dpm++")).restore([slots.tensors(0)])


def test_turns_with_trajectories_of_their_own_have_states_of_their_own():
    """Fresh trajectories of DMD2 have the same k and prompts, but other noise."""
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
