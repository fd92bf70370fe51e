"""A teacher whose network reads the guidance scale: FLUX.1 dev."""

import json

import pytest
from contract_cases import Case, noise
from refusals import refused
from torch.testing import assert_close

from tdmvid.backbones.flux1 import Flux1
from tdmvid.backbones.qwen_image import QwenImage
from tdmvid.config import RunConfig, from_dict, load_config
from tdmvid.diffusion.grid import shifted
from tdmvid.diffusion.sampler import ddim
from tdmvid.export.card import _guidance, _learned_guidance
from tdmvid.plan.describe import _guidance as stated_guidance
from tdmvid.plan.make import make_plan
from tdmvid.roles.guidance import check_guidance, guide
from tdmvid.sampling.student import stock_defaults


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    return Case("FluxPipeline", "base", tmp_path_factory.mktemp("flux1"))


def test_one_call_a_step_gives_the_stock_pipeline_s_guided_latents(case):
    sampled = {}
    for scale in (None, 1.0, 8.0):
        backbone, stock = case.backbone(guidance=scale), case.stock()
        grid, z = shifted(4, 2.0, backbone.process), noise(backbone)
        stock.scheduler = backbone.student_scheduler(grid)
        denoiser = backbone.denoiser(backbone.network)
        teacher = guide(from_dict(RunConfig, {"objective": {"cfg": 1.0}}), denoiser, None)
        sampled[scale] = ddim(teacher, z, case.cond(backbone), grid)
        assert denoiser.evaluated == 4 * len(z)
        packed = backbone.stock.write_latents(z)
        call = {"guidance_scale": 3.5 if scale is None else scale, "output_type": "latent"}
        theirs = stock(
            ["a red circle moves left", "a blue square"],
            height=32,
            width=48,
            latents=packed,
            num_inference_steps=4,
            return_dict=False,
            **call,
        )[0]
        assert_close(sampled[scale], backbone.stock.read_latents(theirs), atol=1e-4, rtol=1e-4)
    assert (sampled[8.0] - sampled[1.0]).abs().mean() > 1e-3


def test_a_stock_call_makes_one_call_a_step_by_default(case):
    """Its `guidance_scale` of 3.5 is the embedded one."""
    assert stock_defaults(case.backbone())[1] == 1.0


def test_only_a_family_that_reads_a_scale_takes_one():
    config = from_dict(RunConfig, {"model": {"guidance": 3.5}})
    check_guidance(config, Flux1)
    with refused("model.guidance=3.5", "QwenImagePipeline", "objective.cfg"):
        check_guidance(config, QwenImage)


def test_a_student_s_facts_and_its_call_state_the_scale(case):
    stock = case.backbone(guidance=2.5).stock
    assert "guidance_scale=2.5" in stock.arguments_code()
    assert stock.guidance(1.0) == {"true_cfg_scale": 1.0}


def test_a_card_has_the_guidance_of_the_stock_call(case, tmp_path):
    flux, z_image = case.backbone(guidance=2.5), Case("ZImagePipeline", "base", tmp_path).backbone()
    assert _guidance(flux) == "`true_cfg_scale=1.0` (off), `guidance_scale=2.5` (for the network)"
    assert _guidance(z_image) == "`guidance_scale=0.0` (off)"
    teacher = {"guidance": 5.0, "negative_prompt": ""}
    assert _learned_guidance(teacher, z_image).popitem()[1] == "`guidance_scale=4`"


def test_a_plan_states_the_scale_that_the_network_reads():
    plain, guided = (load_config("flux1_dev_4nfe", [f"objective.cfg={cfg}"]) for cfg in (1, 2))
    read = "scale 3.5, read by the network"
    assert stated_guidance(plain, Flux1.embedded_guidance) == read
    said = stated_guidance(guided, Flux1.embedded_guidance)
    assert said.startswith("scale 2;") and said.endswith("in addition to " + read)
    assert stated_guidance(plain, None) == "none"


@pytest.mark.slow
def test_a_plan_has_no_second_branch():
    plain = make_plan(load_config("flux1_dev_4nfe"), ranks=8)
    guided = make_plan(load_config("flux1_dev_4nfe", ["objective.cfg=2"]), ranks=8)
    assert plain.calls.forwards < guided.calls.forwards


@pytest.mark.parametrize(
    "name, file, change, fact",
    [
        ("FluxPipeline", "transformer/config.json", {"guidance_embeds": False}, "guidance_embeds"),
        ("Flux2KleinPipeline", "model_index.json", {"is_distilled": True}, "is_distilled"),
    ],
)
def test_a_model_that_is_already_distilled_is_refused(tmp_path, name, file, change, fact):
    case = Case(name, "base", tmp_path)
    case.backbone()
    path = tmp_path / file
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with refused(tmp_path, fact, "black-forest-labs"):
        case.backbone()
