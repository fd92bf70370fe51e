"""A teacher with two experts: an iteration calls student, fake and teacher on one side of the
boundary.
"""

from dataclasses import replace

import pytest
import torch
from refusals import refused
from test_trajectories import Recorder, recorded
from toy_world import PROCESS, Still, stream

from tdmvid.config import GridConfig
from tdmvid.diffusion.denoiser import Cond, Guided
from tdmvid.diffusion.grid import TimeGrid
from tdmvid.diffusion.guidance import GuidanceSchedule
from tdmvid.distill.grids import build_grid, build_grids
from tdmvid.distill.iteration import iterate
from tdmvid.distill.objective import Roles
from tdmvid.distill.tdm import TDM
from tdmvid.distill.trajectories import Place, pick_k
from tdmvid.parallel.rng import Streams

BOUNDARY = 0.875
GRID = build_grid(GridConfig(kind="shifted", shift=6.94), PROCESS, BOUNDARY)


def sides(times):
    return {bool(side) for t in times for side in (t >= BOUNDARY)}


def test_the_ready_shift_puts_the_second_time_just_below_the_boundary():
    assert [round(1000 * t) for t in GRID.descending()] == [1000, 954, 874, 698]
    assert GRID.sides() == [[1, 2], [3, 4]] and GRID.floors()[2:4].tolist() == [0, BOUNDARY]


@pytest.mark.parametrize(
    "grid, name, remedy",
    [
        (GridConfig(kind="shifted", shift=12.0), "grid.shift=12.0", "20.81 or 6.94 or 2.31"),
        (GridConfig(kind="shifted", shift=5.0), "grid.shift=5.0", "6.94"),
        (GridConfig(kind="shifted", shift=900.0), "grid.shift=900.0", "6.94"),
        (GridConfig(kind="shifted", start=0.9), "grid.shift=1.0", "23.89 or 8.48 or 3.34"),
        (GridConfig(steps=1), "grid.shift=1.0", "at least 2"),
        (GridConfig(kind="explicit", timesteps=(1000, 900)), "grid.timesteps", "874"),
    ],
)
def test_a_grid_without_a_time_just_below_the_boundary_is_refused(grid, name, remedy):
    with refused(name, "875", remedy):
        build_grid(grid, PROCESS, BOUNDARY)


def test_the_suggested_shifts_are_few_and_allowed():
    for steps in (9, 20, 1000):
        with pytest.raises(ValueError) as caught:
            build_grid(GridConfig(kind="shifted", steps=steps, shift=0.001), PROCESS, BOUNDARY)
        suggested = str(caught.value).rpartition("grid.shift=")[2].split(" or ")
        assert 1 <= len(suggested) <= 3 and all(0 < float(one) <= 1000 for one in suggested)


def test_a_set_of_step_counts_needs_such_a_time_in_each_grid():
    config = GridConfig(kind="shifted", shift=6.94)
    assert len(build_grids(config, PROCESS, (2, 4, 8), BOUNDARY)) == 3
    with refused("grid.shift", "875", "step_set=[3, 4]"):
        build_grids(config, PROCESS, (3, 4), BOUNDARY)


@pytest.mark.parametrize("start", [1.0, 0.8])
@pytest.mark.parametrize("step_set", [(4,), (2, 4, 8), (3, 6)])
def test_a_suggested_shift_suits_the_start_and_every_grid_of_the_set(start, step_set):
    config = GridConfig(steps=step_set[-1], kind="shifted", shift=30.0, start=start)
    with pytest.raises(ValueError) as caught:
        build_grids(config, PROCESS, step_set, BOUNDARY)
    suggested = str(caught.value).rpartition("grid.shift=")[2].split(" or ")
    assert len(suggested) == step_set[0] - 1
    for shift in suggested:
        build_grids(replace(config, shift=float(shift)), PROCESS, step_set, BOUNDARY)


@pytest.mark.parametrize("rollout", ["stop", "full"])
def test_an_iteration_draws_steps_of_one_side_and_each_step_as_often(rollout):
    counts = torch.zeros(5)
    for step in range(400):
        places = [Place(step, micro, micro, number) for micro in range(2) for number in range(2)]
        k = torch.cat([pick_k(at, TDM(rollout=rollout), GRID, 4, Streams(0)) for at in places])
        assert len({int(each) in (1, 2) for each in k}) == 1
        counts += torch.bincount(k[:1], minlength=5)
    assert (counts[1:] - 100).abs().max() < 5 * (400 * 0.25 * 0.75) ** 0.5


@pytest.mark.parametrize(
    "options", [{}, {"margin_low": 0.0, "margin_high": 0.0}, {"randmid": True}]
)
@pytest.mark.parametrize("rollout", ["stop", "full"])
def test_student_fake_and_teacher_are_asked_on_one_side(rollout, options):
    seen = set()
    for step in range(12):
        student, fake, teacher, _ = recorded(
            TDM(rollout=rollout, **options), step=step, grid=GRID, micros=2, shape=(64, 2)
        )
        both = sides([student.times[-1], *fake.times, *teacher.times])
        assert len(both) == 1
        seen |= both
    assert seen == {True, False}


def test_the_slots_of_a_stream_stay_together_also_after_an_iteration_that_failed():
    objective = TDM(rollout="stream", stagger="none")
    networks = [Recorder(weight) for weight in (0.5, 0.6, 0.7)]
    slots, walked = stream(objective, [GRID]), []
    for step in range(10):
        for network in networks:
            network.times.clear()
        engine = Failing() if step == 5 else Still()
        iterate(
            step,
            [Cond({})],
            (8, 2),
            objective=objective,
            roles=Roles(*networks),
            engines=dict.fromkeys(("student", "fake"), engine),
            grid=GRID,
            streams=Streams(0),
            stream=slots,
        )
        assert len(sides(t for network in networks for t in network.times)) == 1
        [k] = set(slots.schedules[0].k)
        walked.append(k)
    assert walked == [3, 2, 1, 4, 3, 4, 3, 2, 1, 4]


class Failing(Still):
    """Engine with a gradient that is not finite."""

    def step(self, *, skip=False):
        return replace(super().step(skip=skip), applied=False)


def test_guidance_is_that_of_the_expert_of_each_time():
    def conditional(x_t, t, cond):
        return x_t * cond["x"]

    conditional.process = PROCESS
    null, ones = Cond({"x": torch.zeros(1, 1)}), torch.ones(2, 1)
    guided = Guided(conditional, null, 4.0, GuidanceSchedule(boundary=BOUNDARY, second=3.0))
    out = guided(ones, torch.tensor([BOUNDARY, 0.874]), Cond({"x": ones}))
    assert out.flatten().tolist() == [4.0, 3.0]


def test_a_grid_of_one_network_has_no_sides():
    plain = TimeGrid(GRID.times)
    assert plain.sides() == [[1, 2, 3, 4]] and not plain.floors().any()
