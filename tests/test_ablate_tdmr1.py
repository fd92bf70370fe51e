"""TDM-R1 of the ablations: what it reduces to, and what its surrogate learns."""

from dataclasses import replace

import pytest
import torch

from ablations.rewards import RewardsSuite
from ablations.tdmr1 import Epoch
from ablations.tdmr1_mixture import TDMR1
from ablations.toy import toy
from tdmvid.diffusion.denoiser import Cond, Guided
from tdmvid.diffusion.grid import uniform
from tdmvid.diffusion.sampler import Trajectory
from tdmvid.distill.objective import Roles

SUITE = RewardsSuite()
PROCESS, BATCH = SUITE.process, 64
GRID = uniform(4, PROCESS)


def turns(**changes):
    recipe = replace(SUITE._as(TDMR1), iterations=200, **changes)
    return recipe.turns(toy.VelocityNetwork(PROCESS, width=16))


class Teacher:
    """A prediction that depends on its condition."""

    process = PROCESS

    def __call__(self, x_t, t, cond):
        return 0.5 * x_t + cond.get("offset", 0.0)


def test_without_the_reward_it_is_tdm_up_to_the_normaliser():
    """With the weight cfg - 1 of teacher(cond) - teacher(null) and 0 of the reward (l2)."""
    cfg, draws = 3.5, torch.Generator().manual_seed(0)
    made = turns(guidance=cfg - 1, weight=0.0, normaliser="teacher")
    null = Cond({"offset": torch.zeros(1, 2)})
    made.surrogate = replace(made.surrogate, null=null)
    x, offset = torch.randn(2, BATCH, 2, generator=draws)
    k = torch.full((BATCH,), 2)
    times = [torch.full((BATCH,), GRID.times[i]) for i in (1, 2)]
    path = Trajectory(x, k, *times, Cond({"offset": offset}))
    x0_hat = torch.randn(BATCH, 2, generator=draws).requires_grad_()
    objective, teacher = toy.build_objective(SUITE.base.objective), Teacher()
    fake = toy.VelocityNetwork(PROCESS, width=16, seed=3)
    draw = objective.draw(path, x0_hat, draws, PROCESS)
    mine = made.student_loss(Roles(None, fake, teacher), draw, path, draws)
    guided = Roles(None, fake, Guided(teacher, null, cfg))
    theirs = objective.loss("student", guided, draw, path.cond)["loss"]
    gradients = [torch.autograd.grad(loss, x0_hat)[0] for loss in (mine, theirs)]
    norms = [
        (x0_hat.detach() - each(draw.x_tau, draw.tau, path.cond)).abs().mean(1, keepdim=True)
        for each in (teacher, guided.teacher)
    ]
    assert gradients[0].abs().max() > 1e-3
    torch.testing.assert_close(gradients[0] * norms[0], gradients[1] * norms[1])


def epoch(advantage):
    """Trajectories whose states are the noised modes 1 and -1; `advantage` is that of mode 1."""
    draws = torch.Generator().manual_seed(0)
    right = torch.rand(BATCH, generator=draws) < 0.5
    clean = torch.where(right[:, None], 1.0, -1.0).expand(BATCH, 2)
    states = []
    for time in GRID.times:
        t, noise = torch.full((BATCH,), time), torch.randn(BATCH, 2, generator=draws)
        states.append(PROCESS.noise(clean, noise, t))
    return Epoch(states, toy.NULL, torch.where(right, advantage, -advantage), [1, 2])


@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_the_surrogate_moves_towards_the_samples_of_a_positive_advantage(advantage):
    made = turns(group=16, clip=1e9, early=0.5)
    made.epoch = epoch(advantage)
    for step in range(60):
        loss, _ = made._preference(GRID, torch.Generator().manual_seed(step))
        made.surrogate.engine.backward(loss)
        made.surrogate.engine.step()
    x, t = torch.randn(256, 2, generator=torch.Generator().manual_seed(1)), torch.full((256,), 0.9)
    with torch.no_grad():
        moved = made.surrogate.network(x, t, toy.NULL) - made.surrogate.reference(x, t, toy.NULL)
    assert float(moved.mean()) * advantage > 0.02


def test_samples_that_have_moved_enough_no_longer_contribute():
    made = turns(clip=0.1)
    made.epoch = Epoch([], toy.NULL, torch.tensor([1.0, 1.0, -1.0, -1.0]), [])
    old = torch.ones(4)
    d = torch.tensor([0.5, 0.95, 1.5, 1.05])  # the first and the third changed by more than 10 %
    assert made._counted(d, old, old, False).tolist() == [0, 1, 0, 1]
    d = torch.tensor([0.95, 1.05, 0.95, 1.05])  # far away, only the wrong side contributes
    assert made._counted(d, old, old, True).tolist() == [0, 1, 1, 0]


def test_advantages_are_relative_to_the_group():
    made = turns(group=16)
    found = made._sampled(0, (BATCH, 2), made.surrogate.reference, toy.NULL, GRID, toy.Streams(0))
    assert len(found.states) == 5 and sorted(found.order) == [1, 2, 3, 4]
    groups = found.advantage.view(-1, 16)
    torch.testing.assert_close(groups.mean(1), torch.zeros(4), atol=1e-5, rtol=0)
    assert found.advantage.std() == pytest.approx(1, abs=0.3)
