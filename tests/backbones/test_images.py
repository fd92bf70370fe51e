"""Specifics of the image families: quirks of their configs, and refusals."""

import json
import shutil

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, PixArtAlphaPipeline
from families import pixart, sdxl, stable_diffusion
from refusals import refused
from scales import assert_close

from tdmvid.backbones.registry import load_backbone, resolve
from tdmvid.config import ModelConfig
from tdmvid.diffusion.grid import uniform
from tdmvid.parallel.sequence import PlannedGroup

PROMPTS = ["a red circle moves left", "a blue square"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """`folders(module, variant)`: a saved tiny pipeline, made once."""
    made = {}

    def folder(module, variant):
        if (module, variant) not in made:
            torch.manual_seed(0)
            made[module, variant] = tmp_path_factory.mktemp("images")
            module.build(variant).save_pretrained(made[module, variant])
        return made[module, variant]

    return folder


@pytest.fixture
def changed(folders, tmp_path):
    """Return a copy of a tiny pipeline with changed entries in its JSON files."""

    def changed(module, variant, **files):
        copy = shutil.copytree(folders(module, variant), tmp_path / "copy")
        for name, entries in files.items():
            path = copy / {
                "scheduler": "scheduler/scheduler_config.json",
                "index": "model_index.json",
            }.get(name, f"{name}/config.json")
            path.write_text(json.dumps(json.loads(path.read_text()) | entries))
        return copy

    return changed


def load(folder, module=stable_diffusion):
    return load_backbone(ModelConfig(path=str(folder)), module.SIZE)


def x0(backbone, x):
    with torch.no_grad():
        return backbone.predict_x0(
            backbone.network,
            x,
            backbone.process.snap(torch.full((2,), 0.5)),
            backbone.encode_prompts(PROMPTS),
        )


def test_pixart_s_published_configs_name_a_class_that_is_no_more(folders, changed):
    """They name Transformer2DModel in model_index.json and in the network's config."""
    old = changed(
        pixart,
        "512",
        index={"transformer": ["diffusers", "Transformer2DModel"]},
        transformer={
            "_class_name": "Transformer2DModel",
            "num_vector_embeds": None,
            "only_cross_attention": False,
            "double_self_attention": False,
        },
    )
    a, b = load(old, pixart), load(folders(pixart, "512"), pixart)
    x = torch.randn(2, *a.latent_shape(), generator=torch.Generator().manual_seed(0))
    assert torch.equal(x0(a, x), x0(b, x))
    pipeline = PixArtAlphaPipeline.from_pretrained(old)
    assert type(pipeline.transformer) is type(a.network)


@pytest.mark.parametrize("key", ["prompt_attention_mask", "prompt_embeds"])
def test_pixart_reads_only_the_words_of_a_prompt(folders, key):
    backbone = load(folders(pixart, "512"), pixart)
    cond = dict(backbone.encode_prompts(PROMPTS))
    padding = cond["prompt_attention_mask"] == 0
    assert padding.any() and not padding.all()
    x, t = (
        torch.randn(2, *backbone.latent_shape(), generator=torch.Generator().manual_seed(0)),
        torch.full((2,), 0.5),
    )
    with torch.no_grad():
        plain = backbone.predict_x0(backbone.network, x, t, cond)
        if key == "prompt_embeds":  # the content of the padding does not matter
            spoiled = cond | {key: cond[key] + padding[..., None]}
            assert_close(backbone.predict_x0(backbone.network, x, t, spoiled), plain, 1e-5)
        else:
            assert (
                backbone.predict_x0(
                    backbone.network, x, t, cond | {key: torch.ones_like(cond[key])}
                )
                - plain
            ).abs().max() > 1e-3


@pytest.mark.parametrize("module, variant", [(sdxl, "zeros"), (pixart, "1024")])
def test_a_network_that_is_told_the_size_is_told_the_run_s(folders, module, variant):
    backbone, wide = load(folders(module, variant), module), load(folders(module, variant), module)
    x = torch.randn(2, *backbone.latent_shape(), generator=torch.Generator().manual_seed(0))
    wide.size = type(wide.size)(frames=1, height=512, width=1024)
    assert (x0(backbone, x) - x0(wide, x)).abs().max() > 1e-4


def test_an_empty_prompt_is_zeros_only_where_the_pipeline_says_so(folders):
    zeros, encoded = (load(folders(sdxl, variant), sdxl) for variant in sdxl.VARIANTS)
    assert (
        zeros.encode_prompts([""])["prompt_embeds"].abs().max()
        == 0
        < encoded.encode_prompts([""])["pooled_prompt_embeds"].abs().max()
    )
    mixed = zeros.encode_prompts(["a red circle", ""])
    assert (
        mixed["pooled_prompt_embeds"][0].abs().max() > 0
        and mixed["pooled_prompt_embeds"][1].abs().max() == 0
    )
    assert zeros.text_fingerprint() != encoded.text_fingerprint()


@pytest.mark.parametrize("steps, name", [(4, "DDIMScheduler"), (3, "TrajectoryScheduler")])
def test_a_uniform_grid_ships_the_stock_scheduler_where_its_stride_is_whole(folders, steps, name):
    backbone = load(folders(stable_diffusion, "epsilon"))
    scheduler = backbone.student_scheduler(uniform(steps, backbone.process))
    assert type(scheduler).__name__ == name
    scheduler.set_timesteps(steps)
    assert (
        scheduler.timesteps.tolist()
        == backbone.process.timestep(
            torch.tensor(uniform(steps, backbone.process).descending())
        ).tolist()
    )


def test_noise_prediction_from_pure_noise_is_refused(changed):
    with refused("prediction_type='epsilon'", "rescale_betas_zero_snr"):
        load(changed(stable_diffusion, "v", scheduler={"prediction_type": "epsilon"}))


def test_a_scheduler_of_another_process_is_refused(changed):
    folder = changed(stable_diffusion, "epsilon")
    FlowMatchEulerDiscreteScheduler().save_pretrained(folder / "scheduler")
    with refused("FlowMatchEulerDiscreteScheduler", "beta_schedule"):
        load(folder)


def test_a_student_of_guidance_distillation_is_no_teacher(folders, changed, tmp_path):
    folder = changed(stable_diffusion, "epsilon")
    torch.manual_seed(0)
    stable_diffusion.unet(time_cond_proj_dim=16).save_pretrained(folder / "unet")
    with refused("time_cond_proj_dim"):
        load(folder)


def test_a_unet_does_not_share_its_tokens(folders):
    backbone = load(folders(stable_diffusion, "epsilon"))
    with refused("parallel.sequence=2", "UNet2DConditionModel"):
        backbone.share_tokens(backbone.network, PlannedGroup(2))


@pytest.mark.parametrize(
    "change, fact",
    [
        ({"variant": "fp16"}, "model.variant='fp16'"),
        ({"revision": "main"}, "model.revision='main'"),
    ],
)
def test_what_a_folder_does_not_have_is_refused(folders, change, fact):
    with refused(fact):
        resolve(ModelConfig(path=str(folders(stable_diffusion, "epsilon")), **change))
