"""Parts of LoRA files for text encoders that a stock pipeline loads no LoRA into are refused."""

import logging

import pytest
import torch
from refusals import refused
from safetensors.torch import load_file, save_file
from torch import nn

from tdmvid.adapters.read import read_lora
from tdmvid.adapters.text import text_encoders
from tdmvid.backbones.lora_files import LoraFiles

BLOCK = "encoder.block.0.layer.0.SelfAttention.q"
CLIP = "text_encoder.text_model.encoder.layers.0.self_attn.q_proj"
CASES = [
    *((name, f"text_encoder.{BLOCK}") for name in ("CogVideoXPipeline", "WanPipeline")),
    ("WanImageToVideoPipeline", "lora_te_encoder_block_0_layer_0_SelfAttention_q"),
    ("PixArtAlphaPipeline", f"text_encoder.{BLOCK}"),
    ("FluxPipeline", f"text_encoder_2.{BLOCK}"),
    ("FluxPipeline", "lora_te2_encoder_block_0_layer_0_SelfAttention_q"),
    ("StableDiffusion3Pipeline", f"text_encoder_3.{BLOCK}"),
    ("StableDiffusion3Pipeline", "lora_te3_encoder_block_0_layer_0_SelfAttention_q"),
    ("QwenImagePipeline", "text_encoder.model.layers.0.self_attn.q_proj"),
    ("HunyuanVideo15Pipeline", "text_encoder.model.layers.0.self_attn.q_proj"),
]


def write(folder, *names):
    """Write a LoRA of a network with one layer, and of other layers by name."""
    tensors = {}
    for name in ("transformer.layer", *names):
        down, up = ("down", "up") if name.startswith("lora_te") else ("A", "B")
        tensors[f"{name}.lora_{down}.weight"] = torch.ones(2, 8)
        tensors[f"{name}.lora_{up}.weight"] = torch.ones(8, 2)
    save_file(tensors, folder / "style.safetensors")
    return folder / "style.safetensors"


def network():
    root = nn.Module()
    root.layer = nn.Linear(8, 8)
    return root


@pytest.mark.parametrize("pipeline, name", CASES)
def test_a_part_that_the_stock_pipeline_does_not_load_is_refused(pipeline, name, tmp_path, caplog):
    path, files = write(tmp_path, name), LoraFiles(pipeline)
    with refused(path, name, pipeline, "1 more"):
        read_lora(path, files, network(), text=True)
    with caplog.at_level(logging.WARNING):  # a reader of the network alone says what it ignores
        assert read_lora(path, files, network()).layers.keys() == {"layer"}
    assert name in caplog.text


def test_a_clip_part_is_read_for_the_pipelines_that_load_it(tmp_path):
    found = {
        name: text_encoders(LoraFiles(name))
        for name in ("FluxPipeline", "StableDiffusion3Pipeline", "CogVideoXPipeline")
    }
    assert found == {
        "FluxPipeline": ("text_encoder",),
        "StableDiffusion3Pipeline": ("text_encoder", "text_encoder_2"),
        "CogVideoXPipeline": (),
    }
    lora = read_lora(write(tmp_path, CLIP), LoraFiles("FluxPipeline"), network(), text=True)
    assert lora.text.keys() == {"text_encoder"}


def test_older_names_of_a_clip_encoder_s_attention_are_those_of_its_modules(tmp_path):
    """diffusers converts kohya's files of FLUX.1 to them."""
    attention = "text_encoder.text_model.encoder.layers.0.self_attn"
    path = write(tmp_path, *(f"{attention}.to_{name}" for name in ("q", "k", "v", "out")))
    lora = read_lora(path, LoraFiles("FluxPipeline"), network(), text=True)
    assert lora.text["text_encoder"].keys() == {
        f"encoder.layers.0.self_attn.{name}_proj" for name in ("q", "k", "v", "out")
    }


def test_a_layer_that_a_file_has_in_two_layouts_is_refused(tmp_path):
    kohya = "lora_te1_text_model_encoder_layers_0_self_attn_q_proj"
    path = write(tmp_path, CLIP, kohya)
    with refused(path, "self_attn.q_proj"):
        read_lora(path, LoraFiles("FluxPipeline"), network(), text=True)


def test_changes_of_zero_beside_a_clip_part_are_passed_over(tmp_path):
    """ComfyUI's extraction writes them for biases and norms."""
    path = write(tmp_path, CLIP)
    tensors = load_file(path) | {f"{CLIP}.diff_b": torch.zeros(8)}
    save_file(tensors, path)
    lora = read_lora(path, LoraFiles("FluxPipeline"), network(), text=True)
    assert list(lora.text["text_encoder"]) == ["encoder.layers.0.self_attn.q_proj"]
    save_file(tensors | {f"{CLIP}.diff_b": torch.ones(8)}, path)
    with refused(path, f"{CLIP}.diff_b"):
        read_lora(path, LoraFiles("FluxPipeline"), network(), text=True)
