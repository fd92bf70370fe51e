"""A LoRA keeps its meaning in every program's layout, and diffusers' converters agree."""

import pytest
import torch
from diffusers.loaders.lora_conversion_utils import (
    _convert_musubi_wan_lora_to_diffusers,
    _convert_non_diffusers_lora_to_diffusers,
    _convert_non_diffusers_wan_lora_to_diffusers,
)
from refusals import refused
from safetensors.torch import save_file
from torch import nn

from tdmvid.adapters.layouts import COMFYUI, KOHYA, KeyLayout, adapted_modules
from tdmvid.adapters.read import read_lora
from tdmvid.backbones.lora_files import LoraFiles

COGVIDEOX_CLASS, WAN_CLASS = "CogVideoXPipeline", "WanPipeline"
UNET_CLASS, SD3_CLASS = "StableDiffusionPipeline", "StableDiffusion3Pipeline"
RANK, ALPHA = 4, 6.0
COGVIDEOX = [
    f"transformer_blocks.{i}.{name}"
    for i in (0, 11)
    for name in ("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0", "ff.net.0.proj")
]
WAN = (
    [
        f"blocks.{i}.attn{j}.{name}"
        for i in (0, 1)
        for j in (1, 2)
        for name in ("to_q", "to_k", "to_v", "to_out.0")
    ]
    + [f"blocks.{i}.ffn.net.{name}" for i in (0, 1) for name in ("0.proj", "2")]
    + [
        f"condition_embedder.{name}"
        for name in (
            "time_embedder.linear_1",
            "time_embedder.linear_2",
            "text_embedder.linear_2",
            "time_proj",
        )
    ]
)
WAN_IMAGE = [
    *(f"blocks.{i}.attn2.{name}" for i in (0, 1) for name in ("add_k_proj", "add_v_proj")),
    *(f"condition_embedder.image_embedder.ff.net.{name}" for name in ("0.proj", "2")),
]
HUNYUAN_CLASS = "HunyuanVideo15Pipeline"
ATTENTIONS = ("transformer_blocks.0.attn", "context_embedder.token_refiner.refiner_blocks.1.attn")
HUNYUAN = [
    *(f"{name}.{part}" for name in ATTENTIONS for part in ("to_q", "to_k", "to_v", "to_out.0")),
    *(f"{ATTENTIONS[0]}.add_{part}_proj" for part in "qkv"),
    f"{ATTENTIONS[0]}.to_add_out",
    *(f"transformer_blocks.0.{name}" for name in ("ff.net.2", "ff_context.net.0.proj")),
    "time_embed.timestep_embedder.linear_2",
    "context_embedder.time_text_embed.text_embedder.linear_1",
]
UNET = [
    f"down_blocks.0.attentions.1.transformer_blocks.0.attn{j}.{name}"
    for j in (1, 2)
    for name in ("to_q", "to_k", "to_v", "to_out.0")
]


def network(names):
    """Build a network of linear layers with these names, 8 to 16 features."""
    root = nn.Module()
    for name in names:
        at = root
        for part in name.split(".")[:-1]:
            if part not in dict(at.named_children()):
                at.add_module(part, nn.Module())
            at = at.get_submodule(part)
        at.add_module(name.rpartition(".")[2], nn.Linear(8, 16))
    return root


def read(tensors, folder, model, names):
    """Read a file with the common reader."""
    save_file(tensors, folder / "lora.safetensors")
    files = LoraFiles(model, *(("unet", "unet") if model == UNET_CLASS else ()))
    return read_lora(folder / "lora.safetensors", files, network(names))


def lora(names, bias=False):
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name in names:
        state[f"{name}.lora_A.weight"] = torch.randn(RANK, 8, generator=generator)
        state[f"{name}.lora_B.weight"] = torch.randn(16, RANK, generator=generator)
        if bias:
            state[f"{name}.lora_B.bias"] = torch.randn(16, generator=generator) * (name == names[0])
    return state


def change(state, name, alpha):
    """Return what the LoRA adds to a weight."""
    return alpha / RANK * state[f"{name}.lora_B.weight"] @ state[f"{name}.lora_A.weight"]


@pytest.mark.parametrize(
    "layout, model, names",
    [
        (COMFYUI, COGVIDEOX_CLASS, COGVIDEOX),
        (COMFYUI, WAN_CLASS, WAN),
        (COMFYUI, SD3_CLASS, COGVIDEOX),
        (KOHYA, UNET_CLASS, UNET),
        (COMFYUI, UNET_CLASS, UNET),
        (KOHYA, COGVIDEOX_CLASS, COGVIDEOX),
        (KOHYA, WAN_CLASS, WAN),
        (COMFYUI, HUNYUAN_CLASS, HUNYUAN),
        (COMFYUI, "CogVideoXImageToVideoPipeline", [*COGVIDEOX, "ofs_embedding.linear_2"]),
        (KOHYA, "CogVideoXImageToVideoPipeline", COGVIDEOX),
        (COMFYUI, "WanImageToVideoPipeline", WAN + WAN_IMAGE),
        (KOHYA, "WanImageToVideoPipeline", WAN + WAN_IMAGE),
    ],
    ids=lambda value: getattr(value, "name", value) if not isinstance(value, list) else "",
)
def test_a_round_trip_adds_the_same_to_every_weight(layout, model, names, tmp_path):
    state = lora(names)
    again = read(layout.write(state, ALPHA, model), tmp_path, model, names)
    assert sorted(again.layers) == sorted(names)
    for name, layer in again.layers.items():
        found = layer.scale * layer.b @ layer.a
        torch.testing.assert_close(found, change(state, name, ALPHA))


def test_comfyui_finds_cogvideox_in_its_own_names():
    keys = COMFYUI.write(lora(COGVIDEOX), ALPHA, COGVIDEOX_CLASS)
    stems = {key.partition(".lora_")[0] for key in keys}
    assert stems == {
        f"diffusion_model.blocks.{i}.{name}"
        for i in (0, 11)
        for name in ("q", "k", "v", "attn_out", "ff_proj")
    }
    assert keys["diffusion_model.blocks.0.q.lora_A.weight"].shape == (RANK, 8) and keys[
        "diffusion_model.blocks.0.q.lora_B.weight"
    ].shape == (16, RANK)
    stem = COMFYUI.stems[COGVIDEOX_CLASS]
    assert stem("time_embedding.linear_2") == "diffusion_model.time_embedding_linear_2"
    assert stem("patch_embed.text_proj") == "diffusion_model.patch_embed.text_proj"


def test_comfyui_finds_hunyuan_video_in_its_own_names():
    """It holds queries, keys and values as one layer (comfy/ldm/hunyuan_video/model.py)."""
    keys = COMFYUI.write(lora(HUNYUAN), ALPHA, HUNYUAN_CLASS)
    refiner = "txt_in.individual_token_refiner.blocks.1.self_attn"
    assert {key.partition(".lora_")[0].removeprefix("diffusion_model.") for key in keys} == {
        *(f"double_blocks.0.{side}_attn.{n}" for side in ("img", "txt") for n in ("qkv", "proj")),
        *(f"{refiner}.{name}" for name in ("qkv", "proj")),
        *("double_blocks.0.img_mlp.2", "double_blocks.0.txt_mlp.0"),
        *("time_in.out_layer", "txt_in.c_embedder.in_layer"),
    }
    stem = "diffusion_model.double_blocks.0.img_attn.qkv"
    a, b = keys[f"{stem}.lora_A.weight"], keys[f"{stem}.lora_B.weight"]
    expected = [change(lora(HUNYUAN), f"{ATTENTIONS[0]}.to_{part}", ALPHA) for part in "qkv"]
    assert len(a) == 3 * RANK
    torch.testing.assert_close(b @ a, torch.cat(expected))


def test_a_joint_layer_changes_no_projection_that_is_not_adapted(tmp_path):
    names = HUNYUAN[1:]  # without the first attention's queries
    tensors = COMFYUI.write(lora(names), ALPHA, HUNYUAN_CLASS)
    layers = read(tensors, tmp_path, HUNYUAN_CLASS, HUNYUAN).layers
    assert not layers.pop(HUNYUAN[0]).b.any() and layers.keys() == set(names)
    for name, layer in layers.items():
        torch.testing.assert_close(
            layer.scale * layer.b @ layer.a, change(lora(names), name, ALPHA)
        )
    assert COMFYUI.read(tensors, HUNYUAN_CLASS, names).keys() == lora(names).keys()


@pytest.mark.parametrize("prefix", ["diffusion_model.", "lora_unet_"])
@pytest.mark.parametrize("joint", ["img_attn.qkv", "img_attn_qkv"])
@pytest.mark.parametrize("alpha", [None, 1.5])
def test_a_user_s_lora_of_joint_layers_is_read_as_three(prefix, joint, alpha, tmp_path):
    """Trained on one layer, its queries, keys and values share one factor A."""
    dotted = f"double_blocks.0.{joint}"
    stem = prefix + (dotted.replace(".", "_") if prefix == "lora_unet_" else dotted)
    a, b = torch.randn(RANK, 8), torch.randn(3 * 16, RANK)
    tensors = {f"{stem}.lora_down.weight": a, f"{stem}.lora_up.weight": b}
    if alpha:
        tensors[f"{stem}.alpha"] = torch.tensor(alpha)
    layers = read(tensors, tmp_path, HUNYUAN_CLASS, HUNYUAN).layers
    assert set(layers) == {f"{ATTENTIONS[0]}.to_{part}" for part in "qkv"}
    for part, block in zip("qkv", b.chunk(3), strict=True):
        layer = layers[f"{ATTENTIONS[0]}.to_{part}"]
        torch.testing.assert_close(
            layer.scale * layer.b @ layer.a, (alpha / RANK if alpha else 1) * block @ a
        )


def test_hunyuan_video_s_original_names_are_read(tmp_path):
    names = {f"{ATTENTIONS[0]}.to_q": "img_attn_q", f"{ATTENTIONS[0]}.to_add_out": "txt_attn_proj"}
    names |= {"transformer_blocks.0.ff.net.2": "img_mlp_fc2"}
    state, tensors = lora(list(names)), {}
    for name, other in names.items():
        stem = f"lora_unet_double_blocks_0_{other}"
        tensors[f"{stem}.lora_down.weight"] = state[f"{name}.lora_A.weight"]
        tensors[f"{stem}.lora_up.weight"] = state[f"{name}.lora_B.weight"]
    layers = read(tensors, tmp_path, HUNYUAN_CLASS, HUNYUAN).layers
    assert layers.keys() == names.keys()
    for name, layer in layers.items():
        torch.testing.assert_close(layer.scale * layer.b @ layer.a, change(state, name, RANK))


def test_a_joint_bias_is_added_to_the_projection_that_has_it(tmp_path):
    state, name = lora(HUNYUAN), f"{ATTENTIONS[0]}.to_k"
    state[f"{name}.lora_B.bias"] = torch.randn(16)
    tensors = COMFYUI.write(state, ALPHA, HUNYUAN_CLASS)
    layers = read(tensors, tmp_path, HUNYUAN_CLASS, HUNYUAN).layers
    again = COMFYUI.read(tensors, HUNYUAN_CLASS, HUNYUAN)
    expected = ALPHA / RANK * state[f"{name}.lora_B.bias"]
    torch.testing.assert_close(layers[name].scale * layers[name].bias, expected)
    torch.testing.assert_close(again[f"{name}.lora_B.bias"], expected)
    for part in "qv":
        bias = layers[f"{ATTENTIONS[0]}.to_{part}"].bias
        assert bias is None or not bias.any()


def test_diffusers_own_converter_reads_a_wan_file_of_kohya_s_names_as_the_same_lora():
    """The converter requires every linear layer of a block, and nothing outside blocks."""
    blocks = [name for name in WAN if name.startswith("blocks.")]
    state = lora(blocks)
    found = _convert_musubi_wan_lora_to_diffusers(KOHYA.write(state, ALPHA, WAN_CLASS))
    found = {key.removeprefix("transformer."): value for key, value in found.items()}
    assert set(found) == set(state)
    for name in blocks:
        torch.testing.assert_close(change(found, name, RANK), change(state, name, ALPHA))


def test_diffusers_own_converter_reads_our_wan_file_as_the_same_lora():
    state = lora(WAN)
    found = _convert_non_diffusers_wan_lora_to_diffusers(COMFYUI.write(state, ALPHA, WAN_CLASS))
    assert {key.removeprefix("transformer.") for key in found} == set(state)
    found = {key.removeprefix("transformer."): value for key, value in found.items()}
    for name in WAN:
        torch.testing.assert_close(change(found, name, RANK), change(state, name, ALPHA))


def test_diffusers_own_converter_reads_our_kohya_file_as_the_same_lora():
    state = lora(UNET)
    found, alphas = _convert_non_diffusers_lora_to_diffusers(KOHYA.write(state, ALPHA, UNET_CLASS))
    assert set(alphas.values()) == {RANK} and len(found) == len(state)
    for name in UNET:
        where, _, layer = name.removesuffix(".0").rpartition(".")
        down, up = (
            found[f"unet.{where}.processor.{layer}_lora.{side}.weight"] for side in ("down", "up")
        )
        torch.testing.assert_close(up @ down, change(state, name, ALPHA))


def test_a_bias_reaches_comfyui_as_it_is_added_and_kohya_s_format_refuses_it(tmp_path):
    state = lora(COGVIDEOX, bias=True)
    tensors = COMFYUI.write(state, ALPHA, COGVIDEOX_CLASS)
    biases = [key for key in tensors if key.endswith(".diff_b")]
    assert biases == ["diffusion_model.blocks.0.q.diff_b"]  # layers of zeros prove nothing
    torch.testing.assert_close(
        tensors[biases[0]], ALPHA / RANK * state[f"{COGVIDEOX[0]}.lora_B.bias"]
    )
    again = read(tensors, tmp_path, COGVIDEOX_CLASS, COGVIDEOX).layers[COGVIDEOX[0]]
    torch.testing.assert_close(again.scale * again.bias, tensors[biases[0]])
    with refused("attn1.to_q", "kohya", "comfyui"):
        KOHYA.write(state, ALPHA, UNET_CLASS)


def test_a_key_that_the_program_would_not_load_is_named():
    tensors = COMFYUI.write(lora(COGVIDEOX), ALPHA, COGVIDEOX_CLASS)
    tensors["diffusion_model.blocks.0.query.lora_A.weight"] = torch.zeros(RANK, 8)
    with refused("comfyui", "diffusion_model.blocks.0.query.lora_A.weight"):
        COMFYUI.read(tensors, COGVIDEOX_CLASS, COGVIDEOX)


@pytest.mark.parametrize(
    "broken, fact",
    [
        ({"a.lora_A.weight": 1}, "lora_A.weight"),
        ({"a.lora_A.weight": 1, "a.lora_B.weight": 1, "a.alpha": 1}, "a.alpha"),
        ({"a.lora_magnitude_vector": 1}, "a.lora_magnitude_vector"),
    ],
)
def test_a_state_dict_that_is_no_lora_is_refused(broken, fact):
    with refused(fact):
        adapted_modules(broken)


def test_two_modules_of_one_name_are_refused():
    layout = KeyLayout("short", "down", "up", {"Any": lambda name: "x"})
    with refused("b", "x", "short"):
        layout.write(lora(["a", "b"]), ALPHA, "Any")
