"""Conversions and forward distribution of both processes, at every noise level."""

import pytest
import torch
from closeness import assert_near
from tiny import cogvideox_scheduler

from tdmvid.diffusion.process import RectifiedFlow, TabulatedVP, broadcast


def every_time(process, *, noisy=True):
    """Return all times of a table, or 1,000 times of a flow; without t = 0 if `noisy`."""
    return torch.arange(1 if noisy else 0, 1001) / 1000


def batch(times, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(len(times), 3, 4, generator=generator), torch.randn(
        len(times), 3, 4, generator=generator
    )


def test_the_table_starts_clean_and_ends_at_pure_noise(vp):
    alpha, sigma = vp.alpha_sigma(torch.tensor([0.0, 1.0]))
    assert alpha.tolist() == [1.0, 0.0] and sigma.tolist() == [0.0, 1.0]


def test_the_table_is_the_scheduler_s(vp):
    table = cogvideox_scheduler().alphas_cumprod
    alpha, sigma = vp.alpha_sigma(every_time(vp))
    torch.testing.assert_close(alpha.double().square(), table, atol=1e-7, rtol=1e-6)
    torch.testing.assert_close(sigma.double().square(), 1 - table, atol=1e-7, rtol=1e-6)


def test_alpha_falls_and_sigma_rises(process):
    alpha, sigma = process.alpha_sigma(every_time(process, noisy=False))
    assert (alpha.diff() < 0).all() and (sigma.diff() >= 0).all()


def test_eps_comes_back_from_x0_at_every_time(process):
    t = every_time(process)
    x0, eps = batch(t)
    _, sigma = process.alpha_sigma(t)
    error = (process.eps_from_x0(process.noise(x0, eps, t), x0, t) - eps).abs()
    assert (
        error <= 1e-6 / broadcast(sigma, x0) + 1e-6
    ).all()  # float32 rounding, amplified by 1 / sigma


def test_x0_comes_back_from_eps_wherever_alpha_is_positive(process):
    t = every_time(process)[:-1]
    x0, eps = batch(t)
    alpha, _ = process.alpha_sigma(t)
    error = (process.x0_from_eps(process.noise(x0, eps, t), eps, t) - x0).abs()
    assert (error <= 1e-6 / broadcast(alpha, x0) + 1e-6).all()


def test_x0_comes_back_from_v_at_every_time_with_alpha_zero(vp):
    t = every_time(vp)
    x0, eps = batch(t)
    alpha, sigma = vp.levels(t, x0)
    v = alpha * eps - sigma * x0
    assert_near(vp.x0_from_v(vp.noise(x0, eps, t), v, t), x0, rel=2e-6)


def test_v_from_x0_is_the_inverse_of_x0_from_v(vp):
    t = every_time(vp)[20:]
    x_t, x0 = batch(t)
    assert_near(vp.x0_from_v(x_t, vp.v_from_x0(x_t, x0, t), t), x0, rel=1e-5)


def test_x0_comes_back_from_the_velocity_at_every_time():
    flow, t = RectifiedFlow(), every_time(None)
    x0, eps = batch(t)
    x_t = flow.noise(x0, eps, t)
    assert_near(flow.x0_from_velocity(x_t, eps - x0, t), x0, rel=2e-6)
    t, x0, eps, x_t = t[20:], x0[20:], eps[20:], x_t[20:]
    assert_near(flow.velocity_from_x0(x_t, x0, t), eps - x0, rel=1e-4)


@pytest.mark.parametrize("s, t", [(0.0, 0.3), (0.2, 0.21), (0.25, 0.75), (0.749, 1.0), (0.4, 0.4)])
def test_noise_to_s_then_renoise_to_t_is_the_law_of_t(process, s, t):
    s, t = torch.tensor([s]), torch.tensor([t])
    scale, beta = process.bridge(s, t)
    alpha_s, sigma_s = process.alpha_sigma(s)
    alpha_t, sigma_t = process.alpha_sigma(t)
    torch.testing.assert_close(scale * alpha_s, alpha_t, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(
        (scale * sigma_s).square() + beta.square(), sigma_t.square(), atol=1e-6, rtol=1e-6
    )


def test_two_bridges_compose_to_one(process):
    r, s, t = (torch.tensor([time]) for time in (0.1, 0.4, 0.9))
    (first, noise_1), (second, noise_2), (whole, noise) = (
        process.bridge(r, s),
        process.bridge(s, t),
        process.bridge(r, t),
    )
    torch.testing.assert_close(first * second, whole)
    torch.testing.assert_close((second * noise_1).square() + noise_2.square(), noise.square())


@pytest.mark.parametrize("s, t", [(0.25, 0.5), (0.6, 1.0)])
def test_a_large_renoised_sample_has_the_forward_mean_and_variance(process, s, t):
    count, x0 = 400_000, torch.tensor([1.5, -0.7])
    generator = torch.Generator().manual_seed(1)
    times = [torch.full((count,), time) for time in (s, t)]
    x_s = process.noise(x0.expand(count, 2), torch.randn(count, 2, generator=generator), times[0])
    x_t = process.renoise(x_s, torch.randn(count, 2, generator=generator), *times)
    alpha, sigma = process.alpha_sigma(torch.tensor([t]))
    assert (x_t.mean(0) - alpha * x0).abs().max() < 5 * sigma / count**0.5
    assert (x_t.var(0) - sigma.square()).abs().max() < 5 * sigma.square() * (2 / count) ** 0.5


def test_a_renoised_sample_at_the_same_time_is_unchanged(process):
    t = torch.full((5,), 0.4)
    x, eps = batch(t)
    assert_near(process.renoise(x, eps, t, t), x, rel=1e-3)


def test_network_timesteps_of_four_uniform_steps():
    table = TabulatedVP(torch.linspace(0.999, 0.0, 1000))
    t = torch.tensor([1.0, 0.75, 0.5, 0.25])
    assert table.timestep(t).tolist() == [999, 749, 499, 249]
    assert RectifiedFlow().timestep(t).tolist() == [1000.0, 750.0, 500.0, 250.0]


def test_snap_gives_a_time_of_the_table_and_leaves_a_flow_alone(vp):
    t = torch.tensor([0.0, 0.12344, 0.12356, 0.9999])
    torch.testing.assert_close(vp.snap(t), torch.tensor([0.0, 0.123, 0.124, 1.0]), atol=0, rtol=0)
    assert torch.equal(RectifiedFlow().snap(t), t)


def test_levels_are_float32_whatever_the_time(process):
    assert {a.dtype for a in process.alpha_sigma(torch.tensor([0.5], dtype=torch.float64))} == {
        torch.float32
    }
