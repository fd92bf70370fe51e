"""A sample without a reward gets the mean of the global batch."""

import math
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from refusals import refused

from tdmvid.config import RewardConfig
from tdmvid.rewards import GlobalMeans, Scorer


def scorers(count=1, failed=1):
    made = [Scorer(RewardConfig(function="motion", on_failure="mean")) for _ in range(count)]
    for scorer in made:
        scorer.failed, scorer.error = failed, "no such weights"
    return made


def rewards(*rows):
    return torch.tensor(rows, dtype=torch.float64)


def on_two_ranks(batches):
    """Fill the batches of two ranks together; a batch is a list of micro-batches."""
    met, passed = threading.Barrier(2, timeout=30), [{}, {}]

    def work(rank):
        def over_ranks(scalars):
            passed[rank] = scalars
            met.wait()
            found = {name: (passed[0][name] + passed[1][name]) / 2 for name in scalars}
            met.wait()
            return found

        means = GlobalMeans(scorers(), over_ranks)
        return [means.fill(each) for each in batches[rank]]

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(work, range(2)))


def test_ranks_fill_with_the_mean_of_the_global_batch():
    gap = rewards([math.nan])
    first, second = on_two_ranks(
        [
            [[rewards([1.0], [2.0]), gap], [gap]],
            [[rewards([6.0]), rewards([7.0])], [gap]],
        ]
    )
    assert first[0][1].tolist() == [[4.0]] and second[0][0].tolist() == [[6.0]]
    assert first[1][0].tolist() == second[1][0].tolist() == [[4.0]], "the last mean is kept"


def test_each_reward_has_its_own_mean_and_a_batch_may_be_empty():
    means = GlobalMeans(scorers(2), dict)
    [found] = means.fill([rewards([1.0, math.nan], [3.0, 5.0])])
    assert found.tolist() == [[1.0, 5.0], [3.0, 5.0]]
    assert means.fill([torch.zeros(0, 2).double()])[0].shape == (0, 2)
    assert means.values == [2.0, 5.0]


def test_ranks_stop_together_where_no_sample_has_been_scored_yet():
    """A rank without any sample stops too; otherwise it would wait for the others."""
    none = torch.zeros(0, 1).double()
    with refused("rewards.function='motion'", "no such weights") as caught:
        on_two_ranks([[[none]], [[rewards([math.nan])]]])
    assert "on_failure" not in str(caught.value)


def test_samples_that_are_not_finite_are_no_failure_of_the_reward():
    [found] = GlobalMeans(scorers(failed=0), dict).fill([rewards([math.nan])])
    assert found.tolist() == [[0.0]]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_sample_that_is_not_finite_waits_for_the_mean(value):
    found = Scorer(RewardConfig(function=f"{__name__}:gives", on_failure="mean"))
    gives.value = value
    assert found(torch.zeros(2, 3, 1, 2, 2), ["", ""]).isnan().tolist() == [False, True]
    assert found.failed == 1


def gives(samples, prompts):
    return [1.0, gives.value]
