"""Rewards on Gaussian data in closed form: what the weighted fake learns, and where a run ends.

Data is N(m, S) with S = spread^2, the reward is c.x. All denoisers are linear, so every state of a
trajectory is Gaussian: x_s = slope_s z + offset_s with the noise z of its start.
"""

import pytest
import torch
from torch import nn

from tdmvid.config import OptimConfig
from tdmvid.diffusion.denoiser import Cond
from tdmvid.diffusion.grid import uniform
from tdmvid.diffusion.process import RectifiedFlow
from tdmvid.diffusion.sampler import Trajectory, finish, sample
from tdmvid.distill.iteration import GradedPath, iterate
from tdmvid.distill.objective import Roles
from tdmvid.distill.reward import RunningMean
from tdmvid.distill.tdm import TDM
from tdmvid.parallel.engine import TorchEngine
from tdmvid.parallel.rng import Streams

PROCESS = RectifiedFlow()
GRID = uniform(4, PROCESS)
MEAN, SPREAD = torch.tensor([0.3, -0.5]), 0.8
REWARD = torch.tensor([1.0, -2.0])


def posterior(mean, variance, x_t, t):
    """Return E[x0 | x_t] of N(mean, variance); the variance may be negative."""
    alpha, sigma = (each[:, None] for each in PROCESS.alpha_sigma(t))
    gain = alpha * variance / (alpha.square() * variance + sigma.square())
    return mean + gain * (x_t - alpha * mean)


class Student:
    """The exact prediction of a Gaussian that is not the teacher's."""

    process = PROCESS

    def __call__(self, x_t, t, cond):
        return posterior(MEAN, torch.tensor(SPREAD**2), x_t, t)


class Fake:
    """A prediction E[x0 | x_t] of N(mean, variance), plus an error with a gradient."""

    process = PROCESS

    def __init__(self, mean, variance):
        self.mean, self.variance = mean, variance
        self.error = torch.zeros(2, 2, requires_grad=True)  # of the offset, and of the slope

    def __call__(self, x_t, t, cond):
        x0 = posterior(self.mean, self.variance, x_t, t)
        return x0 + self.error[0] + self.error[1] * x_t


def states(count):
    """Return z, the student's states at s_K to s_0, and for each its slope in z."""
    z = torch.randn(count, 2, generator=torch.Generator().manual_seed(0))
    found = []
    for start in (z, torch.stack([torch.zeros(2), torch.ones(2)])):  # the second: 0 and 1
        seen = [start]
        for k in (4, 3, 2, 1):
            upper, lower = (torch.full((len(start),), GRID.times[i]) for i in (k, k - 1))
            alpha, sigma = (each[:, None] for each in PROCESS.alpha_sigma(upper))
            x0 = Student()(seen[-1], upper, Cond({}))
            alpha_s, sigma_s = (each[:, None] for each in PROCESS.alpha_sigma(lower))
            seen.append(alpha_s * x0 + sigma_s * (seen[-1] - alpha * x0) / sigma)
        found.append(seen[::-1])  # entry k is at s_k
    line = [(both[0], both[1] - both[0]) for both in found[1]]  # offset and slope
    return found[0], line


@pytest.mark.parametrize("strength", [0.5, -0.3])
@pytest.mark.parametrize(
    "k, target", [(1, "x0_hat"), *((k, "exact") for k in (1, 2, 3, 4))], ids=str
)
def test_the_weighted_fake_is_the_score_of_the_tilted_states(k, target, strength):
    """The reward tilts the noise z of the trajectories to N(-lam slope_0 c, 1), and with it every
    state. For k = 1, the state is the finished sample: N(m', S') becomes N(m' - lam S' c, S').
    With x0_hat this holds for the last step only.
    """
    drawn, line = states(200_000)
    t = [torch.full((len(drawn[0]),), time) for time in GRID.times]
    path = Trajectory(drawn[k], torch.full((len(drawn[0]),), k), t[k - 1], t[k], Cond({}))
    x0 = Student()(path.x, path.upper, Cond({}))
    [weights], _ = RunningMean(dict).weigh([strength * (drawn[0] @ REWARD)])
    objective = TDM(importance="none", fake_target=target, fresh_noise=0.1)

    def gradient(tilt):
        (offset, slope), (_, last) = line[k - 1], line[0]
        alpha, sigma = PROCESS.alpha_sigma(t[k - 1][:1])
        mean = (offset - tilt * slope * last * REWARD) / alpha
        fake = Fake(mean, (slope.square() - sigma.square()) / alpha.square())
        call = GradedPath.of_past(path, x0, weights, Roles(Student(), fake, None))
        draw = call.draw(objective, torch.Generator().manual_seed(1), graded=False)
        loss = objective.loss("fake", Roles(fake, fake, None), draw, Cond({}))["loss"]
        return torch.autograd.grad(loss, fake.error)[0].abs().max()

    assert gradient(strength) < 0.06 * gradient(0.0)


class Steps(nn.Module):
    """For each step k, the exact prediction of a Gaussian of its own; both are learned."""

    process = PROCESS

    def __init__(self):
        super().__init__()
        self.mean = nn.Parameter(MEAN.repeat(4, 1))
        self.variance = nn.Parameter(torch.full((4, 1), SPREAD**2))

    def forward(self, x_t, t, cond):
        k = (4 * t - 1e-4).floor().long().clamp(0, 3)
        return posterior(self.mean[k], self.variance[k], x_t, t)


@pytest.mark.slow
@pytest.mark.parametrize("target", ["x0_hat", "exact"])
def test_the_mean_of_the_finished_samples_moves_by_lam_s_c(target):
    """A whole run on N(m, S) ends at N(m + lam S c, S)."""
    strength, steps, batch = 0.25, 400, 512
    objective = TDM(
        rollout="full", fake_target=target, importance="none", distance="l2", fresh_noise=0.1
    )
    networks = {"student": Steps(), "fake": Steps()}
    engines = {
        role: TorchEngine(
            network, OptimConfig(lr=rate, clip=0, schedule="linear"), total_steps=steps, ema=0.98
        )
        for (role, network), rate in zip(networks.items(), (0.02, 0.06))
    }
    roles, streams, mean = Roles(**networks, teacher=Student()), Streams(0), RunningMean(dict)

    def reweigh(number, calls):
        [call] = calls
        finished = finish(call.roles.student, call.path, GRID)
        [call.weight], _ = mean.weigh([strength * (finished @ REWARD).detach()])
        return calls

    for step in range(steps):
        outcome = iterate(
            step,
            [Cond({})],
            (batch, 2),
            objective=objective,
            roles=roles,
            engines=engines,
            grid=GRID,
            streams=streams,
            reweigh=reweigh,
        )
        assert outcome.failed is None
    student = networks["student"]
    student.load_state_dict(engines["student"].weights(averaged=True))
    z = torch.randn(20_000, 2, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        found = sample(student, z, Cond({}), GRID)
    expected = strength * SPREAD**2 * REWARD
    torch.testing.assert_close(found.mean(0) - MEAN, expected, atol=0.05, rtol=0)
    assert found.std(0).tolist() == pytest.approx([SPREAD, SPREAD], abs=0.08)
