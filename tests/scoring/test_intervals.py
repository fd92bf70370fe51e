"""Confidence intervals of paired differences and of votes."""

import pytest
import torch
from refusals import refused

from tdmvid.scoring.intervals import binomial, paired_difference


def test_a_constant_difference_has_no_interval():
    x = torch.randn(30, generator=torch.Generator().manual_seed(0))
    measure = paired_difference(x + 0.5, x)
    assert [round(end, 5) for end in (measure.value, measure.low, measure.high)] == [0.5, 0.5, 0.5]


def test_unequal_sides_are_no_pairs():
    with refused("[2]", "[3]"):
        paired_difference(torch.zeros(2), torch.zeros(3))


def test_votes_have_wilsons_interval():
    """Wilson's interval of 15 in 20, from the formula (centre +- root) / (1 + z^2 / n)."""
    wins, votes, z = 15, 20, 1.959964
    share, grow = wins / votes, 1 + z * z / votes
    half = z * (share * (1 - share) / votes + z * z / (4 * votes * votes)) ** 0.5 / grow
    centre = (share + z * z / (2 * votes)) / grow
    measure = binomial(wins, votes)
    assert (measure.value, measure.low, measure.high) == pytest.approx(
        (0.75, centre - half, centre + half), abs=1e-6
    )
    assert binomial(0, 5).low == 0 and binomial(5, 5).high == 1


@pytest.mark.parametrize("wins, votes", [(0, 0), (3, 2), (-1, 2)])
def test_impossible_votes_are_refused(wins, votes):
    with refused("votes"):
        binomial(wins, votes)
