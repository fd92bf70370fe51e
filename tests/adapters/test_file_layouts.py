"""Files in other programs' layouts are read as the LoRA that those programs load."""

import copy
import logging

import pytest
import torch
from diffusers import StableDiffusionXLPipeline, WanPipeline
from families import BUILDERS, sdxl, stable_diffusion, wan
from lora_makers import changes
from refusals import refused
from safetensors.torch import save_file
from torch import nn

from tdmvid.adapters.layouts.original import name_wan
from tdmvid.adapters.lora import attach_weights
from tdmvid.adapters.read import read_lora
from tdmvid.backbones.registry import families

RANK = 2


@pytest.fixture(scope="module")
def unet():
    torch.manual_seed(0)
    return sdxl.unet(layers_per_block=2)


@pytest.fixture(scope="module")
def wan_network():
    torch.manual_seed(0)
    return wan.tiny_transformer()


def factors(network, *ends):
    """Return a LoRA of the layers whose names end in one of `ends`: {name: (A, B)}."""
    generator, found = torch.Generator().manual_seed(0), {}
    for name, layer in network.named_modules():
        if name.endswith(ends) and isinstance(layer, (nn.Linear, nn.Conv2d)):
            out, *inner = layer.weight.shape
            ones = [1] * (len(inner) - 1)
            found[name] = (
                torch.randn(RANK, *inner, generator=generator),
                torch.randn(out, RANK, *ones, generator=generator),
            )
    return found


def read(folder, tensors, family, network):
    save_file(
        {key: tensor.contiguous() for key, tensor in tensors.items()}, folder / "x.safetensors"
    )
    return read_lora(folder / "x.safetensors", families()[family].lora, network)


def change(lora, name):
    layer = lora.layers[name]
    return layer.scale * (layer.b.flatten(1).float() @ layer.a.flatten(1).float())


def ldm_stem(name):
    """Return the original names of the tiny SDXL above, written out by hand."""
    table = {
        "down_blocks.0.resnets.0": "input_blocks.1.0",
        "down_blocks.0.resnets.1": "input_blocks.2.0",
        "down_blocks.0.downsamplers.0.conv": "input_blocks.3.0.op",
        "down_blocks.1.resnets.0": "input_blocks.4.0",
        "down_blocks.1.attentions.0": "input_blocks.4.1",
        "down_blocks.1.resnets.1": "input_blocks.5.0",
        "down_blocks.1.attentions.1": "input_blocks.5.1",
        "mid_block.resnets.0": "middle_block.0",
        "mid_block.attentions.0": "middle_block.1",
        "mid_block.resnets.1": "middle_block.2",
        "up_blocks.0.resnets.0": "output_blocks.0.0",
        "up_blocks.0.attentions.0": "output_blocks.0.1",
        "up_blocks.0.resnets.1": "output_blocks.1.0",
        "up_blocks.0.attentions.1": "output_blocks.1.1",
        "up_blocks.0.resnets.2": "output_blocks.2.0",
        "up_blocks.0.attentions.2": "output_blocks.2.1",
        "up_blocks.0.upsamplers.0.conv": "output_blocks.2.2.conv",
        "up_blocks.1.resnets.0": "output_blocks.3.0",
        "up_blocks.1.resnets.1": "output_blocks.4.0",
        "up_blocks.1.resnets.2": "output_blocks.5.0",
        "time_embedding.linear_1": "time_embed.0",
        "add_embedding.linear_2": "label_emb.0.2",
        "conv_in": "input_blocks.0.0",
        "conv_out": "out.2",
    }
    start = max((start for start in table if name.startswith(start)), key=len)
    inner = name.removeprefix(start)
    for ours, theirs in (
        (".conv1", ".in_layers.2"),
        (".conv2", ".out_layers.3"),
        (".time_emb_proj", ".emb_layers.1"),
        (".conv_shortcut", ".skip_connection"),
    ):
        inner = inner.replace(ours, theirs)
    return table[start] + inner


LDM = (
    "to_q",
    "to_out.0",
    "ff.net.2",
    "proj_in",
    "conv1",
    "conv2",
    "time_emb_proj",
    "conv_shortcut",
    "sers.0.conv",
    "samplers.0.conv",
)


@pytest.mark.parametrize("alpha", [None, 1.0])
def test_sdxl_s_original_names_are_the_modules_that_diffusers_takes_them_for(unet, tmp_path, alpha):
    tensors, expected = {}, factors(unet, *LDM)
    for name, (a, b) in expected.items():
        stem = "lora_unet_" + ldm_stem(name).replace(".", "_")
        tensors |= {f"{stem}.lora_down.weight": a, f"{stem}.lora_up.weight": b}
        if alpha:
            tensors[f"{stem}.alpha"] = torch.tensor(alpha)
    lora = read(tmp_path, tensors, "StableDiffusionXLPipeline", unet)
    assert lora.layers.keys() == expected.keys() and len(expected) > 50
    for name, (a, b) in expected.items():
        scale = (alpha or RANK) / RANK
        torch.testing.assert_close(change(lora, name), scale * b.flatten(1) @ a.flatten(1))
    stock = sdxl.unet(**{k: v for k, v in unet.config.items() if not k.startswith("_")})
    stock.load_state_dict(unet.state_dict())
    state, alphas, metadata = StableDiffusionXLPipeline.lora_state_dict(
        str(tmp_path / "x.safetensors"), unet_config=unet.config, return_lora_metadata=True
    )
    StableDiffusionXLPipeline.load_lora_into_unet(state, alphas, stock, metadata=metadata)
    attached = changes(attach_weights(copy.deepcopy(unet), lora))
    theirs = changes(stock)
    assert theirs.keys() == attached.keys()
    for name in theirs:
        torch.testing.assert_close(attached[name], theirs[name])


def test_comfyui_s_dotted_names_of_a_unet_are_the_same(unet, tmp_path):
    expected, tensors = factors(unet, "to_q", "conv1"), {}
    for name, (a, b) in expected.items():
        stem = f"diffusion_model.{ldm_stem(name)}"
        tensors |= {f"{stem}.lora_A.weight": a, f"{stem}.lora_B.weight": b}
    lora = read(tmp_path, tensors, "StableDiffusionXLPipeline", unet)
    assert lora.layers.keys() == expected.keys()


BLOCKS = ("to_q", "to_k", "to_v", "to_out.0", "ffn.net.0.proj", "ffn.net.2")


@pytest.mark.parametrize("names", ["lora_A lora_B", "lora_down lora_up"])
@pytest.mark.parametrize("alpha", [None, 1.0])
def test_a_wan_file_of_comfyui_s_names_is_what_diffusers_makes_of_it(
    wan_network, tmp_path, names, alpha
):
    down, up = names.split()
    tensors = {}
    for i, (name, (a, b)) in enumerate(factors(wan_network, *BLOCKS).items()):
        stem = f"diffusion_model.{name_wan(name)}"
        tensors |= {f"{stem}.{down}.weight": a, f"{stem}.{up}.weight": b}
        if alpha and i % 2:  # only some layers
            tensors[f"{stem}.alpha"] = torch.tensor(alpha)
        if alpha and i % 3 == 0:
            tensors[f"{stem}.diff_b"] = torch.ones(len(b))
    tensors["diffusion_model.head.head.diff"] = torch.randn(wan_network.proj_out.weight.shape)
    tensors["diffusion_model.head.head.diff_b"] = torch.ones(len(wan_network.proj_out.bias))
    tensors["diffusion_model.blocks.0.norm3.diff"] = torch.zeros(36)
    lora = read(tmp_path, tensors, "WanPipeline", wan_network)
    stock = wan.tiny_transformer()
    state, metadata = WanPipeline.lora_state_dict(
        str(tmp_path / "x.safetensors"), return_lora_metadata=True
    )
    WanPipeline.load_lora_into_transformer(state, transformer=stock, metadata=metadata)
    attached, theirs = attach_weights(wan.tiny_transformer(), lora), changes(stock)
    ours = changes(attached)
    assert ours.keys() == theirs.keys() and lora.left_out == lora.dropped == ()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name])
        found, expected = (net.get_submodule(name).lora_B for net in (attached, stock))
        scales = [net.get_submodule(name).scaling for net in (attached, stock)]
        biases = [
            scale[key] * getattr(side[key], "bias", torch.zeros(1))
            for scale, side in zip(scales, (found, expected), strict=True)
            for key in side
        ]
        torch.testing.assert_close(biases[0], biases[1])


@pytest.mark.parametrize("prefix", ["lora_unet_", "lora_unet__", "lora_transformer_"])
@pytest.mark.parametrize("family", ["CogVideoXPipeline", "StableDiffusion3Pipeline"])
def test_underscored_names_are_found_with_every_prefix(family, prefix, tmp_path):
    torch.manual_seed(0)
    builder = BUILDERS[family]
    network = builder.build(builder.VARIANTS[0]).transformer
    expected, tensors = factors(network, "to_q", "to_out.0"), {}
    for i, (name, (a, b)) in enumerate(expected.items()):
        stem = prefix + name.replace(".", "_")
        tensors |= {f"{stem}.lora_down.weight": a, f"{stem}.lora_up.weight": b}
        if i:
            tensors[f"{stem}.alpha"] = torch.tensor(float(i))
    lora = read(tmp_path, tensors, family, network)
    assert lora.layers.keys() == expected.keys()
    scales = [lora.layers[name].scale for name in expected]
    assert scales == [1.0, *(i / RANK for i in range(1, len(expected)))]


def test_what_no_lora_holds_is_left_out_and_said(wan_network, tmp_path, caplog):
    name, (a, b) = next(iter(factors(wan_network, "to_q").items()))
    stem = f"diffusion_model.{name_wan(name)}"
    tensors = {
        f"{stem}.lora_A.weight": a,
        f"{stem}.lora_B.weight": b,
        "diffusion_model.blocks.0.norm3.diff": torch.ones(36),
        "diffusion_model.blocks.0.diff_m": torch.ones(1, 6, 36),
        "diffusion_model.blocks.1.norm1.diff": torch.zeros(36),
        "lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": torch.ones(2, 4),
    }
    with caplog.at_level(logging.WARNING):
        lora = read(tmp_path, tensors, "WanPipeline", wan_network)
    assert sorted(lora.dropped) == [
        "diffusion_model.blocks.0.diff_m",
        "diffusion_model.blocks.0.norm3.diff",
    ]
    assert len(lora.left_out) == 1
    assert lora.dropped[0] in caplog.text and "lora_te1" in caplog.text


def test_a_one_by_one_convolution_is_read_as_a_matrix_too(tmp_path):
    network = stable_diffusion.unet()
    name, (a, b) = next(iter(factors(network, "proj_in").items()))
    stem = "lora_unet_" + name.replace(".", "_")
    tensors = {f"{stem}.lora_down.weight": a.flatten(1), f"{stem}.lora_up.weight": b.flatten(1)}
    lora = read(tmp_path, tensors, "StableDiffusionPipeline", network)
    torch.testing.assert_close(change(lora, name), b.flatten(1) @ a.flatten(1))
    wrong = {f"{stem}.lora_down.weight": a.flatten(1)[:, 1:], f"{stem}.lora_up.weight": b}
    with refused("x.safetensors", f"{stem}.lora_down.weight"):
        read(tmp_path, wrong, "StableDiffusionPipeline", network)


def test_bare_keys_are_read_where_the_stock_pipeline_adds_the_prefix(tmp_path):
    """Files of Qwen-Image-Lightning have no prefix, and their alphas are below their ranks."""
    network = BUILDERS["QwenImagePipeline"].build("base").transformer
    files, name = families()["QwenImagePipeline"].lora, "transformer_blocks.0.attn.to_q"
    out, width = network.get_submodule(name).weight.shape
    state = {
        f"{name}.lora_down.weight": torch.randn(4, width),
        f"{name}.lora_up.weight": torch.randn(out, 4),
        f"{name}.alpha": torch.tensor(2.0),
    }
    save_file(state, tmp_path / "lightning.safetensors")
    [(found, layer)] = read_lora(tmp_path / "lightning.safetensors", files, network).layers.items()
    down, up = (state[f"{name}.lora_{kind}.weight"] for kind in ("down", "up"))
    assert found == name
    torch.testing.assert_close(layer.scale * layer.b @ layer.a, 0.5 * up @ down)
