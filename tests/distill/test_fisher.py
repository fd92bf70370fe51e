"""The Fisher gradient compared with the closed-form divergence of two Gaussians."""

import pytest
import torch
from gaussians import with_tau
from refusals import refused

from tdmvid.diffusion.denoiser import Cond
from tdmvid.diffusion.grid import uniform
from tdmvid.diffusion.sampler import Before, Trajectory
from tdmvid.distill.fisher import Fisher, direction
from tdmvid.distill.objective import Roles

NULL = Cond({})


class Linear(torch.nn.Module):
    """Predict a + b x_t with parameters a and b: the exact denoiser of a Gaussian at one time."""

    def __init__(self, process, a, b):
        super().__init__()
        self.process, self.a, self.b = (
            process,
            torch.nn.Parameter(torch.as_tensor(a)),
            torch.nn.Parameter(torch.as_tensor(b)),
        )

    def forward(self, x_t, t, cond):
        return self.a + self.b * x_t


def denoiser_of(process, mean, variance, alpha, sigma):
    """Return E[x0 | x_t] by Tweedie if x_t has the distribution N(mean, variance)."""
    return Linear(process, sigma**2 * mean / variance / alpha, (1 - sigma**2 / variance) / alpha)


def one_tau_draw(process, m, g, batch=400_000):
    """Draw at tau = 0.7 with x0_hat = m + g x_u, where x_u ~ N(0, 1) at s_3 of an even grid."""
    times = uniform(4, process).tensor()
    x = torch.randn(batch, 1, generator=torch.Generator().manual_seed(4))
    k = torch.full((batch,), 3)
    path = Trajectory(x, k, times[k - 1], times[k], NULL)
    theta = torch.tensor([m, g], requires_grad=True)
    objective = with_tau(Fisher, 0.7)
    return (
        objective.draw(path, theta[0] + theta[1] * x, torch.Generator().manual_seed(5), process),
        theta,
    )


def levels(process):
    return [
        [a.double().item() for a in process.alpha_sigma(torch.tensor([t]))]
        for t in (0.5, 0.7, 0.75)
    ]


@pytest.mark.parametrize("m, g", [(0.8, 0.0), (0.8, 0.5), (-0.4, 0.9)])
def test_the_gradient_is_that_of_the_fisher_divergence_of_gaussians(process, m, g):
    """With q = N(mu, v) and p = N(0, w), F = mu^2 / w^2 + v (1 / w - 1 / v)^2, as a function of
    shift m and slope g of the student.
    """
    draw, theta = one_tau_draw(process, m, g)
    (alpha_s, sigma_s), (alpha, sigma), (alpha_u, sigma_u) = levels(process)
    scale, beta = alpha / alpha_s, draw.beta[0].double().item()
    slope = scale * (alpha_s - sigma_s * alpha_u / sigma_u)
    spread = scale * sigma_s / sigma_u + slope * g
    mu, v, w = slope * m, spread**2 + beta**2, alpha**2 + sigma**2
    by_hand = torch.tensor([2 * mu * slope / w**2, (1 / w**2 - 1 / v**2) * 2 * spread * slope])

    torch.testing.assert_close(draw.slope[0].item(), slope, rtol=1e-4, atol=1e-6)
    roles = Roles(
        None, denoiser_of(process, mu, v, alpha, sigma), denoiser_of(process, 0.0, w, alpha, sigma)
    )
    along, _ = direction(roles, draw, NULL)
    blocks = []
    for rows in torch.arange(len(along)).chunk(40):
        value = (along[rows] * draw.slope[rows, None] * draw.x0_hat[rows]).mean() * alpha / sigma**4
        blocks.append(torch.autograd.grad(value, theta, retain_graph=True)[0])
    blocks = torch.stack(blocks)
    error = (blocks.mean(0) - by_hand) / (blocks.std(0) / len(blocks) ** 0.5)
    assert error.abs().max() < 4
    assert blocks.mean(0)[0].item() == pytest.approx(by_hand[0].item(), rel=0.05)


class Bent:
    """Denoiser of a nonlinear score, -tanh(2 x) / w."""

    def __init__(self, process, w, alpha, sigma):
        self.process, self.w, self.alpha, self.sigma = process, w, alpha, sigma

    def __call__(self, x_t, t, cond):
        return (x_t - self.sigma**2 * torch.tanh(2 * x_t) / self.w) / self.alpha


@pytest.mark.parametrize("m", [0.8, -0.3])
def test_the_gradient_is_that_of_the_divergence_from_a_law_that_is_not_gaussian(process, m):
    """Compare with F(m) by quadrature. Here the noise of the conditional score matters; its mean is
    zero if all scores are linear.
    """
    draw, _theta = one_tau_draw(process, m, 0.0)
    (alpha_s, sigma_s), (alpha, sigma), (_, sigma_u) = levels(process)
    slope, w = draw.slope[0].double().item(), 0.5
    v = (alpha / alpha_s * sigma_s / sigma_u) ** 2 + draw.beta[0].double().item() ** 2
    x, shift = torch.linspace(-12, 12, 20_001).double(), torch.tensor(m).double().requires_grad_()
    law = torch.distributions.Normal(slope * shift, v**0.5)
    gap = -(x - slope * shift) / v + torch.tanh(2 * x) / w
    divergence = (law.log_prob(x).exp() * gap.square()).sum() * (x[1] - x[0])
    expected = torch.autograd.grad(divergence, shift)[0]

    fake = denoiser_of(process, slope * m, v, alpha, sigma)
    along, _ = direction(Roles(None, fake, Bent(process, w, alpha, sigma)), draw, NULL)
    blocks = (along * slope * alpha / sigma**4).double().flatten().view(40, -1).mean(1)
    deviation = (blocks.std() / len(blocks) ** 0.5).item()
    assert deviation < 0.05 * expected.abs()
    assert blocks.mean().item() == pytest.approx(expected.item(), abs=4 * deviation)


def test_the_student_s_turn_reaches_the_student_alone_and_descends(process):
    draw, theta = one_tau_draw(process, 0.8, 0.3, batch=20_000)
    (_alpha_s, _sigma_s), (alpha, sigma), (_alpha_u, _sigma_u) = levels(process)
    roles = Roles(
        None,
        denoiser_of(process, 0.8 * alpha, 1.0, alpha, sigma),
        denoiser_of(process, 0.0, 1.0, alpha, sigma),
    )
    Fisher().loss("student", roles, draw, NULL)["loss"].backward()
    assert theta.grad[0] > 0
    assert all(
        p.grad is None for network in (roles.fake, roles.teacher) for p in network.parameters()
    )


def test_the_student_s_gradient_is_the_direction_with_the_slope_over_the_square_of_the_norm(
    process,
):
    """With mixed k and different norms, neither slope nor norm is a single number."""
    batch, dim = 256, 3
    k, times = torch.arange(batch) % 4 + 1, uniform(4, process).tensor()
    x = torch.randn(batch, dim, generator=torch.Generator().manual_seed(4))
    path = Trajectory(x, k, times[k - 1], times[k], NULL)
    x0_hat = (0.5 * x + 0.3).requires_grad_()
    draw = Fisher().draw(path, x0_hat, torch.Generator().manual_seed(5), process)
    roles = Roles(None, Linear(process, 0.2, 0.6), Linear(process, -0.1, 0.8))
    Fisher().loss("student", roles, draw, NULL)["loss"].backward()
    along, teacher = direction(roles, draw, NULL)
    norm = (x0_hat.detach() - teacher).abs().mean(1)
    assert draw.slope.std() > 0.1 * draw.slope.mean() and norm.std() > 0.1 * norm.mean()
    expected = along * (draw.slope / norm**2)[:, None] / (batch * dim)
    torch.testing.assert_close(x0_hat.grad, expected, rtol=1e-4, atol=1e-9)


def test_the_slope_is_how_the_draw_moves_with_the_clean_prediction(process):
    batch, times = 512, uniform(4, process).tensor()
    k = torch.arange(batch) % 4 + 1
    x = torch.randn(batch, 3, generator=torch.Generator().manual_seed(4))
    earlier = times[(k + 1).clamp(max=4)]
    path = Trajectory(x, k, times[k - 1], times[k], NULL, Before(0.3 * x, earlier))
    for solver in ("ddim", "dpm++", "renoise"):
        objective = Fisher(solver=solver)
        here, moved = (
            objective.draw(path, 0.5 * x + by, torch.Generator().manual_seed(5), process)
            for by in (0.0, 1.0)
        )
        found = (moved.x_tau - here.x_tau).mean(1)
        torch.testing.assert_close(found, here.slope, rtol=1e-4, atol=2e-5)


def test_by_default_the_fake_learns_the_score_for_which_the_identity_holds():
    assert Fisher().fake_target == "exact"


def test_a_distance_is_refused():
    with refused("distance='l2'", "kind 'tdm'"):
        Fisher(distance="l2")
