"""The rewards of a run: unit and warm-up of the strength, the warning, and the checkpoint."""

import json
from dataclasses import replace

import pytest
import torch
from refusals import refused

from tdmvid.config import BatchConfig, RewardConfig, RunConfig, TDMSettings
from tdmvid.data.prompts import PromptOrder
from tdmvid.diffusion.denoiser import Cond
from tdmvid.diffusion.grid import uniform
from tdmvid.diffusion.process import RectifiedFlow
from tdmvid.distill.iteration import GradedPath
from tdmvid.distill.objective import Roles, build_objective
from tdmvid.distill.stream import Stream
from tdmvid.parallel import launch
from tdmvid.parallel.rng import Streams
from tdmvid.train.rewards import FILE, Rewards

PROCESS = RectifiedFlow()
PROMPTS = ["first", "second"]


def first(samples, prompts):
    return samples[:, 0]


def second(samples, prompts):
    return samples[:, 1]


def rewards(*settings, batch=64):
    chosen = tuple(
        RewardConfig(input="latents", **{"function": f"{__name__}:first"} | each)
        for each in settings
    )
    config = RunConfig(
        objective=TDMSettings(rollout="full"), rewards=chosen, batch=BatchConfig(micro=batch)
    )
    order, world = PromptOrder(len(PROMPTS), 0), launch.start("none")
    conds = conditions
    return Rewards(config, world, Streams(0), lambda x: x, conds, PROMPTS, order, None)


def conditions(indices):
    return Cond({"prompt": torch.tensor(indices, dtype=torch.float32)})


def student(x_t, t, cond):
    """Samples of prompt i are N(10 i, 2^2); the second value has a deviation of 0.02."""
    return 10 * cond["prompt"][:, None] + torch.tensor([2.0, 0.02]) * x_t


student.process = PROCESS


def test_the_unit_of_the_strength_is_the_first_student_s_deviation_within_a_prompt():
    """Not the deviation over prompts, which is 5 more; and at least the floor."""
    unit = {"normalise": "prompt", "deviation_prompts": 4, "deviation_samples": 200}
    small = unit | {"function": f"{__name__}:second", "floor": 0.1}
    made = rewards(unit, small)
    made.prepare(student, uniform(1, PROCESS), (2,))
    assert made.scale[0] == pytest.approx(2, rel=0.1) and made.scale[1] == 0.1
    plain = rewards({})
    plain.prepare(student, uniform(1, PROCESS), (2,))
    assert plain.scale == [1.0]


def test_the_strength_rises_over_the_warm_up():
    draws = torch.Generator().manual_seed(0)
    for step, share in ((0, 0.25), (2, 0.75), (3, 1.0), (9, 1.0)):
        found = torch.randn(64, 1, generator=draws)
        [weights] = rewards({"strength": 2.0, "warmup": 4})._weigh(step, [found])
        expected = (-2.0 * share * found[:, 0]).exp()
        torch.testing.assert_close(weights, expected / expected.mean())


def test_several_rewards_add_up():
    found = torch.randn(64, 2, generator=torch.Generator().manual_seed(0))
    made = rewards({"strength": 2.0}, {"strength": -0.5, "function": f"{__name__}:second"})
    [weights] = made._weigh(0, [found])
    expected = (-2.0 * found[:, 0] + 0.5 * found[:, 1]).exp()
    torch.testing.assert_close(weights, expected / expected.mean())
    assert made.scalars[f"reward/{__name__}:first"] == pytest.approx(float(found[:, 0].mean()))


def test_a_run_warns_once_if_a_few_samples_dominate(capsys):
    found = torch.zeros(64, 1)
    found[0] = -10.0
    made = rewards({"strength": 1.0})
    made._weigh(6, [torch.zeros(64, 1)])
    assert not capsys.readouterr().err
    for _ in range(2):
        made._weigh(7, [found])
    message = capsys.readouterr().err
    assert message.count("warning") == 1
    for fact in ("step 7", "ess/reward", "rewards.strength", "batch"):
        assert fact in message


@pytest.mark.parametrize("samples, warns", [(1, False), (2, True)])
def test_the_share_of_a_single_sample_is_no_reason_to_warn(capsys, samples, warns):
    found = torch.zeros(samples, 1)
    found[0] = -10.0
    rewards({"strength": 1.0}, batch=samples)._weigh(0, [found])
    assert ("warning" in capsys.readouterr().err) is warns


@pytest.mark.parametrize("predictions, moved", [("renewed", 1.0), ("stored", 0.0)])
def test_the_fake_learns_what_the_present_student_predicts(predictions, moved):
    """On the states of finished trajectories, which an earlier student made."""
    objective = TDMSettings(rollout="stream", finished_predictions=predictions)
    chosen = (RewardConfig(input="latents", function=f"{__name__}:first"),)
    config = RunConfig(objective=objective, rewards=chosen, batch=BatchConfig(micro=8))
    grid, streams = uniform(4, PROCESS), Streams(0)
    stream = Stream(build_objective(objective), [grid], streams, (8, 2), rewards=1)
    order, world = PromptOrder(len(PROMPTS), 0), launch.start("none")
    slots = [order.at(position) for position in stream.prompts(0)]
    stream.begin(student, [conditions(slots)])
    made = Rewards(config, world, streams, lambda x: x, conditions, PROMPTS, order, stream)
    made.score_ended()

    def later(x_t, t, cond):
        return student(x_t, t, cond) + 1

    roles = Roles(later, None, None)
    current = GradedPath(stream.path(0, conditions(slots)), roles, keep=True)
    [learned] = made._learned(0, grid, [slots], 0, [current])
    past = student(learned.path.x, learned.path.upper, learned.path.cond)
    torch.testing.assert_close(learned.x0_hat(graded=False), past + moved)


def test_samples_without_a_reward_are_counted_from_the_start_of_the_run(tmp_path):
    """A resumed run goes on counting."""
    made, again = (rewards({"on_failure": "mean"}) for _ in range(2))
    again.load(save_to(tmp_path, made))
    for each, failed in ((made, 3), (again, 2)):
        each.scorers[0].failed = failed
    again.load(save_to(tmp_path, made))
    again.scorers[0].failed += 2
    again._weigh(0, [torch.zeros(4, 1)])
    assert again.scalars[f"failed/{__name__}:first"] == 5
    assert json.loads((save_to(tmp_path, again) / FILE).read_text())["failed"] == [5]


def save_to(folder, made):
    for name, content in made.save().items():
        (folder / name).write_bytes(content)
    return folder


def test_divisor_units_and_means_are_part_of_a_checkpoint(tmp_path):
    made, again = rewards({"strength": 1.0}), rewards({"strength": 1.0})
    draws = torch.Generator().manual_seed(0)
    made.scale, made.means.values = [0.7], [0.3]
    made._weigh(0, [torch.randn(64, 1, generator=draws)])
    save_to(tmp_path, made)
    assert json.loads((tmp_path / FILE).read_text())["log_mean"] == made.mean.log
    again.load(tmp_path)
    found = torch.randn(64, 1, generator=draws)
    assert torch.equal(made._weigh(1, [found])[0], again._weigh(1, [found])[0])
    assert (again.scale, again.means.values) == ([0.7], [0.3])
    with refused(FILE):
        replace(again).load(tmp_path / "elsewhere")
