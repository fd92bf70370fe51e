"""The adversarial term compared with closed forms on Gaussians."""

import pytest
import torch
from gaussians import with_tau
from refusals import refused

from tdmvid.backbones.gaussian import Critic
from tdmvid.diffusion.denoiser import Cond
from tdmvid.diffusion.grid import uniform
from tdmvid.diffusion.sampler import Trajectory
from tdmvid.distill.gan import GAN
from tdmvid.distill.objective import Roles
from tdmvid.distill.tdm import TDM

NULL = Cond({})


class Logit(torch.nn.Module):
    """Discriminator D(x) = a x + b, independent of time."""

    def __init__(self, a, b):
        super().__init__()
        self.weights = torch.nn.Parameter(torch.tensor([a, b]))

    def forward(self, x_t, t, cond):
        return self.weights[0] * x_t[:, 0] + self.weights[1]


class Nothing:
    """Denoiser that predicts zero; as fake and teacher, the matching loss has no gradient."""

    def __init__(self, process):
        self.process = process

    def __call__(self, x_t, t, cond):
        return torch.zeros_like(x_t)


def one_tau(process, objective, theta, batch=400_000):
    """Draw with x0_hat = theta, a number, on states N(0, 1) at s_3."""
    times = uniform(4, process).tensor()
    x = torch.randn(batch, 1, generator=torch.Generator().manual_seed(4))
    k = torch.full((batch,), 3)
    path = Trajectory(x, k, times[k - 1], times[k], NULL)
    return objective.draw(path, theta.expand(batch, 1), torch.Generator().manual_seed(5), process)


def law(process, theta, draw):
    """Return mean and variance of x_tau on the trajectory."""
    (alpha_s, sigma_s), (alpha, _), (_, sigma_u) = [
        [a.item() for a in process.alpha_sigma(torch.tensor([t]))] for t in (0.5, 0.7, 0.75)
    ]
    scale = alpha / alpha_s
    return draw.slope[0].item() * theta, (scale * sigma_s / sigma_u) ** 2 + draw.beta[0].item() ** 2


def test_the_logistic_discriminator_is_least_at_the_log_ratio_of_the_laws(process):
    """With equal variances D is linear: D = (m_p - m_q) / v x + (m_q^2 - m_p^2) / 2 v."""
    objective = with_tau(GAN, 0.7, adversarial="logistic")
    draw = one_tau(process, objective, torch.tensor([0.6]))
    m_q, v = law(process, 0.6, draw)
    alpha, sigma = (a.item() for a in process.alpha_sigma(draw.tau[:1]))
    spread = (v - sigma**2) ** 0.5 / alpha  # of real latents, so that both laws are as wide
    real = -0.4 + spread * torch.randn(len(draw.tau), 1, generator=torch.Generator().manual_seed(8))
    m_p = -0.4 * alpha
    for shift, bound in ((0.0, None), (0.1, 8)):
        roles = Roles(
            None,
            Nothing(process),
            None,
            Logit((m_p - m_q) / v + shift, (m_q**2 - m_p**2) / (2 * v)),
            lambda pick: real,
        )
        objective.loss("discriminator", roles, draw, NULL)["loss"].backward()
        error = (
            roles.discriminator.weights.grad.abs() * len(real) ** 0.5
        )  # each sample's gradient is of order 1
        assert error.max() < 4 if bound is None else error.max() > bound


def test_the_discriminator_s_hinge_pushes_real_latents_above_one_and_drawn_ones_below_minus_one(
    process,
):
    """Loss and scalars computed by hand for three logits of real samples and three of draws."""
    logits = torch.tensor([2.0, 0.5, -3.0, -2.0, -0.5, 3.0], requires_grad=True)
    draw = one_tau(process, GAN(), torch.zeros(1), batch=3)
    roles = Roles(
        None, Nothing(process), None, lambda x, t, c: logits * 1, lambda pick: torch.ones(3, 1)
    )
    terms = GAN(adversarial="hinge").loss("discriminator", roles, draw, NULL)
    terms["loss"].backward()
    assert terms["loss"].item() == pytest.approx((0 + 0.5 + 4) / 3 + (0 + 0.5 + 4) / 3)
    assert (logits.grad * 3).tolist() == pytest.approx([0, -1, -1, 0, 1, 1])
    assert terms["right"].item() == pytest.approx(2 / 3)
    terms = GAN(adversarial="logistic").loss("discriminator", roles, draw, NULL)
    softplus = torch.nn.functional.softplus(torch.tensor([-2.0, -0.5, 3.0, -2.0, -0.5, 3.0]))
    assert terms["loss"].item() == pytest.approx(softplus.sum().item() / 3)


def test_the_generator_s_value_is_reported_and_is_high_where_draws_are_told_apart(process):
    draw = one_tau(process, with_tau(GAN, 0.7), torch.tensor([0.6], requires_grad=True), batch=64)
    for kind, expected in (("hinge", 3.0), ("logistic", 3.0486)):
        roles = Roles(
            None,
            Nothing(process),
            Nothing(process),
            lambda x, t, c: -3 + 0 * x[:, 0],
            None,
        )
        terms = GAN(adversarial=kind, weight=2.0).loss("student", roles, draw, NULL)
        assert terms["adversarial"].item() == pytest.approx(expected, rel=1e-4)
        plain = TDM().loss("student", roles, draw, NULL)["loss"]
        assert (terms["loss"] - plain).item() == pytest.approx(2 * expected, rel=1e-4)


def test_the_discriminator_is_updated_before_the_student():
    roles = GAN(fake_updates=2).roles
    assert roles == ("fake", "fake", "discriminator", "student")


@pytest.mark.parametrize("kind", ["hinge", "logistic"])
def test_the_generator_climbs_the_discriminator_with_the_slope_of_its_trajectory(process, kind):
    """L_G of D = a x + b has the gradient -a slope for hinge, and E[-a slope / (1 + e^D)] for
    logistic.
    """
    objective = with_tau(GAN, 0.7, adversarial=kind, weight=2.0)
    theta = torch.tensor([0.6], requires_grad=True)
    draw = one_tau(process, objective, theta, batch=20_000)
    roles = Roles(None, Nothing(process), Nothing(process), Logit(0.7, -0.2), None)
    objective.loss("student", roles, draw, NULL)["loss"].backward()
    share = 1.0 if kind == "hinge" else (1 / (1 + (0.7 * draw.x_tau - 0.2).exp())).mean().item()
    assert theta.grad.item() == pytest.approx(-2 * 0.7 * draw.slope[0].item() * share, rel=1e-4)
    assert roles.discriminator.weights.grad is None


def test_without_weight_the_student_s_gradient_is_tdm_s(process):
    def gradient(objective):
        theta = torch.tensor([0.6], requires_grad=True)
        roles = Roles(None, Nothing(process), lambda x, t, c: 0.3 * x, Logit(0.7, 0.0), None)
        objective.loss("student", roles, one_tau(process, objective, theta, batch=64), NULL)[
            "loss"
        ].backward()
        return theta.grad.item()

    assert (
        gradient(with_tau(GAN, 0.7, weight=0.0))
        == gradient(with_tau(TDM, 0.7))
        != gradient(with_tau(GAN, 0.7, weight=1.0))
    )


def test_a_gradient_too_small_for_float16_is_not_lost_inside_the_discriminator(process):
    """D is the mean of 2^18 elements, each with weight 1e-3, in float16. The share of an element,
    4e-9, is too small for float16.
    """
    objective, size = with_tau(GAN, 0.7, weight=1.0), 2**18
    times = uniform(4, process).tensor()
    k = torch.full((1,), 3)
    x0_hat = torch.zeros(1, size, requires_grad=True)
    draw = objective.draw(
        Trajectory(torch.randn(1, size), k, times[k - 1], times[k], NULL),
        x0_hat,
        torch.Generator().manual_seed(5),
        process,
    )
    roles = Roles(
        None,
        Nothing(process),
        Nothing(process),
        lambda x, t, c: (x.half() * 1e-3).mean(1).float(),
        None,
    )
    objective.loss("student", roles, draw, NULL)["loss"].backward()
    torch.testing.assert_close(
        x0_hat.grad, (-draw.slope[:, None] * 1e-3 / size).expand(1, size), rtol=2e-3, atol=0
    )


def test_real_latents_are_noised_to_tau_with_noise_of_their_own(process):
    """Real latents are selected uniformly. Otherwise a discriminator could recognise them by noise
    that both share.
    """
    objective, theta, asked = GAN(), torch.zeros(1), {}

    def real(pick):
        asked["pick"] = pick
        return torch.full((len(pick), 1), 2.0)

    def critic(x, t, cond):
        asked.update(x=x, t=t)
        return torch.zeros(len(x))

    draw = one_tau(process, objective, theta, batch=20_000)
    objective.loss("discriminator", Roles(None, Nothing(process), None, critic, real), draw, NULL)
    noised, drawn = asked["x"].chunk(2)
    assert torch.equal(drawn, draw.x_tau) and torch.equal(asked["t"], draw.tau.repeat(2))
    eps = process.eps_from_x0(noised, torch.full_like(noised, 2.0), draw.tau)
    assert abs(eps.mean()) < 0.04 and abs(eps.std() - 1) < 0.03
    others = torch.stack([eps, draw.eps, draw.eps_mix, draw.x_tau]).flatten(1)
    assert torch.corrcoef(others)[0, 1:].abs().max() < 0.04
    pick = asked["pick"]
    assert 0 <= pick.min() < 0.001 and 0.999 < pick.max() < 1
    assert abs(pick.mean() - 0.5) < 0.011
    assert torch.corrcoef(torch.stack([pick, draw.tau]))[0, 1].abs() < 0.04


def test_the_critic_hears_k():
    critic, x, t = Critic(width=8), torch.ones(2, 2), torch.full((2,), 0.5)
    one, four = (critic(x, t, NULL.with_step_count(k, 2, "cpu")) for k in (1, 4))
    assert one.shape == (2,) and (one - four).abs().min() > 0


def test_a_negative_weight_is_refused():
    with refused("weight=-1.0"):
        GAN(weight=-1.0)
