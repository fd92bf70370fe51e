"""FLUX.1 files in kohya's, ComfyUI's or XLabs' names: text encoders, and lost tensors."""

import pytest
import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from refusals import refused
from safetensors.torch import save_file

from tdmvid.adapters.read import read_lora
from tdmvid.backbones.flux1 import Flux1

FLUX = Flux1.lora


@pytest.fixture
def network():
    with torch.device("meta"):
        return FluxTransformer2DModel(num_layers=1, num_single_layers=1)


CLIP = "text_model_encoder_layers_0_mlp_fc1"
T5 = "encoder_block_0_layer_0_SelfAttention_q"


def block_with(folder, stems, zero=()):
    """Write a FLUX.1 file of one layer in kohya's names, and of other layers by name."""
    a, b = torch.ones(2, 3072), torch.ones(3072, 2)
    tensors = {}
    for stem in ("lora_unet_double_blocks_0_img_attn_proj", *stems):
        tensors |= {f"{stem}.lora_down.weight": a.clone()}
        tensors |= {f"{stem}.lora_up.weight": b.clone() * (stem not in zero)}
    save_file(tensors, folder / "x.safetensors")
    return folder / "x.safetensors"


@pytest.mark.parametrize(
    "stem",
    [
        f"lora_te1_{CLIP}",
        f"lora_te_{CLIP}",
        "text_encoders.clip_l.transformer.text_model.encoder.layers.0.mlp.fc1",
    ],
)
def test_a_clip_part_of_mlp_layers_alone_is_the_clip_part(network, stem, tmp_path, caplog):
    path = block_with(tmp_path, [stem])
    lora = read_lora(path, FLUX, network, text=True)
    assert lora.layers.keys() == {"transformer_blocks.0.attn.to_out.0"}
    assert {part: list(x) for part, x in lora.text.items()} == {
        "text_encoder": ["encoder.layers.0.mlp.fc1"]
    }
    assert not caplog.records
    read_lora(path, FLUX, network)
    [record] = caplog.records
    assert stem in record.getMessage() and " 2 tensors" in record.getMessage()


@pytest.mark.parametrize(
    "stem", [f"lora_te2_{T5}", f"text_encoders.t5xxl.transformer.{T5.replace('_', '.')}"]
)
def test_a_t5_part_is_refused_for_a_teacher_and_said_where_it_is_ignored(
    network, stem, tmp_path, caplog
):
    path = block_with(tmp_path, [stem])
    with refused(path, stem + ".lora_down.weight", "FluxPipeline"):
        read_lora(path, FLUX, network, text=True)
    read_lora(path, FLUX, network)
    [record] = caplog.records
    assert stem in record.getMessage() and " 2 tensors" in record.getMessage()
    lora = read_lora(block_with(tmp_path, [stem], zero=[stem]), FLUX, network, text=True)
    assert len(lora.layers) == 1 and not lora.text


XLABS = {
    "double_blocks.0.processor.proj_lora1": "transformer_blocks.0.attn.to_out.0",
    "double_blocks.0.processor.proj_lora2": "transformer_blocks.0.attn.to_add_out",
}
"""Names of FLUX.1's layers that only the stock loader knows -> diffusers' modules."""


def xlabs():
    shapes = {"down": (2, 3072), "up": (3072, 2)}
    return {f"{name}.{end}.weight": torch.ones(x) for name in XLABS for end, x in shapes.items()}


def test_names_that_only_the_stock_loader_knows_are_converted(network, tmp_path):
    save_file(xlabs(), tmp_path / "x.safetensors")
    assert read_lora(tmp_path / "x.safetensors", FLUX, network).layers.keys() == set(XLABS.values())


@pytest.mark.parametrize("end", ["up.weight", "bias"])
def test_what_the_stock_conversion_loses_is_said_or_refused(
    network, end, tmp_path, monkeypatch, caplog
):
    """A conversion that keeps one of two tensors that it gives the same name."""
    key = f"double_blocks.0.processor.more_lora.{end}"
    extra, convert = {key: torch.ones(3072, 2)}, FluxPipeline.lora_state_dict
    save_file(xlabs() | extra, tmp_path / "x.safetensors")
    monkeypatch.setattr(
        FluxPipeline,
        "lora_state_dict",
        lambda state, **more: convert({k: x for k, x in state.items() if k not in extra}, **more),
    )
    if end == "up.weight":
        with refused(tmp_path / "x.safetensors", key, "FluxPipeline"):
            read_lora(tmp_path / "x.safetensors", FLUX, network)
    else:
        assert read_lora(tmp_path / "x.safetensors", FLUX, network).dropped == (key,)
        assert key in caplog.text
    save_file(xlabs() | {key: torch.zeros(3072, 2)}, tmp_path / "x.safetensors")
    assert not read_lora(tmp_path / "x.safetensors", FLUX, network).dropped
