"""The card's code and load_pipeline load the files of the base that the student was made with."""

import json

import pytest
import torch
from cards import run_card
from families import BUILDERS
from safetensors.torch import load_file, save_file

from tdmvid.backbones.registry import load_backbone
from tdmvid.config import ModelConfig
from tdmvid.diffusion.grid import uniform
from tdmvid.export.load import load_pipeline
from tdmvid.export.request import ExportRequest
from tdmvid.export.sources import export_published


def build(name, folder, variant=None):
    """Write a tiny base of a family."""
    torch.manual_seed(0)
    builder = BUILDERS[name]
    builder.build(variant or builder.VARIANTS[0]).save_pretrained(folder)
    return folder


def export(name, folder, out, **changes):
    """Export a LoRA of one layer; return the backbone and the contents of export.json."""
    backbone = load_backbone(ModelConfig(path=str(folder), **changes), BUILDERS[name].SIZE)
    layer, linear = next(
        (layer, module)
        for layer, module in backbone.network.named_modules()
        if layer.endswith("to_q")
    )
    stem = f"{backbone.lora.prefix}.{layer}"
    tensors = {
        f"{stem}.lora_A.weight": torch.randn(2, linear.in_features),
        f"{stem}.lora_B.weight": torch.randn(linear.out_features, 2),
    }
    save_file(tensors, out.with_suffix(".safetensors"), metadata={"format": "pt"})
    request = ExportRequest(prompts=("a red circle",))
    grid = uniform(2, backbone.process)
    return backbone, export_published(out, out.with_suffix(".safetensors"), backbone, grid, request)


def pipelines(out):
    """Return the pipelines of the card's code, without its call, and of load_pipeline."""
    return run_card(out), load_pipeline(out)


def assert_same(one, other):
    """Compare the weights of two components."""
    torch.testing.assert_close(dict(one.state_dict()), dict(other.state_dict()))


HALF_ONLY = {
    "every part": (("unet", "vae", "text_encoder"), {"default": "fp16"}),
    "most parts": (("unet", "text_encoder"), {"default": "fp16", "vae": None}),
}
"""Case -> parts with a file in float16 alone, and the variants in export.json."""


@pytest.mark.parametrize("case", HALF_ONLY)
def test_the_base_s_weight_files_are_named_by_their_variant(case, tmp_path):
    """Parts with plain files also have other weights in float16, which must not be loaded."""
    name, (half, variants) = "StableDiffusionPipeline", HALF_ONLY[case]
    folder = build(name, tmp_path / "base", "epsilon")
    for part in ("unet", "vae", "text_encoder"):
        [path] = (folder / part).glob("*.safetensors")
        other = path.with_name(f"{path.stem}.fp16.safetensors")
        if part in half:
            path.rename(other)
        else:
            weights = {key: 2 * x for key, x in load_file(path).items()}
            save_file(weights, other, metadata={"format": "pt"})
    backbone, facts = export(name, folder, tmp_path / "out")
    assert facts["variants"] == variants
    for pipeline in pipelines(tmp_path / "out"):
        assert_same(pipeline.vae, backbone.vae)
        assert_same(pipeline.text_encoder, backbone.text.text_encoder)


@pytest.mark.parametrize("entry", ["kept", "removed"])
def test_text_encoders_that_the_base_lacked_are_left_out(entry, tmp_path):
    """Then a complete base gives the embeddings of the training, too."""
    name = "StableDiffusion3Pipeline"
    folder, parts = build(name, tmp_path / "base"), ("text_encoder_3", "tokenizer_3")
    for part in parts:
        (folder / part).rename(tmp_path / part)
    index = json.loads((folder / "model_index.json").read_text())
    if entry == "removed":
        short = {key: value for key, value in index.items() if key not in parts}
        (folder / "model_index.json").write_text(json.dumps(short))
    _, facts = export(name, folder, tmp_path / "out")
    assert facts["absent_parts"] == [*parts]
    loaded = list(pipelines(tmp_path / "out"))
    (folder / "model_index.json").write_text(json.dumps(index))
    for part in parts:
        (tmp_path / part).rename(folder / part)
    for pipeline in [*loaded, *pipelines(tmp_path / "out")]:
        assert pipeline.text_encoder_3 is None and pipeline.tokenizer_3 is None
        assert pipeline.text_encoder_2 is not None


def test_parts_that_a_family_never_loads_may_be_missing(tmp_path):
    """tdmvid downloads neither the safety checker nor what it and IP adapters need."""
    name, folder = "StableDiffusionPipeline", tmp_path / "base"
    index = json.loads((build(name, folder, "epsilon") / "model_index.json").read_text())
    index |= {
        "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
        "feature_extractor": ["transformers", "CLIPImageProcessor"],
        "image_encoder": ["transformers", "CLIPVisionModelWithProjection"],
        "requires_safety_checker": True,
    }
    (folder / "model_index.json").write_text(json.dumps(index))
    export(name, folder, tmp_path / "out")
    for pipeline in pipelines(tmp_path / "out"):
        assert pipeline.safety_checker is None and not pipeline.config.requires_safety_checker
        assert pipeline.feature_extractor is None and pipeline.image_encoder is None
