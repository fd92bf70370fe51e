"""Distances and weights compared with values computed by hand."""

import math

import pytest
import torch

from tdmvid.distill.losses import (
    distance,
    effective_sample_share,
    importance_weight,
    snr_weight,
    velocity_weight,
)


def test_importance_weights_by_hand():
    eps, eps_mix = torch.tensor([[1.0, 2.0], [3.0, 3.0]]), torch.tensor([[2.0, 1.0], [0.0, 1.0]])
    assert importance_weight(eps_mix, eps, "none").tolist() == [1.0, 1.0]
    torch.testing.assert_close(
        importance_weight(eps_mix, eps, "mean"), torch.tensor([1.0, math.exp(17 / 4)])
    )
    assert importance_weight(eps_mix, eps, "sum").tolist() == [1.0, 20.0]


def test_the_velocity_weight_makes_an_x0_error_that_of_the_velocity_at_zero_snr_too(
    vp,
):
    t = vp.snap(torch.tensor([0.5, 0.75, 1.0]))
    alpha, sigma = vp.alpha_sigma(t)
    x, x0, other = torch.randn(3, 3, 4, generator=torch.Generator().manual_seed(0))
    of_velocity = (vp.v_from_x0(x, x0, t) - vp.v_from_x0(x, other, t)).square().mean(1)
    torch.testing.assert_close(
        velocity_weight(sigma, 5.0) * (x0 - other).square().mean(1), of_velocity
    )
    assert snr_weight(alpha, sigma, 5.0)[-1] == 0 and velocity_weight(sigma, 5.0)[-1] == 1
    assert velocity_weight(torch.tensor([0.1]), 5.0).item() == 5.0


def test_snr_weight_and_effective_share_by_hand():
    assert snr_weight(
        torch.tensor([0.0, 1.0, 1.0]), torch.tensor([1.0, 1.0, 0.1]), 5.0
    ).tolist() == [0.0, 1.0, 5.0]
    assert effective_sample_share(torch.tensor([2.0, 2.0])).item() == 1.0
    assert effective_sample_share(torch.tensor([1.0, 0.0, 0.0, 0.0])).item() == 0.25


def test_the_three_distances_by_hand():
    x, target, norm = (
        torch.tensor([[3.0, 4.0], [0.0, 1.0]]),
        torch.zeros(2, 2),
        torch.tensor([2.0, 0.5]),
    )
    by_hand = {
        "l2": ((9 + 16) / 2 / 2 + 0.5 / 0.5) / 2,
        "huber": (
            (
                sum(math.hypot(d, 1e-3) - 1e-3 for d in (3, 4)) / 2 / 2
                + (math.hypot(1, 1e-3) - 1e-3) / 2 / 0.5
            )
            / 2
        ),
        "huber_vector": sum(math.hypot(d, c := 0.00054 * 2**0.5) - c for d in (5, 1)) / 2,
    }
    for kind, expected in by_hand.items():
        assert distance(x, target, norm, kind=kind, huber_c=None).item() == pytest.approx(
            expected, rel=1e-5
        )
    assert distance(
        x[:1], target[:1], norm, kind="huber_vector", huber_c=12.0
    ).item() == pytest.approx(1.0)


@pytest.mark.parametrize(
    "weight, share",
    [
        ([2.0, 2.0, 2.0], 1.0),
        ([1.0, 0.0, 0.0, 0.0], 0.25),
        ([3e-25, 1e-25], 0.8),
        ([0.0, 0.0], 0.0),
    ],
    ids=str,
)
def test_the_effective_share_is_a_number_however_small_the_weights_are(weight, share):
    assert effective_sample_share(torch.tensor(weight)).item() == pytest.approx(share)
