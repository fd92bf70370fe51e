"""Guidance of the teacher uses the negative prompt of the config or the command line."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from families import wan
from refusals import refused
from tiny import tiny_pipeline

from tdmvid.backbones.registry import load_backbone
from tdmvid.config import (
    ClipSize,
    ModelConfig,
    RunConfig,
    TeacherSampling,
    from_dict,
    load_config,
    read_settings,
)
from tdmvid.config.resources import find_evaluation
from tdmvid.parallel import launch
from tdmvid.plan.describe import _guidance
from tdmvid.sampling.sample import Sampler, sample_videos
from tdmvid.sampling.shots import plan_shots
from tdmvid.sampling.student import set_flow_shift
from tdmvid.train.run import build_run

NEGATIVE = "a blue square moves left"


@pytest.fixture(scope="module")
def guided(tiny_run, tmp_path_factory):
    """A run whose teacher uses the negative prompt NEGATIVE."""
    out = tmp_path_factory.mktemp("negative")
    config = tiny_run(out, f"prompts.negative={NEGATIVE}", "objective.cfg=3")
    return build_run(config, launch.start("none"))


def embedding(run, prompt):
    return run.backbone.encode_prompts([prompt])["prompt_embeds"]


def test_it_is_what_the_teacher_is_guided_away_from_in_training(guided):
    found = guided.roles.teacher.null["prompt_embeds"]
    torch.testing.assert_close(found, embedding(guided, NEGATIVE))
    assert not torch.equal(found, embedding(guided, ""))


def test_a_checkpoint_of_another_negative_prompt_is_another_run(guided):
    prompts = replace(guided.config.prompts, negative="")
    plain = replace(guided, config=replace(guided.config, prompts=prompts))
    differing = {k for k, v in plain.fingerprint.items() if guided.fingerprint[k] != v}
    assert differing == {"prompts.negative"}


def test_a_plan_says_it(guided):
    said = _guidance(guided.config, None)
    assert NEGATIVE in said and "3" in said


def test_the_stock_pipeline_samples_the_teacher_with_it(tiny_cogvideox, tmp_path, monkeypatch):
    size = ClipSize(frames=9, height=32, width=32)
    backbone = load_backbone(ModelConfig(path=str(tiny_cogvideox("sincos"))), size)
    nulls, latents = [], type(backbone.stock).latents

    def kept(stock, *args, null, **options):
        nulls.append(null["prompt_embeds"])
        return latents(stock, *args, null=null, **options)

    monkeypatch.setattr(type(backbone.stock), "latents", kept)
    shots = plan_shots(["a red circle"], (0,), frames=9)
    out = tmp_path / "out"
    common = {"backbone": backbone, "world": launch.start("none"), "cache": tmp_path / "cache"}
    made = sample_videos(out, shots, sampler=Sampler(None, 2, 3.0, NEGATIVE), **common)
    assert made[0]["settings"]["negative"] == NEGATIVE
    torch.testing.assert_close(nulls[0], backbone.encode_prompts([NEGATIVE])["prompt_embeds"])
    with refused(NEGATIVE):
        sample_videos(out, shots, sampler=Sampler(None, 2, 3.0), **common)
    with refused("negative") as caught:
        sample_videos(out, shots, sampler=Sampler(None, 2, 3.0, "blur " * 99), **common)
    assert str(caught.value).count("blur") < 20
    with refused("cfg=1"):
        sample_videos(tmp_path / "off", shots, sampler=Sampler(None, 2, 1.0, NEGATIVE), **common)


def test_where_there_is_no_guidance_it_is_refused():
    settings = {"prompts": {"negative": NEGATIVE}}
    with refused("prompts.negative", NEGATIVE, "objective.cfg=1.0"):
        from_dict(RunConfig, settings)
    from_dict(RunConfig, settings | {"objective": {"cfg": 3}})
    with refused("teacher.negative", "teacher.cfg=1.0"):
        TeacherSampling(cfg=1.0, negative=NEGATIVE)


@pytest.mark.parametrize("name", ["wan1.3b", "wan14b"])
def test_wan_is_scored_beside_the_teacher_that_it_is_trained_on(name):
    run, teacher = load_config(f"{name}_4nfe"), read_settings(find_evaluation(f"vbench_{name}"))
    teacher = from_dict(TeacherSampling, teacher["teacher"])
    assert (teacher.cfg, teacher.shift) == (run.objective.cfg, run.log.teacher_shift)
    assert teacher.negative == run.prompts.negative != ""


def test_a_flow_shift_moves_the_times_of_a_stock_pipeline():
    """s' = shift s / (1 + (shift - 1) s), relative to another shift of the same scheduler."""
    pipeline = wan.build("cross_norm")

    def times(shift):
        set_flow_shift(pipeline, shift)
        pipeline.scheduler.set_timesteps(4)
        return pipeline.scheduler.sigmas[:-1].double()

    even = times(1.0)
    for shift in (2.0, 8.0):
        expected = shift * even / (1 + (shift - 1) * even)
        torch.testing.assert_close(times(shift), expected, rtol=1e-5, atol=1e-6)


def test_a_given_shift_replaces_one_that_depends_on_the_size():
    """FLUX.1, FLUX.2 and Qwen-Image: exp(mu) is otherwise used in place of the shift."""
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift_terminal=0.02)
    pipeline = SimpleNamespace(scheduler=scheduler)
    set_flow_shift(pipeline, 7.0)
    even = torch.linspace(1, 1 / 4, 4, dtype=torch.float64)
    pipeline.scheduler.set_timesteps(sigmas=even.tolist(), mu=1.15)
    found = pipeline.scheduler.sigmas[:-1].double()
    torch.testing.assert_close(found, 7 * even / (1 + 6 * even), rtol=1e-5, atol=1e-6)


def test_a_scheduler_without_a_flow_shift_is_named():
    with refused("shift=5", "CogVideoXDDIMScheduler"):
        set_flow_shift(tiny_pipeline("sincos"), 5.0)
