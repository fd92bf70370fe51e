"""The draw of TDM: the range of tau, and the parts of x_tau."""

import pytest
import torch
from gaussians import NULL, generator, mixed_k, path_at

from tdmvid.diffusion.grid import uniform
from tdmvid.diffusion.process import RectifiedFlow
from tdmvid.diffusion.sampler import Trajectory, rollout
from tdmvid.distill.dmd2 import DMD2
from tdmvid.distill.tdm import TDM


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"randmid": True},
        {"segments": "to_terminal"},
        {"randmid": True, "segments": "to_terminal"},
        {"margin_low": 0.0, "margin_high": 0.0},
    ],
    ids=str,
)
def test_x_tau_is_alpha_x0_hat_plus_sigma_eps_mix(process, options):
    path = path_at(process, mixed_k())
    x0_hat = 0.5 * path.x + 0.3
    draw = TDM(**options).draw(path, x0_hat, generator(1), process)
    alpha, sigma = process.levels(draw.tau, x0_hat)
    torch.testing.assert_close(
        alpha * x0_hat + sigma * draw.eps_mix, draw.x_tau, atol=2e-5, rtol=1e-5
    )


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_x_tau_is_the_next_state_carried_on_by_fresh_noise(process, k):
    path = path_at(process, k)
    x0_hat = 0.5 * path.x + 0.3
    draw = TDM().draw(path, x0_hat, generator(1), process)
    next_state = process.noise(x0_hat, process.eps_from_x0(path.x, x0_hat, path.upper), path.lower)
    assert torch.equal(draw.s, path.lower)
    torch.testing.assert_close(
        draw.x_tau, process.renoise(next_state, draw.eps, path.lower, draw.tau)
    )
    assert (draw.beta - process.bridge(draw.s, draw.tau)[1]).abs().max() == 0


def test_tau_stays_in_its_segment_and_off_its_ends(process):
    path = path_at(process, mixed_k(40_000))
    tau = TDM(margin_low=0.03, margin_high=0.02).draw(path, path.x, generator(1), process).tau
    assert (tau - path.lower).min() >= 0.03 - 1e-6 and (path.upper - tau).min() >= 0.02 - 1e-6
    relative = tau - path.lower
    assert relative.min() < 0.032 and relative.max() > 0.228  # and it fills what is left of 0.25
    assert relative.mean().item() == pytest.approx((0.03 + 0.23) / 2, abs=0.002)


def test_to_terminal_reaches_beyond_the_segment_up_to_the_end(process):
    path = path_at(process, 1, batch=20_000)
    tau = TDM(segments="to_terminal").draw(path, path.x, generator(1), process).tau
    assert tau.min() < 0.03 and tau.max() > 0.98 and tau.max() <= 0.99 + 1e-6
    assert tau.mean().item() == pytest.approx((0.02 + 0.99) / 2, abs=0.01)


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_to_terminal_ends_where_a_later_start_of_the_trajectory_is(process, k):
    grid = uniform(4, process, start=0.9)

    def nothing(x_t, t, cond):
        return torch.zeros_like(x_t)

    nothing.process = process
    z = torch.randn(20_000, 2, generator=generator(2))
    path = rollout(nothing, z, NULL, grid, torch.full((20_000,), k), calls=4 - k)
    draw = TDM(segments="to_terminal").draw(path, path.x, generator(1), process)
    assert draw.tau.max() <= 0.89 + 1e-6 and draw.tau.max() > 0.885
    assert (draw.tau - path.lower).min() >= 0.02 - 1e-6
    separate = TDM().draw(path, path.x, generator(1), process)
    assert (separate.tau <= path.upper - 0.01 + 1e-6).all()
    anywhere = DMD2().draw(path, path.x, generator(1), process)
    assert anywhere.tau.max() > 0.975  # a clean prediction may be noised to any time


@pytest.mark.parametrize("margin_low, margin_high", [(0.02, 0.01), (0.05, 0.0), (0.0, 0.1)])
def test_randmid_starts_anywhere_in_the_segment_that_leaves_tau_its_margins(
    process, margin_low, margin_high
):
    path = path_at(process, mixed_k(40_000))
    objective = TDM(randmid=True, margin_low=margin_low, margin_high=margin_high)
    draw = objective.draw(path, path.x, generator(1), process)
    into, last = draw.s - path.lower, 0.25 - margin_low - margin_high
    assert 0 <= into.min() < 0.002 and last - 0.003 < into.max() <= last + 1e-6
    assert into.mean().item() == pytest.approx(last / 2, abs=0.002)
    assert (draw.tau - draw.s).min() >= margin_low - 1e-5
    assert (path.upper - draw.tau).min() >= margin_high - 1e-5


def test_randmid_to_the_terminal_keeps_to_the_margin_there(process):
    path = path_at(process, mixed_k(40_000))
    objective = TDM(randmid=True, segments="to_terminal")
    draw = objective.draw(path, path.x, generator(1), process)
    assert (draw.tau - draw.s).min() >= 0.02 - 1e-5 and draw.tau.max() <= 0.99 + 1e-6
    assert (draw.s <= path.upper - 0.02 + 1e-6).all()


@pytest.mark.parametrize("segments", ["separate", "to_terminal"])
def test_where_the_draw_starts_says_nothing_of_where_in_the_rest_tau_lies(process, segments):
    path = path_at(process, 2, batch=20_000)
    objective = TDM(randmid=True, segments=segments)
    draw = objective.draw(path, path.x, generator(1), process)
    high = (path.upper if segments == "separate" else 1.0) - 0.01
    left = high - draw.s - 0.02
    roomy = left > 0.05  # where a table's rounding moves the place by little
    place = ((draw.tau - draw.s - 0.02) / left)[roomy]
    assert abs(torch.corrcoef(torch.stack([place, draw.s[roomy]]))[0, 1]) < 0.05
    assert place.mean().item() == pytest.approx(0.5, abs=0.02)


def test_a_table_s_tau_is_one_of_its_entries(vp):
    tau = TDM().draw(path_at(vp, mixed_k()), torch.zeros(4096, 3), generator(1), vp).tau
    assert torch.equal(tau, vp.snap(tau)) and len(tau.unique()) > 500


def test_fresh_noise_keeps_draws_off_the_clean_end(process):
    path = path_at(process, mixed_k(40_000))
    draw = TDM(fresh_noise=0.3).draw(path, path.x, generator(1), process)
    first = path.k == 1
    if process.resolution:  # a flow's first segment ends at sigma = 0.25: it is drawn there
        assert 0.298 <= draw.beta[first].min() < 0.31
    else:
        assert torch.equal(draw.tau[first], path.upper[first])
    assert draw.beta[~first].min() >= 0.298
    plain = TDM().draw(path, path.x, generator(1), process)
    enough = plain.beta >= 0.3
    assert not enough.all() and (draw.tau >= plain.tau - 1e-3).all()


@pytest.mark.parametrize("options", [{"match": "clean"}, {"solver": "renoise"}], ids=str)
def test_all_noise_of_a_noised_prediction_is_fresh(process, options):
    """The level limits sigma itself, and a segment above it is drawn completely."""
    path = path_at(process, mixed_k(40_000))
    draw = TDM(fresh_noise=0.4, **options).draw(path, path.x, generator(1), process)
    sigma = process.alpha_sigma(draw.tau)[1]
    torch.testing.assert_close(draw.beta, sigma)
    reached = process.alpha_sigma(path.upper - 0.01)[1] >= 0.4
    assert sigma[reached].min() >= 0.398
    whole = process.alpha_sigma(path.lower + 0.02)[1] >= 0.4
    assert whole.any() and (draw.tau - path.lower)[whole].min() < 0.022


@pytest.mark.parametrize("length", [0.04, 0.02, 0.006])
@pytest.mark.parametrize("upper", [0.5, 1.0])
def test_margins_leave_half_of_a_short_segment(length, upper):
    """Margins of 0.02 and 0.01 are two thirds and one third of the other half."""
    count, process = 4000, RectifiedFlow()
    x, ones = torch.randn(count, 2, generator=generator(0)), torch.ones(count)
    path = Trajectory(x, ones.long(), (upper - length) * ones, upper * ones, NULL)
    draw = TDM().draw(path, path.x, generator(1), process)
    place = (draw.tau - path.lower) / length
    assert place.min().item() == pytest.approx(1 / 3, abs=0.01)
    assert place.max().item() == pytest.approx(5 / 6, abs=0.01)
    assert (draw.slope > 0).all(), "x_tau depends on the student"


def test_no_margin_still_leaves_room_for_noise(process):
    path = path_at(process, mixed_k(40_000))
    draw = TDM(margin_low=0.0, margin_high=0.0, randmid=True, fake_target="exact").draw(
        path, path.x, generator(1), process
    )
    assert (draw.beta > 0).all() and draw.x_tau.isfinite().all() and draw.eps_mix.isfinite().all()


def test_the_same_generator_gives_the_same_draw_and_x_tau_is_detached(process):
    path = path_at(process, 2)
    x0_hat = path.x.clone().requires_grad_() * 1.0
    a, b = (TDM().draw(path, x0_hat, generator(5), process) for _ in range(2))
    assert torch.equal(a.x_tau, b.x_tau) and torch.equal(a.tau, b.tau)
    assert a.x0_hat.requires_grad and not (a.x_tau.requires_grad or a.eps_mix.requires_grad)
