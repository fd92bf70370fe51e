"""The two losses of TDM and their gradients, compared with closed forms on Gaussians."""

import pytest
import torch
from gaussians import NULL, generator, mixed_k, path_at, with_tau
from refusals import refused

from tdmvid.diffusion.process import broadcast
from tdmvid.diffusion.sampler import Trajectory
from tdmvid.distill.losses import importance_weight
from tdmvid.distill.objective import Draw, Roles
from tdmvid.distill.tdm import TDM, exact_target

# The generator's gradient


class Gaussian:
    """Denoiser E[x0 | x_t] of N(mean, std^2 I), exact for a Gaussian."""

    def __init__(self, process, mean, std=1.0):
        self.process, self.mean, self.std = process, torch.as_tensor(mean), std

    def __call__(self, x_t, t, cond):
        alpha, sigma = self.process.levels(t, x_t)
        gain = alpha * self.std**2 / ((alpha * self.std).square() + sigma.square())
        return self.mean + gain * (x_t - alpha * self.mean)


def shift_gradient(process, objective, shift, *, batch=20_000):
    """Return d loss / d shift of the student x0_hat = shift + noise, with the exact fake score
    N(shift, 1) and the teacher N(0, 1).

    Also return the draw and the normaliser, to compute the same gradient by hand.
    """
    theta = torch.tensor(shift, requires_grad=True)
    noise = torch.randn(batch, len(shift), generator=generator(1))
    path = path_at(process, mixed_k(batch), dim=len(shift), seed=2)
    draw = objective.draw(path, theta + noise, generator(3), process)
    roles = Roles(
        None, Gaussian(process, theta.detach()), Gaussian(process, torch.zeros(len(shift)))
    )
    objective.loss("student", roles, draw, NULL)["loss"].backward()
    clean = draw.x0_hat.detach()
    norm = (clean - roles.teacher(draw.x_tau, draw.tau, NULL)).abs().mean(1)
    return theta.grad, draw, norm


@pytest.mark.parametrize("shift", [[0.7], [0.5, -1.0]])
def test_the_gradient_is_the_closed_form_kl_gradient(process, shift):
    """The score difference of N(alpha m, v) and N(0, v) is alpha m / v; in x0 it is D_fake -
    D_teacher = sigma^2 / v m.
    """
    found, draw, norm = shift_gradient(process, TDM(distance="l2"), shift)
    alpha, sigma = process.alpha_sigma(draw.tau)
    share = sigma.square() / (alpha.square() + sigma.square())
    expected = 2 / len(shift) * (share / norm).mean() * torch.tensor(shift)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    assert (
        found * torch.tensor(shift) > 0
    ).all()  # descent moves the student to the teacher's mean


@pytest.mark.parametrize("kind", ["huber", "huber_vector", "l2"])
def test_every_distance_descends_to_the_teacher(process, kind):
    found, _, _ = shift_gradient(process, TDM(distance=kind), [0.5, -1.0])
    assert found[0] > 0 > found[1]
    assert shift_gradient(process, TDM(distance=kind), [0.0, 0.0])[0].abs().max() < 1e-3


class Scale(torch.nn.Module):
    """Denoiser with one parameter."""

    def __init__(self, process):
        super().__init__()
        self.process, self.scale = process, torch.nn.Parameter(torch.tensor(0.5))

    def forward(self, x_t, t, cond):
        return self.scale * x_t


@pytest.mark.parametrize("role", ["fake", "student"])
def test_each_turn_reaches_its_own_role_only(process, role):
    roles = Roles(*(Scale(process) for _ in range(3)))
    path = path_at(process, 2, batch=64)
    x0_hat = roles.student(path.x, path.upper, NULL)
    draw = TDM().draw(path, x0_hat, generator(1), process)
    with torch.no_grad():
        roles.teacher.scale.fill_(0.3)
    TDM().loss(role, roles, draw, NULL)["loss"].backward()
    for name in ("student", "fake", "teacher"):
        gradient = getattr(roles, name).scale.grad
        assert (gradient is not None and gradient != 0) == (name == role)


def test_the_student_s_gradient_passes_through_x0_hat_alone(process):
    """d loss / d x0_hat is 2 (fake - teacher) / (norm dims batch) for l2; the dependence of x_tau
    is not included.
    """
    path, roles = path_at(process, 2, batch=64), Roles(*(Scale(process) for _ in range(3)))
    with torch.no_grad():
        roles.teacher.scale.fill_(0.3)
    x0_hat = (0.8 * path.x).requires_grad_()
    draw = TDM().draw(path, x0_hat, generator(1), process)
    TDM(distance="l2").loss("student", roles, draw, NULL)["loss"].backward()
    norm = (x0_hat - 0.3 * draw.x_tau).abs().mean(1, keepdim=True).detach()
    torch.testing.assert_close(
        x0_hat.grad, 2 * 0.2 * draw.x_tau / (norm * 3 * 64), rtol=1e-4, atol=1e-8
    )


def test_the_reported_gap_is_that_of_teacher_and_fake_in_units_of_the_norm(process):
    path, roles = path_at(process, 2, batch=64), Roles(*(Scale(process) for _ in range(3)))
    with torch.no_grad():
        roles.teacher.scale.fill_(0.3)
    draw = TDM().draw(path, 0.8 * path.x, generator(1), process)
    found = TDM().loss("student", roles, draw, NULL)["gap"]
    expected = (0.2 * draw.x_tau).abs().mean() / (0.8 * path.x - 0.3 * draw.x_tau).abs().mean()
    torch.testing.assert_close(found, expected)


# The fake's targets


class Posterior(torch.nn.Module):
    """Predict a + b x_tau, where [a, b] is given plus a parameter at zero."""

    def __init__(self, process, a, b):
        super().__init__()
        self.process, self.a, self.b, self.offset = (
            process,
            a,
            b,
            torch.nn.Parameter(torch.zeros(2)),
        )

    def forward(self, x_t, t, cond):
        return self.a + self.offset[0] + (self.b + self.offset[1]) * x_t


def fixed_tau_draw(process, student, *, batch=400_000):
    """Draw at k = 3 and one tau for a 1-D student x0_hat = m + g z, where z is the state at s_3
    with x_3 ~ N(0, 1).
    """
    path = path_at(process, 3, batch=batch, dim=1, seed=4)
    m, g = student
    draw = with_tau(TDM, 0.7).draw(path, m + g * path.x, generator(5), process)
    return draw, path


def law_of_the_trajectory(process, student):
    """Compute mean and variance of x_tau, and its alpha and sigma, for Gaussians."""
    m, g = student
    s, tau, u = (torch.tensor([time]) for time in (0.5, 0.7, 0.75))
    (alpha_s, sigma_s), (alpha_u, sigma_u) = process.alpha_sigma(s), process.alpha_sigma(u)
    scale, beta = process.bridge(s, tau)
    mean = scale * (alpha_s - sigma_s * alpha_u / sigma_u) * m
    slope = scale * (alpha_s * g + sigma_s * (1 - alpha_u * g) / sigma_u)
    return mean, slope.square() + beta.square(), *process.alpha_sigma(tau)


def gradient_in_standard_errors(process, objective, draw, a, b):
    """Return the gradient of the fake at the prediction a + b x_tau, in units of its Monte Carlo
    error over 40 blocks.
    """
    blocks = []
    fake = Posterior(process, a, b)
    for rows in torch.arange(len(draw.tau)).chunk(40):
        part = Draw(
            *(
                getattr(draw, name)[rows]
                for name in ("x0_hat", "x_tau", "s", "tau", "eps", "eps_mix", "beta")
            ),
            x_s=draw.x_s[rows],
        )
        loss = objective.loss("fake", Roles(None, fake, None), part, NULL)["loss"]
        blocks.append(torch.autograd.grad(loss, fake.offset)[0])
    blocks = torch.stack(blocks)
    return blocks.mean(0) / (blocks.std(0) / len(blocks) ** 0.5)


STUDENTS = [(0.8, 0.0), (0.8, 0.5), (-0.4, 0.9)]


@pytest.mark.parametrize("student", STUDENTS)
def test_the_exact_target_is_least_at_the_score_of_the_trajectory(process, student):
    """By Tweedie, x0* has the conditional mean (x + sigma^2 score(x)) / alpha, with the score of
    q(x_tau) on the trajectory.
    """
    draw, _ = fixed_tau_draw(process, student)
    mean, variance, alpha, sigma = law_of_the_trajectory(process, student)
    ratio = sigma.square() / variance
    a, b = ratio * mean / alpha, (1 - ratio) / alpha
    objective = TDM(fake_target="exact")
    assert gradient_in_standard_errors(process, objective, draw, a, b).abs().max() < 4
    assert gradient_in_standard_errors(process, objective, draw, a + 0.05, b).abs().max() > 6


@pytest.mark.parametrize("student", STUDENTS[1:])  # the first has no variance left to weigh
def test_the_weighted_target_is_least_at_the_posterior_of_noised_predictions(
    process, student, monkeypatch
):
    """With the ratio of densities as weight, x_tau counts as x0_hat with fresh noise.

    The minimiser is E[x0_hat | alpha x0_hat + sigma fresh noise]. It equals the score of the
    trajectory, the minimiser of the exact target, only if eps_hat is independent of x0_hat.
    """
    draw, _ = fixed_tau_draw(process, student)
    m, g = student
    _, _, alpha, sigma = law_of_the_trajectory(process, student)
    b = alpha * g**2 / ((alpha * g).square() + sigma.square())
    a = m - b * alpha * m
    weight = importance_weight(draw.eps_mix, draw.eps, "sum")
    assert (
        weight == 20
    ).float().mean() < 1e-3  # rarely clamped; without the clamp, which biases it:
    monkeypatch.setattr(
        "tdmvid.distill.tdm.importance_weight",
        lambda eps_mix, eps, kind: ((eps.square() - eps_mix.square()).sum(1) / 2).exp(),
    )
    objective = TDM(importance="sum")
    assert gradient_in_standard_errors(process, objective, draw, a, b).abs().max() < 4
    assert gradient_in_standard_errors(process, objective, draw, a + 0.05, b).abs().max() > 6


def test_both_targets_agree_where_the_noise_is_independent_of_the_prediction(process):
    """With a constant x0_hat and x_u = its noised value, q(x_tau) is N(alpha m, sigma^2) and the
    minimiser is m.
    """
    u_alpha, u_sigma = process.alpha_sigma(torch.tensor([0.75]))
    batch = 400_000
    path = path_at(process, 3, batch=batch, dim=1, seed=4)
    path = Trajectory(u_alpha * 0.8 + u_sigma * path.x, path.k, path.lower, path.upper, NULL)
    draw = with_tau(TDM, 0.7).draw(path, torch.full((batch, 1), 0.8), generator(5), process)
    for objective in (TDM(fake_target="exact"), TDM(importance="sum"), TDM()):
        found = gradient_in_standard_errors(
            process, objective, draw, torch.tensor([0.8]), torch.tensor([0.0])
        )
        assert (
            found.nan_to_num(0).abs() < 4
        ).all()  # 0 / 0 for x0_hat targets, which have no noise left here


def test_the_exact_target_at_alpha_zero_is_the_state_without_its_scale(vp):
    """Nothing of x_s is left in x_tau there, so the fake learns the mean of x_s / alpha_s. The SNR
    weight gives these draws the weight 0, the velocity weight the weight 1.
    """
    path = path_at(vp, 4, batch=64)
    draw = with_tau(TDM, 1.0).draw(path, 0.3 * path.x, generator(1), vp)
    assert draw.tau.eq(1).all() and vp.alpha_sigma(draw.tau)[0].eq(0).all()
    alpha_s = vp.alpha_sigma(draw.s)[0]
    state = draw.x_s / broadcast(alpha_s, draw.x_s)
    torch.testing.assert_close(exact_target(draw, vp), state)
    assert not torch.allclose(state, draw.x0_hat, atol=0.1)
    error = (0.5 * draw.x_tau - state).square().mean().item()
    for weight, expected in (("snr", 0.0), ("velocity", error)):
        objective = TDM(fake_target="exact", fake_weight=weight)
        loss = objective.loss("fake", Roles(None, Scale(vp), None), draw, NULL)["loss"]
        torch.testing.assert_close(loss.item(), expected)


@pytest.mark.parametrize("kind", ["snr", "velocity"])
def test_the_exact_target_s_weight_is_the_other_s_times_the_share_of_fresh_noise(process, kind):
    """Both losses are w |prediction - target|^2 with the same w, but that of the exact target is
    multiplied by (beta / sigma)^2.
    """
    path = path_at(process, mixed_k(512))
    draw = TDM().draw(path, 0.4 * path.x, generator(1), process)
    alpha, sigma = process.levels(draw.tau, draw.x_tau)
    fresh = (broadcast(draw.beta, sigma) / sigma).square()
    weight = (alpha if kind == "snr" else torch.ones_like(alpha)) / sigma
    inside = (alpha > 0.05).expand_as(draw.x_tau)  # Tweedie's formula divides by alpha
    tweedie = (draw.x_tau - sigma**2 * draw.eps / broadcast(draw.beta, sigma)) / alpha
    target = exact_target(draw, process)
    torch.testing.assert_close(target[inside], tweedie[inside], rtol=1e-3, atol=1e-3)
    error = (0.5 * draw.x_tau - target).square()
    expected = (weight.square().clamp(max=5.0) * fresh * error).mean()
    objective = TDM(fake_target="exact", fake_weight=kind)
    found = objective.loss("fake", Roles(None, Scale(process), None), draw, NULL)["loss"]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=0)


def test_the_fake_s_loss_is_its_formula(process):
    path = path_at(process, mixed_k(512))
    draw = TDM().draw(path, 0.4 * path.x, generator(1), process)
    alpha, sigma = process.alpha_sigma(draw.tau)
    w_is = (-draw.eps_mix.square().mean(1) / 2 + draw.eps.square().mean(1) / 2).exp()
    w_snr = (alpha**2 / sigma**2).clamp(max=5.0)
    expected = (w_is * w_snr * (0.5 * draw.x_tau - 0.4 * path.x).square().mean(1)).mean()
    terms = TDM().loss("fake", Roles(None, Scale(process), None), draw, NULL)
    torch.testing.assert_close(terms["loss"], expected)
    torch.testing.assert_close(terms["ess"], w_is.sum() ** 2 / (512 * (w_is**2).sum()))


# The importance weight


def test_the_sum_weight_is_the_density_ratio_up_to_a_constant_of_tau(process):
    """q(x_tau | x0_hat) / q(x_tau | x_s) = (beta / sigma)^d w; the omitted factor depends only on
    the times.
    """
    path = path_at(process, mixed_k(2048))
    x0_hat = 0.9 * path.x + 0.1
    draw = TDM().draw(path, x0_hat, generator(1), process)
    x_s = process.noise(x0_hat, process.eps_from_x0(path.x, x0_hat, path.upper), draw.s)
    scale, beta = process.bridge(draw.s, draw.tau)
    alpha, sigma = process.alpha_sigma(draw.tau)
    law = torch.distributions.Normal
    from_x0 = (
        law(broadcast(alpha, x0_hat) * x0_hat, broadcast(sigma, x0_hat)).log_prob(draw.x_tau).sum(1)
    )
    from_x_s = law(broadcast(scale, x_s) * x_s, broadcast(beta, x_s)).log_prob(draw.x_tau).sum(1)
    exponent = (draw.eps.square() - draw.eps_mix.square()).sum(1) / 2
    torch.testing.assert_close(
        from_x0 - from_x_s, exponent + 3 * (beta / sigma).log(), atol=2e-3, rtol=1e-3
    )
    torch.testing.assert_close(
        importance_weight(draw.eps_mix, draw.eps, "sum"), exponent.exp().clamp(max=20.0)
    )


@pytest.mark.parametrize(
    "options, facts",
    [
        ({"margin_low": -0.1}, ("margin_low=-0.1",)),
        ({"fake_updates": 0}, ("fake_updates=0",)),
        ({"cfg": -1.0}, ("cfg=-1.0",)),
        ({"snr_ceiling": 0.0}, ("snr_ceiling=0.0",)),
        ({"fresh_noise": 1.0}, ("fresh_noise=1.0", "below 1")),
    ],
)
def test_an_impossible_option_is_refused_with_value_and_rule(options, facts):
    with refused(*facts):
        TDM(**options)


def test_the_fake_takes_its_turns_before_the_student():
    assert TDM(fake_updates=2).roles == ("fake", "fake", "student")
