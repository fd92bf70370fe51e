"""A plan counts what rewards decode and store."""

import json
import math

import pytest
import torch

from tdmvid.parallel import launch
from tdmvid.plan.describe import describe
from tdmvid.plan.make import make_plan
from tdmvid.plan.storage import count_storage
from tdmvid.train import trainer
from tdmvid.train.run import build_run


def rewards(**changes):
    return f"rewards={json.dumps([{'function': 'saturation'} | changes])}"


BATCH = ("batch.micro=4", "batch.accumulation=2")


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes, each",
    [
        (["objective.rollout=stream"], 1 / 2),
        (["objective.rollout=stream", "objective.step_set=[1,2]"], 3 / 4),
        (["objective.rollout=full"], 1),
    ],
)
def test_a_run_scores_and_decodes_as_many_samples_as_planned(tiny_run, tmp_path, changes, each):
    config = tiny_run(tmp_path, "grid.steps=2", rewards(), *BATCH, "steps=24", *changes)
    work = make_plan(config).rewards
    assert work.samples == work.decoded == 8 * each and work.flops > 0
    run = build_run(config, launch.start("none"))
    decoded, decode = [], run.rewards.decode

    def counted(latents):
        decoded.append(len(latents))
        return decode(latents)

    run.rewards.decode = counted
    for step in range(24):
        trainer._iteration(run, step)
    first = decoded[0] if config.objective.rollout == "stream" else 0  # of the first rollout
    assert sum(decoded) == pytest.approx(24 * work.decoded, abs=2 * 8 + first)


@pytest.mark.slow
def test_stored_trajectories_and_decoding_are_in_the_plan_s_memory(tiny_run, tmp_path):
    plain = make_plan(tiny_run(tmp_path, "objective.rollout=stream", *BATCH))
    config = tiny_run(tmp_path, "objective.rollout=stream", rewards(), *BATCH)
    made = make_plan(config, like=plain)
    run = build_run(config, launch.start("none"))
    run.stream.begin(run.roles.student, trainer.micro_batches(run, 0))
    stored = [
        history
        for ended in run.stream.ended
        for each in (ended.going, ended.past)
        for history in vars(each).values()
    ]
    held = sum(x.numel() * x.element_size() for x in stored if isinstance(x, torch.Tensor))
    assert made.memory()["finished trajectories"] == held
    assert "finished trajectories" not in plain.memory()
    moments = made.moments()
    assert "scoring with rewards" not in plain.moments()
    rest = moments["training"] - math.fsum(
        made.memory().get(name, 0.0) for name in ("activations", "working memory", "gradients")
    )
    assert moments["scoring with rewards"] == rest + 4 * made.pipeline.decoding
    assert "scored and" in describe(made) and "scored and" not in describe(plain)


@pytest.mark.slow
def test_checkpoints_hold_the_trajectories_of_all_ranks(tiny_run, tmp_path):
    changes = (rewards(), *BATCH, "objective.rollout=stream")
    for ranks in (1, 2):
        plan = make_plan(tiny_run(tmp_path, *changes), ranks=ranks)
        plain = make_plan(tiny_run(tmp_path, *changes, "rewards=[]"), ranks=ranks)
        kept = plan.config.log.keep_checkpoints + 1
        more = count_storage(plan).checkpoints - count_storage(plain).checkpoints
        assert more == kept * ranks * plan.rewards.kept > 0


def test_rewards_of_latents_decode_nothing(tiny_run, tmp_path):
    work = make_plan(tiny_run(tmp_path, rewards(input="latents"), *BATCH)).rewards
    assert work.samples > 0 and work.decoded == work.flops == work.decoding == 0


@pytest.mark.slow
def test_only_the_frames_that_rewards_get_are_decoded(tiny_run, tmp_path):
    whole = make_plan(tiny_run(tmp_path, rewards(), *BATCH))
    config = tiny_run(tmp_path, rewards(frames=1), *BATCH)
    made = make_plan(config, like=whole)
    assert config.video.frames == 9
    assert 0 < made.rewards.flops < whole.rewards.flops / 4
    assert 0 < made.rewards.decoding < whole.rewards.decoding
    assert made.pipeline.decoding == whole.pipeline.decoding
    run = build_run(config, launch.start("none"))
    given, seen, decode = [], [], run.rewards.decode
    run.rewards.decode = lambda latents: given.append(latents.shape) or decode(latents)
    run.rewards.scorers[0]._function = lambda x, prompts: (
        seen.append(x.shape) or x.flatten(1).mean(1)
    )
    trainer._iteration(run, 0)
    assert given and {shape[1] for shape in given} == {1}  # [B, F, C, H, W]
    assert seen and {shape[2] for shape in seen} == {1}
