"""TDM's draw, its two losses and their gradients, against closed forms on Gaussians."""

import pytest
import torch
from refusals import refused

from tdmvid.diffusion.denoiser import Cond
from tdmvid.diffusion.grid import uniform
from tdmvid.diffusion.process import broadcast
from tdmvid.diffusion.sampler import Trajectory, rollout
from tdmvid.distill.dmd2 import DMD2
from tdmvid.distill.losses import importance_weight
from tdmvid.distill.objective import Draw, Roles
from tdmvid.distill.tdm import TDM

NULL = Cond({})


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def path_at(process, k, batch=4096, dim=3, seed=0):
    """Standard normal states before call k (1..4, or a tensor of them) of a uniform grid of 4."""
    k = torch.full((batch,), k) if isinstance(k, int) else k
    times = uniform(4, process).tensor()
    x = torch.randn(len(k), dim, generator=generator(seed))
    return Trajectory(x, k, times[k - 1], times[k], NULL)


def mixed_k(batch=4096):
    return torch.arange(batch) % 4 + 1


# The draw


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
    """So a level bounds sigma itself, and a segment that lies above it is drawn as a whole."""
    path = path_at(process, mixed_k(40_000))
    draw = TDM(fresh_noise=0.4, **options).draw(path, path.x, generator(1), process)
    sigma = process.alpha_sigma(draw.tau)[1]
    torch.testing.assert_close(draw.beta, sigma)
    reached = process.alpha_sigma(path.upper - 0.01)[1] >= 0.4
    assert sigma[reached].min() >= 0.398
    whole = process.alpha_sigma(path.lower + 0.02)[1] >= 0.4
    assert whole.any() and (draw.tau - path.lower)[whole].min() < 0.022


def test_a_segment_shorter_than_its_margin_is_drawn_at_its_end(process):
    path = Trajectory(
        torch.randn(8, 2), torch.ones(8).long(), torch.full((8,), 0.5), torch.full((8,), 0.51), NULL
    )
    draw = TDM().draw(path, path.x, generator(1), process)
    torch.testing.assert_close(draw.tau, path.upper)
    assert (draw.beta > 0).all() and draw.eps_mix.isfinite().all()


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


# The generator's gradient


class Gaussian:
    """E[x0 | x_t] of N(mean, std^2 I): the exact denoiser of a Gaussian."""

    def __init__(self, process, mean, std=1.0):
        self.process, self.mean, self.std = process, torch.as_tensor(mean), std

    def __call__(self, x_t, t, cond):
        alpha, sigma = self.process.levels(t, x_t)
        gain = alpha * self.std**2 / ((alpha * self.std).square() + sigma.square())
        return self.mean + gain * (x_t - alpha * self.mean)


def shift_gradient(process, objective, shift, *, batch=20_000):
    """d loss / d shift of the student x0_hat = shift + noise, whose exact fake score is N(shift,
    1); teacher N(0, 1).

    Also the draw and the normaliser, to write the same gradient by hand.
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
    """Score difference of N(alpha m, v) and N(0, v) is alpha m / v; in x0 it is D_fake - D_teacher
    = sigma^2 / v m.
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
    """A one-parameter denoiser."""

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
    """d loss / d x0_hat is 2 (fake - teacher) / (norm dims batch) for l2, x_tau's own dependence
    left out.
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
    """Predicts a + b x_tau, [a, b] from elsewhere plus a parameter at zero."""

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
    """A draw at k = 3 and one tau, of a 1-D student x0_hat = m + g z with z the state at s_3: x_3 ~
    N(0, 1).
    """
    path = path_at(process, 3, batch=batch, dim=1, seed=4)
    m, g = student
    tau = torch.full((batch,), 0.7)
    objective = TDM(margin_low=0.2, margin_high=0.05)  # of [0.5, 0.75] leaves 0.7 alone
    draw = objective.draw(path, m + g * path.x, generator(5), process)
    torch.testing.assert_close(draw.tau, tau)
    return draw, path


def law_of_the_trajectory(process, student):
    """Mean and variance of x_tau, and its alpha and sigma, by the algebra of Gaussians."""
    m, g = student
    s, tau, u = (torch.tensor([time]) for time in (0.5, 0.7, 0.75))
    (alpha_s, sigma_s), (alpha_u, sigma_u) = process.alpha_sigma(s), process.alpha_sigma(u)
    scale, beta = process.bridge(s, tau)
    mean = scale * (alpha_s - sigma_s * alpha_u / sigma_u) * m
    slope = scale * (alpha_s * g + sigma_s * (1 - alpha_u * g) / sigma_u)
    return mean, slope.square() + beta.square(), *process.alpha_sigma(tau)


def gradient_in_standard_errors(process, objective, draw, a, b):
    """The fake's gradient at prediction a + b x_tau, in units of its Monte Carlo error, over 40
    blocks.
    """
    blocks = []
    fake = Posterior(process, a, b)
    for rows in torch.arange(len(draw.tau)).chunk(40):
        part = Draw(
            *(
                getattr(draw, name)[rows]
                for name in ("x0_hat", "x_tau", "s", "tau", "eps", "eps_mix", "beta")
            )
        )
        loss = objective.loss("fake", Roles(None, fake, None), part, NULL)["loss"]
        blocks.append(torch.autograd.grad(loss, fake.offset)[0])
    blocks = torch.stack(blocks)
    return blocks.mean(0) / (blocks.std(0) / len(blocks) ** 0.5)


STUDENTS = [(0.8, 0.0), (0.8, 0.5), (-0.4, 0.9)]


@pytest.mark.parametrize("student", STUDENTS)
def test_the_exact_target_is_least_at_the_score_of_the_trajectory(process, student):
    """By Tweedie, x0* has the conditional mean (x + sigma^2 score(x)) / alpha, score of q(x_tau) on
    the trajectory.
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
    """With the ratio of densities as weight, x_tau counts as if it were x0_hat with fresh noise.

    So the minimiser is E[x0_hat | alpha x0_hat + sigma fresh noise]. It is the trajectory's own
    score, the exact target's minimiser, only where eps_hat is independent of x0_hat.
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
    """A constant x0_hat, and x_u its noised self: q(x_tau) is N(alpha m, sigma^2) and the minimiser
    is m.
    """
    u_alpha, u_sigma = process.alpha_sigma(torch.tensor([0.75]))
    batch = 400_000
    path = path_at(process, 3, batch=batch, dim=1, seed=4)
    path = Trajectory(u_alpha * 0.8 + u_sigma * path.x, path.k, path.lower, path.upper, NULL)
    draw = TDM(margin_low=0.2, margin_high=0.05).draw(
        path, torch.full((batch, 1), 0.8), generator(5), process
    )
    for objective in (TDM(fake_target="exact"), TDM(importance="sum"), TDM()):
        found = gradient_in_standard_errors(
            process, objective, draw, torch.tensor([0.8]), torch.tensor([0.0])
        )
        assert (
            found.nan_to_num(0).abs() < 4
        ).all()  # 0 / 0 for x0_hat targets, which have no noise left here


def test_the_exact_target_is_finite_at_alpha_zero(vp):
    path = path_at(vp, 4, batch=64)
    draw = TDM(margin_low=0.25, margin_high=0.0, fake_target="exact").draw(
        path, path.x, generator(1), vp
    )
    assert draw.tau.eq(1).all() and vp.alpha_sigma(draw.tau)[0].eq(0).all()
    fake = Scale(vp)
    loss = TDM(fake_target="exact").loss("fake", Roles(None, fake, None), draw, NULL)["loss"]
    loss.backward()
    assert (
        loss.isfinite() and loss < 1e-8 and fake.scale.grad == 0
    )  # nothing of x0 is left there to learn
    assert TDM().loss("fake", Roles(None, fake, None), draw, NULL)["loss"].isfinite()


def test_the_exact_target_s_weight_is_the_other_s_times_the_share_of_fresh_noise(process):
    """Both are min(snr, 5) |prediction - target|^2; the exact one times (beta / sigma)^2, and
    without a division by alpha.
    """
    path = path_at(process, mixed_k(512))
    draw = TDM().draw(path, 0.4 * path.x, generator(1), process)
    alpha, sigma = process.levels(draw.tau, draw.x_tau)
    target = (draw.x_tau - sigma**2 * draw.eps / broadcast(draw.beta, sigma)) / alpha
    weight = (alpha / sigma).square().clamp(max=5.0) * (
        broadcast(draw.beta, sigma) / sigma
    ).square()
    expected = (weight * (0.5 * draw.x_tau - target).square()).mean()
    found = TDM(fake_target="exact").loss("fake", Roles(None, Scale(process), None), draw, NULL)[
        "loss"
    ]
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
    """q(x_tau | x0_hat) / q(x_tau | x_s) = (beta / sigma)^d w; the left-out factor depends on the
    times alone.
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
        (
            {"fake_weight": "velocity", "fake_target": "exact"},
            ("fake_weight='velocity'", "fake_target='x0_hat'"),
        ),
        ({"fresh_noise": 1.0}, ("fresh_noise=1.0", "below 1")),
    ],
)
def test_an_impossible_option_is_refused_with_value_and_rule(options, facts):
    with refused(*facts):
        TDM(**options)


def test_the_fake_takes_its_turns_before_the_student():
    assert TDM(fake_updates=2).roles == ("fake", "fake", "student")
