"""Files in the original names of FLUX, SD3 and Z-Image are read as the change that they make.

The reference is diffusers' conversion of whole networks from these names to its own.
"""

import json
import re

import pytest
import torch
from diffusers import FluxPipeline, FluxTransformer2DModel, ZImagePipeline
from diffusers.loaders import single_file_utils
from families import BUILDERS
from refusals import refused
from safetensors.torch import save_file
from torch import nn

from tdmvid.adapters.layouts.joined import join_flux, join_flux2, join_qkv, join_sd3
from tdmvid.adapters.layouts.original_images import (
    name_flux,
    name_flux2,
    name_sd3,
    name_z_image,
)
from tdmvid.adapters.read import read_lora
from tdmvid.adapters.weights import effect
from tdmvid.backbones.registry import families
from tdmvid.roles.rounding import difference

RANK, ALPHA = 3, 2.0
CASES = {
    "FluxPipeline": ("base", lambda _: join_flux, name_flux, "flux"),
    "Flux2KleinPipeline": ("base", lambda _: join_flux2, name_flux2, "flux2"),
    "StableDiffusion3Pipeline": ("dual_attention", join_sd3, name_sd3, "sd3"),
    "ZImagePipeline": ("base", lambda _: join_qkv, name_z_image, "z_image"),
}
"""Family -> its tiny network, joining and names, and diffusers' conversion."""


class Checkpoint(dict):
    """A network in original names, with the parameters that no LoRA changes."""

    def pop(self, key, *default):
        if any(part in key for part in ("_norm.", "ln_q", "ln_k")) or key == "pos_embed":
            return torch.zeros(1)
        return super().pop(key, *default)


def network_of(family):
    """Return a tiny network; of FLUX.1 one of the width that its conversion expects."""
    if family == "FluxPipeline":
        with torch.device("meta"):
            return FluxTransformer2DModel(num_layers=1, num_single_layers=1, guidance_embeds=True)
    torch.manual_seed(0)
    return BUILDERS[family].build(CASES[family][0]).transformer


def layers_of(family, network):
    """Return A [r, in], B [out, r] and bias [out] of each layer, by its original name. The bias is
    None if the layer has none.
    """
    _, joining, name, _ = CASES[family]
    linears = {
        name: x for name, x in network.named_modules() if isinstance(x, (nn.Linear, nn.Conv2d))
    }
    join, layers, generator = joining(linears), {}, torch.Generator().manual_seed(0)
    for module in linears:
        joint = join(module)
        parts = joint.parts if joint else (module,)
        shape = [sum(len(linears[part].weight) for part in parts)]
        shape += [linears[module].weight[0].numel()]
        layers[name(joint.name if joint else module)] = (
            torch.randn(RANK, shape[1], generator=generator),
            torch.randn(shape[0], RANK, generator=generator),
            torch.randn(shape[0], generator=generator)
            if linears[module].bias is not None
            else None,
        )
    return layers


def expected_of(family, layers, scale):
    """Return the change of each module, applied to one input, and of its bias."""
    checkpoint = Checkpoint()
    for name, (a, b, bias) in layers.items():
        checkpoint[f"{name}.weight"] = effect(a, b, scale)[:, None]
        if bias is not None:
            checkpoint[f"{name}.bias"] = bias.clone()
    convert = getattr(
        single_file_utils, f"convert_{CASES[family][3]}_transformer_checkpoint_to_diffusers"
    )
    converted = convert(checkpoint)
    assert not checkpoint  # every name is one of the original network
    return converted


def write(path, layers, names):
    """Write a file in ComfyUI's dotted names, with biases, or in kohya's, with alphas."""
    tensors = {}
    for name, (a, b, bias) in layers.items():
        if names == "comfyui":
            stem = f"diffusion_model.{name}"
            tensors |= {f"{stem}.lora_A.weight": a, f"{stem}.lora_B.weight": b}
            tensors |= {} if bias is None else {f"{stem}.diff_b": bias}
        else:
            stem = "lora_unet_" + name.replace(".", "_")
            tensors |= {f"{stem}.lora_down.weight": a, f"{stem}.lora_up.weight": b}
            tensors[f"{stem}.alpha"] = torch.tensor(ALPHA)
    save_file(tensors, path)
    return path


@pytest.mark.parametrize("names", ["comfyui", "kohya"])
@pytest.mark.parametrize("family", CASES)
def test_every_layer_of_the_original_network_is_read(family, names, tmp_path):
    network = network_of(family)
    layers = layers_of(family, network)
    scale = 1.0 if names == "comfyui" else ALPHA / RANK
    expected = expected_of(family, layers, scale)
    lora = read_lora(write(tmp_path / "x.safetensors", layers, names), files(family), network)
    weights = {key.removesuffix(".weight") for key, x in expected.items() if x.dim() == 2}
    assert lora.layers.keys() == weights and not lora.dropped and not lora.left_out
    for name, layer in lora.layers.items():
        change = effect(layer.a, layer.b, layer.scale)
        assert difference(change, expected[f"{name}.weight"][:, 0]) < 1e-5
        if names == "comfyui" and f"{name}.bias" in expected:
            torch.testing.assert_close(layer.scale * layer.bias, expected[f"{name}.bias"])


def files(family):
    return families()[family].lora


def stock_layers(pipeline, path):
    """Return the layers that the stock pipeline makes of a file."""
    state = pipeline.lora_state_dict(str(path))
    names = {key.partition(".lora_")[0] for key in state}
    return {
        name.removeprefix("transformer."): [state[f"{name}.lora_{x}.weight"] for x in "AB"]
        for name in names
    }


@pytest.mark.parametrize("pipeline", [FluxPipeline, ZImagePipeline], ids=lambda x: x.__name__)
def test_the_blocks_are_what_the_stock_loader_makes_of_kohya_s_file(pipeline, tmp_path):
    """Its loader loses the alpha of FLUX.1's last layers, and takes no dotted joint layers."""
    family = pipeline.__name__
    network = network_of(family)
    layers = {
        name: x
        for name, x in layers_of(family, network).items()
        if re.match(r"(double_blocks|single_blocks|layers)\.", name) and "adaLN" not in name
    }
    expected = stock_layers(pipeline, write(tmp_path / "kohya.safetensors", layers, "kohya"))
    for names, factor in (("kohya", 1.0), ("comfyui", ALPHA / RANK)):
        path = write(tmp_path / f"{names}.safetensors", layers, names)
        lora = read_lora(path, files(family), network)
        assert lora.layers.keys() == expected.keys()
        for name, layer in lora.layers.items():
            found = factor * effect(layer.a, layer.b, layer.scale)
            assert difference(found, effect(*expected[name], 1.0)) < 1e-5


@pytest.mark.parametrize("own", ["to.q to.k to.v", "to_q to_k to_v"])
def test_z_image_s_layers_that_a_file_repeats_as_joint_ones_are_read_once(own, tmp_path, caplog):
    """As in files of trainers whose names only the stock loader knows."""
    network, tensors = network_of("ZImagePipeline"), {}
    block, width = "diffusion_model.layers.0.attention", 32
    for name in (*own.split(), "qkv"):
        rows = width * (3 if name == "qkv" else 1)
        tensors[f"{block}.{name}.lora.down.weight"] = torch.ones(2, width)
        tensors[f"{block}.{name}.lora.up.weight"] = torch.ones(rows, 2)
    save_file(tensors, tmp_path / "x.safetensors")
    lora = read_lora(tmp_path / "x.safetensors", files("ZImagePipeline"), network)
    assert lora.layers.keys() == {f"layers.0.attention.to_{x}" for x in "qkv"}
    assert {f"{block}.qkv.lora.{x}.weight" for x in ("down", "up")} == set(lora.dropped)
    assert lora.dropped[0] in caplog.text


def test_a_layer_of_its_own_and_in_a_joint_layer_is_refused(tmp_path):
    network, tensors = network_of("ZImagePipeline"), {}
    block = "diffusion_model.layers.0.attention"
    for name, rows in (("qkv", 96), ("to_q", 32)):
        tensors[f"{block}.{name}.lora_A.weight"] = torch.ones(2, 32)
        tensors[f"{block}.{name}.lora_B.weight"] = torch.ones(rows, 2)
    save_file(tensors, tmp_path / "x.safetensors")
    with refused(f"{block}.qkv.lora_A.weight", f"{block}.to_q.lora_A.weight"):
        read_lora(tmp_path / "x.safetensors", files("ZImagePipeline"), network)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float8_e4m3fn])
def test_the_scale_of_a_joint_layer_does_not_depend_on_the_precision_of_its_alpha(dtype, tmp_path):
    """In float16, alpha times rank would be infinite."""
    network, stem, tensors = network_of("ZImagePipeline"), "lora_unet_layers_0_attention_qkv", {}
    alpha = 448.0 if dtype.itemsize == 1 else 60000.0
    tensors[f"{stem}.lora_down.weight"] = torch.eye(2, 32).half()
    tensors[f"{stem}.lora_up.weight"] = torch.ones(96, 2).half()
    tensors[f"{stem}.alpha"] = torch.tensor(alpha).to(dtype)
    save_file(tensors, tmp_path / "x.safetensors")
    lora = read_lora(tmp_path / "x.safetensors", files("ZImagePipeline"), network)
    assert [layer.scale for layer in lora.layers.values()] == [
        float(tensors[f"{stem}.alpha"]) / 2
    ] * 3


def test_a_joint_layer_of_peft_keeps_the_scale_of_its_settings(tmp_path):
    """Also where one projection needs a smaller rank."""
    network, tensors = network_of("ZImagePipeline"), {}
    stem = "base_model.model.diffusion_model.layers.0.attention.qkv"
    b = torch.ones(96, 4)
    b[:32, 3] = 0
    tensors[f"{stem}.lora_A.weight"], tensors[f"{stem}.lora_B.weight"] = torch.eye(4, 32), b
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": 4, "lora_alpha": 2, "target_modules": ["qkv"]}
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    lora = read_lora(tmp_path, files("ZImagePipeline"), network)
    assert {layer.scale for layer in lora.layers.values()} == {0.5}
    assert len(lora.layers["layers.0.attention.to_q"].a) == 3


@pytest.mark.parametrize(
    "pattern", ["attention.qkv", "^diffusion_model.layers.0.attention.qkv", "qkv|w1"]
)
def test_peft_s_patterns_name_the_joint_layers_of_the_file(pattern, tmp_path):
    network, tensors = network_of("ZImagePipeline"), {}
    for name, rank, outputs in (("attention.qkv", 4, 96), ("attention.out", 2, 32)):
        stem = f"base_model.model.diffusion_model.layers.0.{name}"
        tensors[f"{stem}.lora_A.weight"] = torch.eye(rank, 32)
        tensors[f"{stem}.lora_B.weight"] = torch.ones(outputs, rank)
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["qkv", "out"]}
    settings |= {"rank_pattern": {pattern: 4}, "alpha_pattern": {pattern: 12}}
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    lora = read_lora(tmp_path, files("ZImagePipeline"), network)
    block = "layers.0.attention"
    scales = {name: layer.scale for name, layer in lora.layers.items()}
    assert scales == {f"{block}.to_{x}": 3.0 for x in "qkv"} | {f"{block}.to_out.0": 1.0}


def test_peft_s_names_around_the_original_network_need_not_cover_it(tmp_path):
    network = network_of("FluxPipeline")
    layers = {
        name: x for name, x in layers_of("FluxPipeline", network).items() if "img_attn" in name
    }
    tensors = {
        f"base_model.model.{name}.lora_{end}.weight": x
        for name, (a, b, _) in layers.items()
        for end, x in (("A", a), ("B", b))
    }
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": RANK, "lora_alpha": RANK, "target_modules": ["qkv"]}
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    lora = read_lora(tmp_path, files("FluxPipeline"), network)
    block = "transformer_blocks.0.attn"
    assert lora.layers.keys() == {f"{block}.{x}" for x in ("to_q", "to_k", "to_v", "to_out.0")}


@pytest.mark.parametrize(
    "name", ["layers.0.attention.qkv.diff_m", "lycoris_layers_0.lora_down.weight"]
)
def test_a_file_without_a_layer_of_the_network_is_refused_by_name(name, tmp_path):
    save_file({name: torch.ones(4, 4)}, tmp_path / "x.safetensors")
    with refused(tmp_path / "x.safetensors"):
        read_lora(tmp_path / "x.safetensors", files("ZImagePipeline"), network_of("ZImagePipeline"))
