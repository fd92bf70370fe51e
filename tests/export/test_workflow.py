"""The ComfyUI workflow of a student: its times and nodes, and bases computed wrongly there."""

import re

import pytest
import torch
from families import BUILDERS, pixart, stable_diffusion, wan
from refusals import states
from tiny import cogvideox_scheduler, tiny_pipeline

from tdmvid.backbones.cogvideox import CogVideoX
from tdmvid.backbones.registry import load_backbone
from tdmvid.config import ClipSize, ModelConfig
from tdmvid.diffusion.grid import uniform
from tdmvid.diffusion.process import RectifiedFlow
from tdmvid.export.consumers.comfyui import MODELS, SIGMA_MAX, build_workflow, workflow_lack
from tdmvid.roles.rounding import difference


def loaded(pipeline, folder, size):
    pipeline.save_pretrained(folder)
    return load_backbone(ModelConfig(path=str(folder)), size)


def cogvideox(folder, variant="temporal", **scheduler):
    pipeline = tiny_pipeline(variant)
    pipeline.scheduler = cogvideox_scheduler(**{"snr_shift_scale": 1.0} | scheduler)
    return loaded(pipeline, folder, ClipSize(9, 32, 32))


def read(nodes):
    """Parse the sigmas as ComfyUI's node does."""
    return [
        float(s) for s in re.findall(r"[-+]?(?:\d*\.*\d+)", nodes["sigmas"]["inputs"]["sigmas"])
    ]


def test_the_sigmas_are_the_trained_times_and_there_is_no_guidance(tmp_path):
    backbone = cogvideox(tmp_path)
    nodes = build_workflow(
        backbone, uniform(4, backbone.process), ["a.safetensors"], "a red circle"
    )
    table = CogVideoX.spec.read_scheduler(tmp_path).alphas_cumprod
    assert read(nodes) == pytest.approx(
        [SIGMA_MAX, *(((1 - table[t]) / table[t]).sqrt().item() for t in (749, 499, 249)), 0]
    )
    assert (
        nodes["lora"]["inputs"]["strength_model"] == 1
        and nodes["guider"]["class_type"] == "BasicGuider"
    )
    assert nodes["text"]["inputs"]["text"] == "a red circle"


def test_one_step_from_pure_noise_starts_at_comfyui_s_largest_sigma(tmp_path):
    backbone = cogvideox(tmp_path)
    assert read(
        build_workflow(backbone, uniform(1, backbone.process), ["a"], "b")
    ) == pytest.approx([SIGMA_MAX, 0])


def test_the_times_of_a_flow_are_its_sigmas(tmp_path):
    backbone = loaded(wan.build("cross_norm"), tmp_path, wan.SIZE)
    assert read(
        build_workflow(backbone, uniform(4, backbone.process), ["a"], "b")
    ) == pytest.approx([1, 0.75, 0.5, 0.25, 0])


def test_cogvideox_is_sampled_in_its_own_noise_and_its_added_frames_are_cut(tmp_path):
    """9 frames give 3 latent frames. Temporal patches of 2 need one more, prepended."""
    backbone = cogvideox(tmp_path)
    nodes = build_workflow(backbone, uniform(4, backbone.process), ["a"], "b")
    assert (
        nodes["sampler"]["class_type"] == "VOIDSampler"
        and nodes["latent"]["inputs"]["length"] == 13
    )  # gives 4 latent frames
    assert nodes["cut"]["inputs"]["index"] == 1 and nodes["decode"]["inputs"]["samples"] == [
        "cut",
        0,
    ]


@pytest.mark.parametrize(
    "variant, said", [("epsilon", None), ("v", {"sampling": "v_prediction", "zsnr": True})]
)
def test_what_a_unet_predicts_is_said_where_its_file_does_not(tmp_path, variant, said):
    backbone = loaded(stable_diffusion.build(variant), tmp_path, stable_diffusion.SIZE)
    nodes = build_workflow(backbone, uniform(4, backbone.process), ["a"], "b")
    assert nodes["guider"]["inputs"]["model"] == (["patch", 0] if said else ["lora", 0])
    assert (nodes["patch"]["inputs"] if said else None) == (said and {"model": ["lora", 0], **said})


@pytest.mark.parametrize("name", sorted(MODELS))
def test_every_link_leads_to_a_node(tmp_path, name):
    torch.manual_seed(0)
    backbone = loaded(
        BUILDERS[name].build(BUILDERS[name].VARIANTS[-1]), tmp_path, BUILDERS[name].SIZE
    )
    loras = ["a"] * len(backbone.lora_files)
    nodes = build_workflow(backbone, uniform(2, backbone.process), loras, "b")
    links = [
        value
        for node in nodes.values()
        for value in node["inputs"].values()
        if isinstance(value, list)
    ]
    assert len(links) > 8 and all(target in nodes for target, _ in links)


IMAGES = {
    "ZImagePipeline": ("CLIPLoader", "lumina2", "EmptySD3LatentImage"),
    "Flux2KleinPipeline": ("CLIPLoader", "flux2", "EmptyFlux2LatentImage"),
    "QwenImagePipeline": ("CLIPLoader", "qwen_image", "EmptySD3LatentImage"),
    "FluxPipeline": ("DualCLIPLoader", "flux", "EmptySD3LatentImage"),
}
"""Pipeline class -> node and type of its text encoders, and node of its empty latents."""


@pytest.mark.parametrize("name", IMAGES)
def test_an_image_model_has_its_own_encoders_and_latents_and_is_saved_as_an_image(tmp_path, name):
    torch.manual_seed(0)
    builder = BUILDERS[name]
    backbone = loaded(builder.build(builder.VARIANTS[0]), tmp_path, builder.SIZE)
    nodes = build_workflow(backbone, uniform(4, backbone.process), ["a"], "b")
    clip, latent = nodes["clip"], nodes["latent"]
    assert (clip["class_type"], clip["inputs"]["type"], latent["class_type"]) == IMAGES[name]
    assert latent["inputs"] == {"width": 48, "height": 32, "batch_size": 1}
    assert read(nodes) == pytest.approx([1, 0.75, 0.5, 0.25, 0])
    assert nodes["save"]["class_type"] == "SaveImage" and not workflow_lack(
        backbone, uniform(4, backbone.process)
    )


@pytest.mark.parametrize("scale", [None, 2.5])
def test_the_guidance_that_a_network_reads_is_in_its_conditioning(tmp_path, scale):
    torch.manual_seed(0)
    BUILDERS["FluxPipeline"].build("base").save_pretrained(tmp_path)
    size = BUILDERS["FluxPipeline"].SIZE
    backbone = load_backbone(ModelConfig(path=str(tmp_path), guidance=scale), size)
    nodes = build_workflow(backbone, uniform(4, backbone.process), ["a"], "b")
    assert nodes["conditioning"] == {
        "class_type": "FluxGuidance",
        "inputs": {"conditioning": ["text", 0], "guidance": scale or 3.5},
    }
    assert nodes["guider"]["inputs"]["conditioning"] == ["conditioning", 0]


@pytest.mark.parametrize(
    "build, lack",
    [
        (lambda folder: cogvideox(folder), ""),
        (lambda folder: cogvideox(folder, "rotary"), "stretches"),
        (lambda folder: cogvideox(folder, "sincos", snr_shift_scale=3.0), "this base has 3"),
        (lambda folder: loaded(pixart.build("512"), folder, pixart.SIZE), "as a PixArt-Sigma"),
        (lambda folder: loaded(pixart.build("1024"), folder, pixart.SIZE), ""),
    ],
    ids=["cogvideox 1.5", "cogvideox 5b", "cogvideox 2b", "pixart 512", "pixart 1024"],
)
def test_a_base_that_comfyui_computes_in_another_way_is_named(tmp_path, build, lack):
    backbone = build(tmp_path)
    said = workflow_lack(backbone, uniform(4, backbone.process))
    assert lack in said and bool(said) == bool(lack)


def comfyui_start(backbone, nodes, z):
    """Return the first x_t of ComfyUI's sampler from noise z, alpha x0 + sigma eps.

    As KSAMPLER.sample in comfy/samplers.py and noise_scaling in comfy/model_sampling.py.
    """
    sigma = torch.tensor(read(nodes)[0])
    if nodes["sampler"]["class_type"] == "VOIDSampler":
        return z
    if isinstance(backbone.process, RectifiedFlow):
        return sigma * z
    _, [highest] = backbone.process.alpha_sigma(torch.ones(1))
    largest = (highest / (1 - highest**2).sqrt()).clamp(max=SIGMA_MAX)
    scaled = z * (1 + sigma**2).sqrt() if sigma >= largest * (1 - 1e-5) else z * sigma
    return scaled / (1 + sigma**2).sqrt()


STARTS = {
    "flow": (lambda folder: loaded(wan.build("cross_norm"), folder, wan.SIZE), (1.0, 0.999)),
    "cogvideox": (cogvideox, (1.0, 0.999, 0.9, 0.5)),
    "unet": (
        lambda folder: loaded(stable_diffusion.build("epsilon"), folder, stable_diffusion.SIZE),
        (1.0,),
    ),
}
"""Base -> starts of trajectories that ComfyUI samples as the student."""


@pytest.mark.parametrize("start", [1.0, 0.999, 0.9, 0.5])
@pytest.mark.parametrize("base", STARTS)
def test_a_workflow_is_written_if_comfyui_starts_where_the_student_does(tmp_path, base, start):
    build, exact = STARTS[base]
    backbone = build(tmp_path)
    grid = uniform(4, backbone.process, start=start)
    z = torch.randn(64, generator=torch.Generator().manual_seed(0))
    found = comfyui_start(backbone, build_workflow(backbone, grid, ["a"], "b"), z)
    said = workflow_lack(backbone, grid)
    assert (difference(found, z) < 2**-9) == (not said)
    assert not said if start in exact else states(said, "grid.start=1")
