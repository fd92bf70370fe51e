"""Where training ends, in closed form, for Gaussian data and linear denoisers."""

import pytest
import torch
from scipy.optimize import brentq

from tdmvid.diffusion.grid import uniform

DRAWS = 500


def posterior(alpha, sigma):
    """Return the factor of the teacher's clean prediction of data of variance 1."""
    return alpha / (alpha.square() + sigma.square())


def pull(g, process, upper, lower, variance, share):
    """Return the correlation of teacher - fake with the student's state, averaged over tau.

    The student predicts x0_hat = g x at `upper`. The fake is at its optimum for the target x0_hat +
    share(beta, sigma) (x0* - x0_hat).
    """
    (alpha_u, sigma_u), (alpha_s, sigma_s) = levels(process, upper), levels(process, lower)
    tau = torch.linspace(lower + 1e-3, upper, DRAWS, dtype=torch.float64)
    alpha, sigma = process.alpha_sigma(tau)
    scale, beta = process.bridge(torch.full_like(tau, lower), tau)
    slope = alpha_s * g + sigma_s * (1 - alpha_u * g) / sigma_u  # x_s = slope x
    law = (scale * slope).square() * variance + beta.square()
    clean = g * slope * scale * variance / law  # regression of x0_hat on x_tau
    exact = scale * (slope.square() * variance - sigma_s.square()) / (alpha_s * law)
    fake = clean + share(beta, sigma) * (exact - clean)
    return ((posterior(alpha, sigma) - fake) * scale * slope).mean().item()


def levels(process, time):
    return process.alpha_sigma(torch.tensor(time, dtype=torch.float64))


def deviations(process, share):
    """Return the deviation of the states after each of four steps, relative to the truth."""
    times, variance, found = uniform(4, process).times, torch.tensor(1.0), []
    for upper, lower in ((times[k], times[k - 1]) for k in (4, 3, 2, 1)):
        (alpha_u, sigma_u), (alpha_s, sigma_s) = levels(process, upper), levels(process, lower)
        true = posterior(alpha_u, sigma_u).item()
        settings = process, upper, lower, variance, share
        g = brentq(pull, max(true - 0.1, 0.01), true + 0.5, settings)
        variance = (alpha_s * g + sigma_s * (1 - alpha_u * g) / sigma_u).square() * variance
        found.append(variance.sqrt().item())
    return found


@pytest.mark.parametrize(
    "share, expected",
    [
        (lambda beta, sigma: 1.0, (1, 1, 1, 1)),
        (lambda beta, sigma: 0.0, (1.005, 1.027, 1.080, 1)),
        (lambda beta, sigma: (beta / sigma).square(), (1.002, 1.012, 1.037, 1)),
    ],
    ids=["exact", "x0_hat", "between"],
)
def test_only_the_exact_target_ends_at_the_teacher_s_law(vp, share, expected):
    """The last step ends at clean samples, where all targets are equal."""
    assert deviations(vp, share) == pytest.approx(expected, abs=1.5e-3)
