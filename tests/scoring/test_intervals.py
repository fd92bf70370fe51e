"""Confidence intervals of paired differences and of votes."""

import math
import statistics

import pytest
import torch
from refusals import refused

from tdmvid.scoring.intervals import (
    Measure,
    binomial,
    mean_over_groups,
    mean_over_pairs,
    mean_over_samples,
    measure_of,
    paired_difference,
)


def test_a_constant_difference_has_no_interval():
    x = torch.randn(30, generator=torch.Generator().manual_seed(0))
    measure = paired_difference(x + 0.5, x)
    assert [round(end, 5) for end in (measure.value, measure.low, measure.high)] == [0.5, 0.5, 0.5]


def test_one_group_has_the_interval_of_its_values():
    shares = torch.tensor([1.0] * 20 + [0.0] * 12)
    measure = mean_over_groups(shares, torch.zeros(32, dtype=torch.long))
    sd = (0.625 * 0.375 / 32) ** 0.5
    assert measure.value == 0.625
    assert measure.high - measure.low == pytest.approx(2 * 1.96 * sd, rel=0.15)


def test_one_value_or_pair_of_groups_has_no_interval():
    """All resamples are equal, which would claim that nothing can vary."""
    assert mean_over_groups(torch.tensor([0.25]), torch.tensor([0])) == Measure(0.25)
    assert paired_difference(torch.tensor([1.0]), torch.tensor([0.5])) == Measure(0.5)
    first, second = torch.tensor([0, 1, 0, 0]), torch.tensor([1, 0, 1, 0])
    assert mean_over_pairs(torch.tensor([1.0, 2, 4, 5]), first, second) == Measure(3.0)
    first, second = torch.tensor([0, 0, 1]), torch.tensor([1, 2, 2])
    assert mean_over_pairs(torch.tensor([1.0, 2, 3]), first, second).interval == (1, 3)


def test_a_measure_is_shown_with_its_interval_if_it_has_one():
    shown = [one.text(".1f", scale=100, unit=" %") for one in (Measure(0.5), Measure(0.5, 0.4, 1))]
    assert shown == ["50.0 %", "50.0 % [40.0, 100.0]"]


@pytest.mark.parametrize("ends", [{}, {"low": None, "high": None}])
def test_a_stored_measure_may_lack_an_interval(ends):
    assert measure_of({"value": 0.5} | ends) == Measure(0.5)
    assert measure_of({"value": 0.5, "low": 0.4, "high": 0.6}) == Measure(0.5, 0.4, 0.6)


def test_samples_of_one_group_have_the_standard_error_of_their_mean():
    values = torch.tensor([1.0, 2.0, 4.0])
    measure = mean_over_samples(values, torch.zeros(3, dtype=torch.long))
    half = 1.96 * statistics.stdev(values.tolist()) / 3**0.5
    assert measure.value == pytest.approx(7 / 3)
    assert (measure.low, measure.high) == pytest.approx((7 / 3 - half, 7 / 3 + half))


def test_the_interval_over_samples_covers_the_mean_of_fixed_groups_and_ignores_their_spread():
    generator, covered = torch.Generator().manual_seed(0), 0
    levels, sizes = torch.linspace(-3, 3, 13), torch.arange(13) % 3 + 8
    group = torch.arange(13).repeat_interleave(sizes)
    truth = levels[group].mean().item()
    for _ in range(300):
        values = levels[group] + torch.randn(len(group), generator=generator)
        measure, over_groups = mean_over_samples(values, group), mean_over_groups(values, group)
        covered += measure.low <= truth <= measure.high
        assert measure.value == pytest.approx(over_groups.value)
        assert 3 * (measure.high - measure.low) < over_groups.high - over_groups.low
    assert 0.92 <= covered / 300 <= 0.98


def test_a_group_of_one_sample_has_no_interval_over_samples():
    with refused("1 values"):
        mean_over_samples(torch.zeros(3), torch.tensor([0, 0, 1]))


def test_pairs_across_groups_vary_with_the_groups_on_both_sides():
    """The mean distance of independent prompts: its interval covers the truth about as often as it
    says, although each prompt is in many pairs.
    """
    generator, groups, covered, widths, found = torch.Generator().manual_seed(0), 12, 0, [], []
    first, second = torch.ones(groups, groups).triu(1).nonzero().unbind(1)
    truth = 2 / math.pi**0.5  # E |x - y| of two standard normal numbers
    for _ in range(200):
        x = torch.randn(groups, generator=generator)
        measure = mean_over_pairs((x[first] - x[second]).abs(), first, second)
        covered += measure.low <= truth <= measure.high
        widths.append(measure.high - measure.low)
        found.append(measure.value)
    spread = statistics.stdev(found)
    assert covered / 200 > 0.85
    assert statistics.mean(widths) == pytest.approx(2 * 1.96 * spread, rel=0.2)


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
