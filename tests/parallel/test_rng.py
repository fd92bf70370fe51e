"""Random numbers depend only on (seed, step, name, stream)."""

import pytest
import torch

from tdmvid.parallel.rng import Streams


def draw(seed=0, step=3, name="z", stream=0):
    return torch.randn(8, generator=Streams(seed).generator(step, name, stream))


def test_the_same_key_gives_the_same_numbers_whatever_was_drawn_before():
    first = draw()
    torch.manual_seed(99)
    torch.randn(5)
    assert torch.equal(draw(), first)


@pytest.mark.parametrize("change", [{"seed": 1}, {"step": 4}, {"name": "k"}, {"stream": 1}])
def test_any_other_key_gives_other_numbers(change):
    assert not torch.isclose(draw(**change), draw()).any()


def test_keys_that_read_alike_do_not_collide():
    assert not torch.equal(draw(seed=1, step=12), draw(seed=11, step=2))
    assert not torch.equal(draw(name="fake/1", stream=1), draw(name="fake/11", stream=1))


def test_the_global_generator_is_not_touched():
    before = torch.get_rng_state()
    draw()
    assert torch.equal(torch.get_rng_state(), before)


def test_numbers_do_not_change_from_release_to_release():
    assert torch.randint(0, 1000, (4,), generator=Streams(7).generator(1, "k")).tolist() == [
        663,
        406,
        854,
        409,
    ]
