"""The export of a published LoRA gives what stock code gives with the published file."""

from dataclasses import replace

import pytest
import torch
from families import BUILDERS
from lora_makers import write_diffusers, write_peft
from refusals import refused
from safetensors.torch import load_file, save_file

from tdmvid.adapters.load import load_student
from tdmvid.adapters.read import read_lora
from tdmvid.backbones.lora_files import LORA_FILE
from tdmvid.backbones.registry import load_backbone
from tdmvid.config import ClipSize, ModelConfig
from tdmvid.data.items import Item
from tdmvid.diffusion.grid import uniform
from tdmvid.export.original import compare_with_original
from tdmvid.export.request import ExportRequest
from tdmvid.export.sources import export_published
from tdmvid.roles.rounding import difference
from tdmvid.sampling.shots import noise

PROMPT = "a red circle"
MIXED = {"use_rslora": True, "rank_pattern": {"to_q": 2}, "alpha_pattern": {"to_k": 3}}


@pytest.fixture
def backbone(tiny_cogvideox):
    return load_backbone(ModelConfig(path=str(tiny_cogvideox("sincos"))), ClipSize(9, 32, 32))


def export(backbone, path, out, *formats, scale=1.0):
    request = ExportRequest(("diffusers", *formats), prompts=(PROMPT,))
    grid = uniform(2, backbone.process)
    return export_published(out, path, backbone, grid, request, scale=scale)


def latents(backbone, load):
    """Return stock samples of a pipeline after `load` has given it a LoRA."""
    pipeline = backbone.stock.pipeline()
    load(pipeline)
    pipeline.scheduler = backbone.student_scheduler(uniform(2, backbone.process))
    z = noise(PROMPT, 1234, backbone.latent_shape())[None]
    return backbone.stock.latents(pipeline, z, backbone.encode_prompts([PROMPT]), steps=2)


@pytest.mark.slow
def test_an_export_of_any_ranks_and_scales_is_what_stock_diffusers_samples(
    backbone, tiny_cogvideox, tmp_path
):
    folder = write_diffusers(backbone.network, tmp_path / "theirs", **MIXED)
    fresh = load_backbone(backbone.config, backbone.size)
    theirs = latents(fresh, lambda pipeline: pipeline.load_lora_weights(folder))
    facts = export(backbone, folder / LORA_FILE, tmp_path / "ours", "comfyui")
    assert facts["original"]["by"].startswith("diffusers") and facts["original"]["error"] < 1e-5
    assert facts["errors"]["comfyui"] < 1e-5 and "stock diffusers" in (
        (tmp_path / "ours" / "README.md").read_text()
    )
    for file in (LORA_FILE, facts["formats"]["comfyui"]):
        (tmp_path / "one").mkdir(exist_ok=True)
        (tmp_path / "one" / LORA_FILE).write_bytes((tmp_path / "ours" / file).read_bytes())
        scheduler = (tmp_path / "ours" / "scheduler_config.json").read_bytes()
        (tmp_path / "one" / "scheduler_config.json").write_bytes(scheduler)
        ours = latents(fresh, lambda pipe: load_student(pipe, tmp_path / "one", fresh.lora))
        assert difference(ours, theirs) < 1e-5


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param("peft", marks=pytest.mark.slow),
        pytest.param("bare", marks=pytest.mark.slow),
        "own alphas",
    ],
)
def test_the_comparison_says_who_made_the_other_side_or_why_nobody_could(backbone, tmp_path, kind):
    path = write_peft(backbone.network, tmp_path / "theirs") / "adapter_model.safetensors"
    if kind != "peft":
        state = load_file(path)
        prefix = "" if kind == "bare" else "transformer."
        state = {prefix + key.removeprefix("base_model.model."): t for key, t in state.items()}
        if kind == "own alphas":
            name = next(iter(state)).partition(".lora_")[0]
            state[f"{name}.alpha"] = torch.tensor(2.0)
        path = tmp_path / "theirs.safetensors"
        save_file(state, path)
    original = export(backbone, path, tmp_path / "ours", scale=0.5)["original"]
    if kind == "own alphas":
        assert ".alpha" in original["not_compared"]
    else:
        assert original["error"] < 1e-5
        assert original["by"].startswith("peft" if kind == "peft" else "diffusers")


def test_a_reading_of_another_scale_is_caught_by_stock_code(backbone, tmp_path):
    from tdmvid.adapters.extract import adapt
    from tdmvid.export.student import Adapter, Student, draw_reference, sample_reference

    folder = write_diffusers(backbone.network, tmp_path, use_rslora=True)
    lora = read_lora(folder, backbone.lora, backbone.network)
    wrong = replace(lora.scaled(0.5), strength=1.0)
    reference, grid = draw_reference(backbone, [Item(PROMPT)], 1), uniform(2, backbone.process)
    module, tensors, settings = adapt(backbone, wrong)
    latents = sample_reference(backbone, module, reference, grid)
    student = Student(backbone, grid, tensors, reference, latents, Adapter(module, settings))
    with refused(folder / LORA_FILE):
        compare_with_original(student, wrong, 1e-5)
    with refused(folder / LORA_FILE, "diffusers", error=RuntimeError):
        compare_with_original(student, lora, 1e-5)


JOINT = {
    "ZImagePipeline": ("lora_unet_layers_0_attention_qkv", 32, 96),
    "FluxPipeline": ("lora_unet_single_blocks_0_linear1", 16, 112),
}
"""Family -> a joint layer of its tiny network in kohya's names, its inputs and outputs."""


@pytest.mark.parametrize("family", JOINT)
def test_kohya_s_joint_layers_are_compared_if_stock_code_reads_them(family, tmp_path):
    """diffusers splits FLUX.1's layers only at the width of the released models."""
    torch.manual_seed(0)
    builder = BUILDERS[family]
    builder.build(builder.VARIANTS[0]).save_pretrained(tmp_path / "base")
    backbone = load_backbone(ModelConfig(path=str(tmp_path / "base")), builder.SIZE)
    stem, width, rows = JOINT[family]
    tensors = {f"{stem}.lora_down.weight": torch.randn(2, width), f"{stem}.alpha": torch.tensor(1)}
    tensors[f"{stem}.lora_up.weight"] = torch.randn(rows, 2)
    save_file(tensors, tmp_path / "theirs.safetensors")
    original = export(backbone, tmp_path / "theirs.safetensors", tmp_path / "ours")["original"]
    if family == "FluxPipeline":
        assert "stock diffusers does not load it" in original["not_compared"]
    else:
        assert original["by"].startswith("diffusers") and original["error"] < 1e-5
