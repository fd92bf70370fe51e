"""Time grids, and the error messages of invalid ones."""

import pytest
import torch
from refusals import refused

from tdmvid.diffusion.grid import TimeGrid, explicit, shifted, uniform
from tdmvid.diffusion.process import RectifiedFlow


def timesteps(grid, process):
    return process.timestep(torch.tensor(grid.descending())).tolist()


def test_uniform_steps_are_those_of_the_paper(vp):
    assert timesteps(uniform(4, vp), vp) == [999, 749, 499, 249]
    assert timesteps(uniform(1, vp), vp) == [999]
    assert uniform(4, RectifiedFlow()).times == (0.0, 0.25, 0.5, 0.75, 1.0)


def test_shift_2_gives_the_steps_of_the_released_lora(vp):
    assert timesteps(shifted(4, 2.0, vp), vp) == [999, 856, 665, 399]


def test_a_flow_shift_is_not_rounded():
    assert shifted(4, 3.0, RectifiedFlow()).times == pytest.approx((0, 0.5, 0.75, 0.9, 1.0))


def test_the_released_demo_s_start_is_reachable(vp):
    assert timesteps(uniform(4, vp, start=0.9), vp) == [899, 674, 449, 224]


@pytest.mark.parametrize("steps", [[999], [999, 856, 665, 399], [899, 10, 0]])
def test_explicit_timesteps_come_back(vp, steps):
    assert timesteps(explicit(steps, vp), vp) == steps


def test_explicit_timesteps_of_a_flow_come_back():
    assert timesteps(explicit([1000.0, 750.5, 12.0], RectifiedFlow()), RectifiedFlow()) == [
        1000.0,
        750.5,
        12.0,
    ]


def test_descending_lists_the_calls_in_order():
    grid = TimeGrid((0.0, 0.3, 0.8))
    assert grid.descending() == (0.8, 0.3) and grid.steps == 2
    assert torch.equal(grid.tensor(), torch.tensor([0.0, 0.3, 0.8]))


@pytest.mark.parametrize(
    "make, facts",
    [
        (lambda p: uniform(0, p), ("grid.steps=0",)),
        (lambda p: shifted(4, 0.0, p), ("grid.shift=0.0",)),
        (lambda p: shifted(4, -2.0, p), ("grid.shift=-2.0",)),
        (lambda p: uniform(4, p, start=0.0), ("grid.start=0.0", "(0, 1]")),
        (lambda p: uniform(4, p, start=1.1), ("grid.start=1.1", "(0, 1]")),
        (lambda p: uniform(2000, p), ("grid.steps=2000",)),
        (lambda p: shifted(4, 1e-4, p), ("grid.shift=0.0001",)),
        (lambda p: explicit([], p), ("grid.timesteps=[]",)),
        (lambda p: explicit([399, 665], p), ("grid.timesteps=[399, 665]",)),
        (lambda p: explicit([999, 999], p), ("grid.timesteps=[999, 999]",)),
        (lambda p: explicit([1000, 500], p), ("grid.timesteps=[1000, 500]", "999")),
        (lambda p: explicit([999, -1], p), ("grid.timesteps=[999, -1]", "999")),
        (lambda p: explicit([999, 500.5], p), ("grid.timesteps=[999, 500.5]",)),
        (lambda p: TimeGrid((0.1, 1.0)), ("(0.1, 1.0)",)),
        (lambda p: TimeGrid((0.0, 0.6, 0.5)), ("(0.0, 0.6, 0.5)",)),
    ],
)
def test_a_bad_grid_is_refused_with_its_value(vp, make, facts):
    with refused(*facts) as caught:
        make(vp)
    assert len(str(caught.value)) < 300


def test_a_flow_s_bad_timesteps_name_its_own_range():
    with refused("[1000, 0]", "1000"):
        explicit([1000, 0], RectifiedFlow())


def test_a_flow_s_shifted_grid_starts_at_one_whatever_the_shift():
    assert all(
        shifted(4, shift, RectifiedFlow()).times[-1] == 1
        for shift in (0.1, 0.2, 0.3, 0.7, 3.0, 6.0)
    )
