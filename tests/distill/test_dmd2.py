"""Clean matching and DMD2: where scores are compared, and the gradient in closed form."""

import pytest
import torch

from tdmvid.diffusion.denoiser import Cond
from tdmvid.diffusion.grid import uniform
from tdmvid.diffusion.sampler import Before, Trajectory
from tdmvid.distill.dmd2 import DMD2
from tdmvid.distill.objective import Roles
from tdmvid.distill.tdm import TDM

NULL = Cond({})


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def path_at(process, batch=20_000, dim=2):
    """Make standard normal states before calls 1 to 4 of an even grid, in turn."""
    k, times = torch.arange(batch) % 4 + 1, uniform(4, process).tensor()
    x = torch.randn(batch, dim, generator=generator(2))
    return Trajectory(x, k, times[k - 1], times[k], NULL, Before(torch.zeros_like(x), times[k]))


class UnitGaussian:
    """Denoiser E[x0 | x_t] of N(mean, I)."""

    def __init__(self, process, mean):
        self.process, self.mean = process, mean

    def __call__(self, x_t, t, cond):
        alpha, sigma = self.process.levels(t, x_t)
        return self.mean + alpha / (alpha**2 + sigma**2) * (x_t - alpha * self.mean)


@pytest.mark.parametrize(
    "objective",
    [TDM(match="clean"), TDM(solver="renoise"), DMD2()],
    ids=["clean", "renoise", "dmd2"],
)
def test_the_clean_prediction_is_what_is_noised(process, objective):
    path = path_at(process)
    x0_hat = 0.5 * path.x + 0.3
    draw = objective.draw(path, x0_hat, generator(1), process)
    torch.testing.assert_close(draw.x_tau, process.noise(x0_hat, draw.eps, draw.tau))
    torch.testing.assert_close(draw.eps_mix, draw.eps, atol=2e-4, rtol=1e-4)
    assert draw.s.eq(0).all()


def test_clean_matching_stays_in_its_segment_and_dmd2_does_not(process):
    path = path_at(process)
    clean = TDM(match="clean").draw(path, path.x, generator(1), process).tau
    assert (clean >= path.lower + 0.02 - 1e-6).all() and (clean <= path.upper + 1e-6).all()
    tau = DMD2().draw(path, path.x, generator(1), process).tau
    for k in (1, 4):
        of_step = tau[path.k == k]
        assert of_step.min() < 0.03 and of_step.max() > 0.97


def test_dmd2_updates_its_fake_five_times():
    assert DMD2().roles == ("fake",) * 5 + ("student",) and DMD2().solver == "renoise"


def test_the_gradient_is_the_closed_form_kl_gradient_of_noised_predictions(process):
    """With x_tau ~ N(alpha m, (alpha^2 + sigma^2) I) and a teacher N(0, same), D_fake - D_teacher =
    sigma^2 m / (alpha^2 + sigma^2) in x0.
    """
    mean = torch.tensor([0.5, -1.0])
    theta, path, objective = mean.clone().requires_grad_(), path_at(process), DMD2(distance="l2")
    noise = torch.randn(len(path.x), 2, generator=generator(7))
    draw = objective.draw(path, theta + noise, generator(3), process)
    roles = Roles(None, UnitGaussian(process, mean), UnitGaussian(process, torch.zeros(2)))
    objective.loss("student", roles, draw, NULL)["loss"].backward()
    alpha, sigma = process.alpha_sigma(draw.tau)
    norm = (draw.x0_hat.detach() - roles.teacher(draw.x_tau, draw.tau, NULL)).abs().mean(1)
    expected = (sigma**2 / (alpha**2 + sigma**2) / norm).mean() * mean
    torch.testing.assert_close(theta.grad, expected, rtol=1e-4, atol=1e-6)


def test_a_dpm_trajectory_is_matched_where_its_solver_goes(process):
    """The state that is noised comes from the solver, and differs from the DDIM state after two
    predictions.
    """
    path, x0_hat = path_at(process), torch.full((20_000, 2), 0.4)
    times = uniform(4, process).tensor()
    earlier = times[(path.k + 1).clamp(max=4)]
    path = Trajectory(
        path.x, path.k, path.lower, path.upper, NULL, Before(torch.full_like(path.x, -0.3), earlier)
    )
    ddim, dpm = (
        TDM(solver=solver).draw(path, x0_hat, generator(1), process) for solver in ("ddim", "dpm++")
    )
    same = (ddim.x_tau - dpm.x_tau).abs().amax(1) < 1e-5
    assert same[(path.k == 4) | (path.k == 1)].all()  # first and last step are of first order
    assert not same[path.k == 2].any()
    two = path.k == 2
    assert (dpm.slope[two] > ddim.slope[two]).all()
