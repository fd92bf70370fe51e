"""Time-dependent guidance gives the same result as the stock CogVideoX pipeline."""

from dataclasses import asdict

import pytest
import torch
from refusals import refused
from scales import assert_close

from tdmvid.backbones.registry import families, load_backbone
from tdmvid.config import ClipSize, ModelConfig, RunConfig, TeacherSampling, from_dict
from tdmvid.diffusion.grid import uniform
from tdmvid.diffusion.sampler import ddim
from tdmvid.roles.guidance import check_guidance, guide
from tdmvid.sampling.sample import Sampler
from tdmvid.sampling.student import check_guidance as check_stock_guidance

CFG, STEPS = 6.0, 5


@pytest.fixture
def sampled(tiny_cogvideox):
    """`sampled(settings, **call)`: latents of our teacher, and of the stock call."""
    backbone = load_backbone(ModelConfig(path=str(tiny_cogvideox("sincos"))), ClipSize(9, 32, 32))
    z = torch.randn(2, *backbone.latent_shape(), generator=torch.Generator().manual_seed(3))
    prompts, null = ["a red circle", "a blue square"], backbone.encode_prompts([""])
    grid = uniform(STEPS, backbone.process)

    def both(settings, **call):
        config = from_dict(
            RunConfig, {"objective": {"cfg": CFG, **settings}, "log": {"teacher_steps": STEPS}}
        )
        denoiser = guide(config, backbone.denoiser(backbone.network), null)
        pipeline = backbone.stock.whole_pipeline()
        pipeline.scheduler = backbone.student_scheduler(grid)
        theirs = pipeline(
            prompt=prompts,
            latents=z,
            num_inference_steps=STEPS,
            guidance_scale=CFG,
            output_type="latent",
            return_dict=False,
            **backbone.stock.arguments(),
            **call,
        )[0]
        with torch.no_grad():
            ours = ddim(denoiser, z, backbone.encode_prompts(prompts), grid)
        return ours, theirs.float()

    return both


def test_dynamic_guidance_is_that_of_the_stock_call(sampled):
    ours, theirs = sampled({"use_dynamic_cfg": True}, use_dynamic_cfg=True)
    assert_close(ours, theirs, 1e-4)
    constant, _ = sampled({})
    assert (ours - constant).norm() > 1e-3 * constant.norm()


def test_the_teacher_of_an_evaluation_has_dynamic_guidance_too(tiny_cogvideox, sampled):
    backbone = load_backbone(ModelConfig(path=str(tiny_cogvideox("sincos"))), ClipSize(9, 32, 32))
    z = torch.randn(2, *backbone.latent_shape(), generator=torch.Generator().manual_seed(3))
    teacher = from_dict(TeacherSampling, {"steps": STEPS, "cfg": CFG, "use_dynamic_cfg": True})
    sampler, pipeline = Sampler(None, **asdict(teacher)), backbone.stock.pipeline()
    pipeline.scheduler = backbone.student_scheduler(uniform(STEPS, backbone.process))
    found = backbone.stock.latents(
        pipeline,
        z,
        backbone.encode_prompts(["a red circle", "a blue square"]),
        steps=STEPS,
        cfg=CFG,
        null=backbone.encode_prompts([""]),
        guidance=sampler.guidance,
    )
    assert_close(found, sampled({"use_dynamic_cfg": True})[0], 1e-4)
    check_stock_guidance(backbone, sampler.guidance)
    with refused("cfg_2=3.0", "CogVideoXPipeline"):
        check_stock_guidance(backbone, Sampler(cfg=6, cfg_2=3.0).guidance)


def test_an_interval_is_that_of_a_stock_call_whose_scale_is_set_before_each_step(sampled):
    times = [1 - k / STEPS for k in range(STEPS)]
    low, high = 0.35, 0.9

    def set_scale(pipeline, step, timestep, tensors):
        following = times[min(step + 1, STEPS - 1)]
        pipeline._guidance_scale = CFG if low <= following <= high else 1.0
        return tensors

    # The first step is at t = 1, above the interval, so the call itself sets its scale.
    ours, theirs = sampled({"cfg_interval": [low, 1.0]}, callback_on_step_end=set_scale)
    assert_close(ours, theirs, 1e-4)
    narrower, _ = sampled({"cfg_interval": [low, high]})
    assert (ours - narrower).norm() > 1e-3 * ours.norm()


@pytest.mark.parametrize(
    "settings, fact",
    [
        ({"cfg": 6, "cfg_interval": [0.9, 0.2]}, "objective.cfg_interval=[0.9, 0.2]"),
        ({"cfg": 6, "cfg_interval": [0.9]}, "objective.cfg_interval=[0.9]"),
        ({"cfg": 6, "cfg_interval": [0.2, 1.5]}, "objective.cfg_interval=[0.2, 1.5]"),
        ({"cfg": 1, "cfg_interval": [0.2, 0.9]}, "objective.cfg_interval=[0.2, 0.9]"),
        ({"cfg": 1, "use_dynamic_cfg": True}, "objective.use_dynamic_cfg=true"),
    ],
)
def test_a_schedule_that_does_nothing_is_refused(settings, fact):
    with refused(fact):
        from_dict(RunConfig, {"objective": settings})


def test_a_family_whose_stock_call_has_no_dynamic_guidance_refuses_it():
    config = from_dict(RunConfig, {"objective": {"cfg": 5, "use_dynamic_cfg": True}})
    check_guidance(config, families()["CogVideoXPipeline"])
    with refused("objective.use_dynamic_cfg=true", "WanPipeline"):
        check_guidance(config, families()["WanPipeline"])
