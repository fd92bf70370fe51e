"""Deterministic samplers compared with diffusers schedulers, and the student's rollout."""

import pytest
import torch
from closeness import assert_near
from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler
from refusals import refused
from tiny import cogvideox_scheduler

from tdmvid.diffusion.denoiser import Cond, Guided
from tdmvid.diffusion.grid import shifted, uniform
from tdmvid.diffusion.guidance import extrapolate_at_norm
from tdmvid.diffusion.process import RectifiedFlow, TabulatedVP
from tdmvid.diffusion.sampler import Before, advance, ddim, ddim_step, rollout, sample

NULL = Cond({})


def network(x, timestep):
    """Stand-in for a network: smooth, of order 1, and dependent on state and time."""
    return torch.tanh(x.roll(1, -1) * 0.7 + (timestep.float() / 300).sin().view(-1, 1)) + 0.2 * x


class Counted:
    """Denoiser around `network` that counts its calls and samples."""

    def __init__(self, process, convert):
        self.process, self.convert, self.calls, self.seen = process, convert, 0, 0

    def __call__(self, x_t, t, cond):
        self.calls, self.seen = self.calls + 1, self.seen + len(x_t)
        return self.convert(x_t, network(x_t, self.process.timestep(t)), t)


def v_denoiser(scheduler):
    process = TabulatedVP(scheduler.alphas_cumprod)
    return Counted(process, process.x0_from_v)


def flow_denoiser():
    process = RectifiedFlow()
    return Counted(process, process.x0_from_velocity)


def noise(batch=3, seed=0):
    return torch.randn(batch, 6, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("steps", [1, 4, 50])
def test_ddim_is_the_scheduler_of_cogvideox(steps):
    scheduler = cogvideox_scheduler()
    denoiser = v_denoiser(scheduler)
    scheduler.set_timesteps(steps)
    grid = uniform(steps, denoiser.process)
    assert (
        denoiser.process.timestep(torch.tensor(grid.descending())).tolist()
        == scheduler.timesteps.tolist()
    )
    x, predictions = noise(), []
    for timestep in scheduler.timesteps:
        out = scheduler.step(network(x, timestep.expand(len(x))), timestep, x)
        x = out.prev_sample.float()
        predictions.append(out.pred_original_sample)
    ours = []
    sample = ddim(denoiser, noise(), NULL, grid, on_step=lambda k, x0: ours.append((k, x0)))
    assert_near(sample, x, rel=1e-5)
    assert [k for k, _ in ours] == list(range(steps, 0, -1)) and denoiser.calls == steps
    assert_near(torch.stack([x0 for _, x0 in ours]), torch.stack(predictions).float(), rel=1e-5)


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("steps", [4, 50])
def test_flow_ddim_is_flow_matching_euler(steps, shift):
    grid = shifted(steps, shift, RectifiedFlow())
    scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=1.0)
    scheduler.set_timesteps(sigmas=list(grid.descending()))
    x = noise()
    for timestep in scheduler.timesteps:
        x = scheduler.step(network(x, timestep.expand(len(x))), timestep, x).prev_sample
    assert_near(ddim(flow_denoiser(), noise(), NULL, grid), x, rel=1e-5)


def test_a_ddim_step_to_time_zero_is_the_prediction(process):
    x, x0 = noise(seed=1), noise(seed=2)
    stepped = ddim_step(process, x, x0, torch.ones(3), torch.zeros(3))
    assert torch.equal(stepped, x0)


def states_by_hand(denoiser, z, grid):
    """Return the states at s_K, ..., s_1."""
    states, x = [z], z
    for k in range(grid.steps, 1, -1):
        t, s = torch.full((len(z),), grid.times[k]), torch.full((len(z),), grid.times[k - 1])
        x = ddim_step(denoiser.process, x, denoiser(x, t, NULL), t, s)
        states.append(x)
    return dict(zip(range(grid.steps, 0, -1), states))


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_a_rollout_stops_at_the_state_before_call_k(k):
    denoiser, z = v_denoiser(cogvideox_scheduler()), noise()
    grid = uniform(4, denoiser.process)
    expected = states_by_hand(denoiser, z, grid)[k]
    denoiser.calls = 0
    path = rollout(denoiser, z, NULL, grid, torch.full((3,), k), calls=4 - k)
    assert denoiser.calls == 4 - k
    assert torch.equal(path.x, expected) and not path.x.requires_grad
    assert torch.equal(path.upper, torch.full((3,), grid.times[k]))
    assert torch.equal(path.lower, torch.full((3,), grid.times[k - 1]))


def test_each_sample_of_a_full_rollout_gets_the_state_of_its_own_k():
    denoiser, z, k = flow_denoiser(), noise(batch=5), torch.tensor([4, 1, 3, 1, 2])
    grid = uniform(4, denoiser.process)
    states = states_by_hand(denoiser, z, grid)
    denoiser.calls = 0
    path = rollout(denoiser, z, NULL, grid, k, calls=3)
    assert denoiser.calls == 3
    for row, step in enumerate(k.tolist()):
        assert torch.equal(path.x[row], states[step][row])
    assert path.upper.tolist() == [1.0, 0.25, 0.75, 0.25, 0.5]
    assert path.lower.tolist() == [0.75, 0.0, 0.5, 0.0, 0.25]


class ByCond:
    """Denoiser that predicts its conditioning, so guidance is arithmetic on two known numbers."""

    process = RectifiedFlow()

    def __call__(self, x_t, t, cond):
        return cond["c"].expand_as(x_t)


@pytest.mark.parametrize("cfg, expected", [(0.0, 10.0), (1.0, 13.0), (2.5, 17.5)])
def test_guidance_is_null_plus_cfg_times_the_difference(cfg, expected):
    guided = Guided(ByCond(), Cond({"c": torch.tensor([[10.0]])}), cfg)
    found = guided(noise(), torch.ones(3), Cond({"c": torch.full((3, 1), 13.0)}))
    assert torch.equal(found, torch.full((3, 6), expected))


class ByVelocity:
    """Denoiser whose velocity is its conditioning."""

    process = RectifiedFlow()

    def __call__(self, x_t, t, cond):
        return self.process.x0_from_velocity(x_t, cond["v"], t)


@pytest.mark.parametrize("time", [1.0, 0.5, 0.01, 0.0])
def test_rescaled_guidance_keeps_the_norm_of_each_token_s_conditional_velocity(time):
    """Two tokens of two channels: (3, 0) and (3, 4), (0, 1) and (0, -2) without and with prompt."""
    velocity = torch.tensor([[[3.0, 0.0], [4.0, -2.0]]])  # [B, C, N]
    null = torch.tensor([[[3.0, 0.0], [0.0, 1.0]]])
    guided = Guided(ByVelocity(), Cond({"v": null}), 2.0, combine=extrapolate_at_norm)
    x_t = torch.tensor([[[0.3, -0.2], [0.1, 0.7]]])
    found = guided(x_t, torch.tensor([time]), Cond({"v": velocity}))
    # (3, 8) of norm sqrt(73) gets norm 5, (0, -5) gets norm 2
    expected = torch.tensor([[[3.0, 0.0], [8.0, -5.0]]]) * torch.tensor([5 / 73**0.5, 2 / 5])
    torch.testing.assert_close(found, x_t - time * expected, atol=1e-6, rtol=0)


def test_guidance_costs_twice_the_samples_in_one_call_and_cfg_1_costs_none():
    for cfg, seen in ((1.0, 3), (3.0, 6)):
        denoiser = flow_denoiser()
        Guided(denoiser, NULL, cfg)(noise(), torch.ones(3), NULL)
        assert (denoiser.calls, denoiser.seen) == (1, seen)


def test_cond_selects_joins_and_expands_rows():
    cond = Cond({"a": torch.arange(6.0).view(3, 2), "b": torch.arange(3)})
    assert cond.batch == 3 and Cond({}).batch == 0
    assert cond.rows(torch.tensor([2, 0]))["b"].tolist() == [2, 0]
    assert Cond.cat([cond, cond.rows(slice(0, 1))])["a"][-1].tolist() == [0.0, 1.0]
    assert cond.rows(slice(1, 2)).expand(4)["a"].tolist() == [[2.0, 3.0]] * 4


# Other solvers


def dpm_scheduler():
    """Return diffusers' counterpart of `dpm++` (second order, midpoint) for Stable Diffusion."""
    return DPMSolverMultistepScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="sample",
        final_sigmas_type="zero",
    )


@pytest.mark.parametrize("steps", [1, 2, 4, 10])
def test_dpm_is_the_multistep_scheduler_of_diffusers(steps):
    scheduler = dpm_scheduler()
    process = TabulatedVP(scheduler.alphas_cumprod)
    denoiser = Counted(process, lambda x_t, out, t: out)
    grid = uniform(steps, process)
    timesteps = process.timestep(torch.tensor(grid.descending()))
    scheduler.set_timesteps(timesteps=timesteps.tolist())
    x = noise()
    for timestep in scheduler.timesteps:
        x = scheduler.step(network(x, timestep.expand(len(x))), timestep, x).prev_sample
    found = sample(denoiser, noise(), NULL, grid, solver="dpm++")
    assert_near(found, x, rel=1e-5)
    assert denoiser.calls == steps
    if steps > 2:
        assert (found - ddim(denoiser, noise(), NULL, grid)).abs().max() > 1e-2


def test_dpm_starts_from_pure_noise_without_dividing_by_its_alpha(process):
    denoiser = Counted(process, lambda x_t, out, t: out)
    assert process.alpha_sigma(torch.ones(1))[0] == 0
    assert sample(denoiser, noise(), NULL, uniform(4, process), solver="dpm++").isfinite().all()


@pytest.mark.parametrize("solver", ["ddim", "dpm++", "renoise"])
def test_a_rollout_and_one_more_step_is_the_sampler_s_path(process, solver):
    denoiser, grid, z = Counted(process, lambda x_t, out, t: out), uniform(4, process), noise(6)
    k = torch.tensor([4, 3, 2, 1, 2, 3])

    def fresh():
        return torch.Generator().manual_seed(9)

    predictions = {}
    sample(
        denoiser, z, NULL, grid, solver=solver, generator=fresh(), on_step=predictions.__setitem__
    )
    path = rollout(denoiser, z, NULL, grid, k, calls=3, solver=solver, generator=fresh())
    expected = torch.stack([predictions[int(step)][row] for row, step in enumerate(k)])
    assert_near(denoiser(path.x, path.upper, NULL), expected, rel=1e-5)


def test_renoise_keeps_nothing_of_the_old_noise(process):
    x, x0, fresh = noise(seed=1), noise(seed=2), noise(seed=3)
    t, s = torch.full((3,), 0.75), torch.full((3,), 0.5)
    found = advance(process, x, x0, t, s, Before(x0, t), solver="renoise", eps=fresh)
    assert torch.equal(found, process.noise(x0, fresh, s))


def test_renoise_without_a_generator_is_refused():
    with refused("solver='renoise'", "generator"):
        sample(flow_denoiser(), noise(), NULL, uniform(2, RectifiedFlow()), solver="renoise")
