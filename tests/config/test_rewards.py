"""Settings that do not work with rewards are refused by name."""

import json

import pytest
from refusals import refused

from tdmvid.config import load_config, names_of

MOTION = {"function": "motion"}


def run(*rewards, **objective):
    changes = [f"objective.{name}={value}" for name, value in objective.items()]
    return load_config(
        "shapes_4nfe", ["objective.draws=own", f"rewards={json.dumps(rewards)}", *changes]
    )


@pytest.mark.parametrize("rollout", ["stop", "full", "stream"])
def test_tdm_takes_rewards_with_any_rollout(rollout):
    [reward] = run(MOTION, rollout=rollout).rewards
    assert reward.function == "motion" and reward.strength == 1.0


@pytest.mark.parametrize(
    "objective, facts",
    [
        ({"kind": "gan"}, ["objective.kind='gan'", "tdm"]),
        ({"kind": "dmd2"}, ["objective.segments='everywhere'", "separate"]),
        (
            {"match": "clean", "segments": "everywhere"},
            ["objective.segments='everywhere'", "separate"],
        ),
        ({"kind": "fisher", "fake_weight": "snr"}, ["objective.kind='fisher'", "tdm"]),
        ({"rollout": "stream", "draws": "shared"}, ["objective.draws='shared'", "own"]),
        (
            {"rollout": "stream", "fake_updates": 3, "fake_trajectories": "fresh"},
            ["objective.fake_updates=3", "same"],
        ),
    ],
)
def test_what_no_reward_can_reach_is_refused(objective, facts):
    assert not run(**objective).rewards
    with refused(*facts):
        run(MOTION, **objective)


@pytest.mark.parametrize(
    "changes, facts",
    [
        ({"function": ""}, ["rewards[0].function=''", "package.module:name"]),
        ({"strength": 0}, ["rewards[0].strength=0.0"]),
        ({"strength": 5000}, ["rewards[0].strength=5000.0", "1,000"]),
        ({"timeout": 3}, ["rewards[0].timeout=3.0", "own"]),
        ({"device": "cuda:1"}, ["rewards[0].device='cuda:1'", "own"]),
        ({"input": "latents", "process": "own"}, ["rewards[0].process='own'", "samples"]),
        ({"frames": 8}, ["rewards[0].frames=8", "9"]),
        ({"frames": 9, "input": "latents"}, ["rewards[0].frames=9", "samples"]),
        ({"frames": 1}, ["rewards[0].frames=1", "motion"]),
        ({"deviation_samples": 1}, ["rewards[0].deviation_samples=1"]),
        ({"strenght": 1}, ["rewards[0].strenght", "strength"]),
    ],
)
def test_a_wrong_setting_of_a_reward_is_refused_by_its_place(changes, facts):
    with refused(*facts):
        run(MOTION | changes)


def test_a_reward_sees_no_more_frames_than_a_sample_has():
    assert run(MOTION | {"frames": 9}).video.frames == 9
    with refused("video.frames=9", "rewards.frames"):
        run(MOTION | {"frames": 17})


def test_a_measure_is_listed_once_and_a_function_with_each_of_its_models():
    with refused("rewards", "twice"):
        run(MOTION, MOTION | {"strength": 2})
    both = run({"function": "clip"}, MOTION, {"function": "clip", "model": "other"}).rewards
    assert names_of(both) == ["clip", "motion", "clip_2"]


@pytest.mark.parametrize(
    "rewards, objective, facts",
    [
        ([MOTION], {"rollout": "stream"}, ["objective.reward_weights='student'", "full"]),
        (
            [MOTION],
            {"rollout": "full", "distance": "huber_vector"},
            ["objective.reward_weights='student'", "l2"],
        ),
        ([], {"rollout": "full"}, ["objective.reward_weights='student'", "no effect"]),
    ],
)
def test_the_student_s_loss_is_weighted_where_that_has_an_effect(rewards, objective, facts):
    assert run(MOTION, rollout="full", reward_weights="student").rewards
    with refused(*facts):
        run(*rewards, **objective, reward_weights="student")


@pytest.mark.parametrize("rewards, rollout", [([], "stream"), ([MOTION], "full")])
def test_stored_predictions_need_finished_trajectories(rewards, rollout):
    assert run(MOTION, rollout="stream", finished_predictions="stored").rewards
    with refused("objective.finished_predictions", "no effect"):
        run(*rewards, rollout=rollout, finished_predictions="stored")
