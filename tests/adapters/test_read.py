"""A LoRA file is read as its own program reads it, or refused by name; never partly ignored."""

import copy
import json
from types import SimpleNamespace

import pytest
import torch
from diffusers import (
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
    FluxTransformer2DModel,
)
from lora_makers import changes, load_stock, write_diffusers, write_peft
from refusals import refused
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tdmvid.adapters.find import check_pair, find_lora
from tdmvid.adapters.layouts.names import BARE, PEFT
from tdmvid.adapters.load import adapted_layers, check_loaded, load_lora
from tdmvid.adapters.lora import attach, attach_weights, start_from
from tdmvid.adapters.read import read_lora
from tdmvid.adapters.weights import effect
from tdmvid.backbones.cogvideox import CogVideoX
from tdmvid.backbones.flux1 import Flux1
from tdmvid.backbones.lora_files import LORA_FILE, SECOND_FILE
from tdmvid.config import LoraSettings
from tdmvid.parallel import launch
from tdmvid.roles.rounding import difference
from tdmvid.sampling.student import load_for_sampling, use_student
from tdmvid.train.run import build_run

FILES, FLUX_FILES = CogVideoX.lora, Flux1.lora
TO_Q, TO_K = (f"transformer_blocks.{i}.attn1.to_{x}" for i, x in ((0, "q"), (1, "k")))


@pytest.fixture(scope="module")
def network(tiny_cogvideox):
    return CogVideoXTransformer3DModel.from_pretrained(tiny_cogvideox("sincos") / "transformer")


def assert_same(network, lora, expected):
    """Check the LoRA as read, and as attached."""
    attached = changes(attach_weights(copy.deepcopy(network), lora))
    assert lora.layers.keys() == expected.keys() == attached.keys()
    for name, layer in lora.layers.items():
        torch.testing.assert_close(layer.scale * layer.b @ layer.a, expected[name])
        torch.testing.assert_close(attached[name], expected[name])


SETTINGS = {
    "alpha is twice the rank": {},
    "rs-LoRA": {"use_rslora": True},
    "an alpha for some layers": {"alpha_pattern": {"to_q": 3, TO_K: 5}},
    "a rank for some layers": {"rank_pattern": {"to_q": 2}},
    "ranks, alphas and rs-LoRA": {
        "use_rslora": True,
        "rank_pattern": {"to_q": 2},
        "alpha_pattern": {"transformer_blocks.1.attn1.to_[qk]": 1},
    },
    "biases": {"lora_bias": True},
}


@pytest.mark.parametrize("write", [write_peft, write_diffusers])
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_each_layer_has_the_scale_that_stock_code_gives_it(network, tmp_path, write, settings):
    folder = write(network, tmp_path, **settings)
    lora, stock = read_lora(folder, FILES, network), load_stock(network, folder)
    assert_same(network, lora, changes(stock))
    check_loaded(stock, lora)
    next(iter(adapted_layers(stock).values())).scale_layer(0.25)
    with refused(lora.where):
        check_loaded(stock, lora)


def test_rounding_of_factors_that_cancel_is_told_from_a_wrong_scale(network, tmp_path):
    """After a few steps of training the factors of a layer nearly cancel for some inputs."""
    folder = write_diffusers(network, tmp_path)
    state = load_file(folder / LORA_FILE)
    for key in [key for key in state if key.endswith("lora_B.weight")]:
        a, b = state[key.replace("lora_B", "lora_A")], state[key]
        seen = a @ torch.randn(a.shape[1], generator=torch.Generator().manual_seed(0))
        state[key] = b - 0.998 * torch.outer(b @ seen, seen) / seen.square().sum()
    with safe_open(folder / LORA_FILE, "pt") as file:
        save_file(state, folder / LORA_FILE, file.metadata())
    lora = read_lora(folder, FILES, network)
    rounded = copy.deepcopy(load_stock(network, folder)).to(torch.bfloat16)
    check_loaded(rounded, lora)
    next(iter(adapted_layers(rounded).values())).scale_layer(1.1)
    with refused(lora.where):
        check_loaded(rounded, lora)


def test_without_settings_every_layer_has_a_scale_of_one(network, tmp_path):
    folder = write_diffusers(network, tmp_path, rank_pattern={"to_q": 2})
    save_file(load_file(folder / LORA_FILE), folder / LORA_FILE)
    lora = read_lora(folder, FILES, network)
    assert_same(network, lora, changes(load_stock(network, folder)))
    assert {layer.scale for layer in lora.layers.values()} == {1.0}


def broken_files(state):
    """Return name -> (tensors of a file that is not a valid LoRA, facts in the error message)."""
    key = f"transformer.{TO_Q}.lora_B.weight"
    without = {name.removeprefix("transformer."): tensor for name, tensor in state.items()}
    half = {
        name.removeprefix("transformer.") if "blocks.1" in name else name: tensor
        for name, tensor in state.items()
    }
    nan, inf = state[key].clone(), state[key].clone()
    nan[0, 0], inf[0, 0] = float("nan"), float("inf")
    return {
        "no layers": ({"x": torch.zeros(1)}, ("x",)),
        "nothing": ({}, ()),
        "no prefix": (without, ("lora_A.weight", "--published")),
        "half a prefix": (half, ("transformer_blocks.1.attn1", "'transformer'")),
        "no B": ({name: t for name, t in state.items() if name != key}, (TO_Q,)),
        "no A": (
            {name: t for name, t in state.items() if name != key.replace("_B", "_A")},
            (TO_Q,),
        ),
        "NaN": (state | {key: nan}, (key, "NaN")),
        "infinity": (state | {key: inf}, (key,)),
        "DoRA": (state | {f"transformer.{TO_Q}.lora_magnitude_vector": torch.ones(32)}, ("DoRA",)),
        "LoHa": ({f"transformer.{TO_Q}.hada_w1_a": torch.ones(32, 2)}, ("LoHa",)),
        "two ranks": (state | {key: state[key][:, :2].contiguous()}, (TO_Q, 2, 4)),
        "text encoders": ({"text_encoder.x.lora_A.weight": torch.ones(2, 2)}, ("text_encoder",)),
        "quantised": (state | {key: state[key].to(torch.int8)}, (key, "int8")),
        "twice": (
            state | {f"diffusion_model.{TO_Q}.lora_B.weight": state[key].clone()},
            (f"diffusion_model.{TO_Q}.lora_B.weight",),
        ),
    }


BROKEN = tuple(
    broken_files({f"transformer.{TO_Q}.lora_{x}.weight": torch.ones(4, 4) for x in "AB"})
)


@pytest.fixture(scope="module")
def whole(network, tmp_path_factory):
    folder = write_diffusers(network, tmp_path_factory.mktemp("whole"))
    return load_file(folder / LORA_FILE)


@pytest.mark.parametrize("name", BROKEN)
def test_a_file_that_is_no_whole_lora_is_refused_by_name(network, whole, tmp_path, name):
    tensors, facts = broken_files(whole)[name]
    save_file(tensors, tmp_path / LORA_FILE)
    with refused(tmp_path / LORA_FILE, *facts):
        read_lora(tmp_path, FILES, network)


@pytest.mark.parametrize("name", ["no prefix", "half a prefix", "no B", "NaN", "DoRA"])
def test_training_and_sampling_refuse_such_a_file(tiny_cogvideox, tiny_run, whole, tmp_path, name):
    tensors, facts = broken_files(whole)[name]
    save_file(tensors, tmp_path / LORA_FILE)
    with refused(tmp_path / LORA_FILE, *facts):
        build_run(tiny_run(tmp_path / "run", f"init={tmp_path}"), launch.start("none"))
    world = launch.start("none")
    backbone = load_for_sampling(world, model=str(tiny_cogvideox("sincos")), size="9x32x32")
    with refused(tmp_path / LORA_FILE, *facts):
        use_student(backbone, tmp_path)


@pytest.mark.parametrize(
    "change, facts",
    [
        ({"use_dora": True}, ("DoRA",)),
        ({"peft_type": "LOHA"}, ("LOHA",)),
        ({"r": 8}, (4, 8)),
        ({"init_lora_weights": "pissa"}, ("pissa",)),
        ({"init_lora_weights": "lora_ga"}, ("lora_ga",)),
        ({"modules_to_save": ["proj_out"]}, ("modules_to_save",)),
        ({"lora_alpha": "many"}, ("lora_alpha", "many")),
        ({"lora_alpha": float("inf")}, ("lora_alpha", "inf")),
        ({"rank_pattern": {"to_q": 0}}, ("to_q", 0)),
        ({"alpha_pattern": {"to_(q": 1}}, ("alpha_pattern",)),
        (b"{", ("adapter_config.json",)),
        (b'{"r": "\xe9"}', ("adapter_config.json",)),
        (b'{"r": ' + b"7" * 5000, ("adapter_config.json",)),
    ],
)
def test_settings_that_no_plain_lora_has_are_refused(network, tmp_path, change, facts):
    path = write_peft(network, tmp_path) / "adapter_config.json"
    if isinstance(change, bytes):
        path.write_bytes(change)
    else:
        path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with refused(tmp_path, *facts):
        read_lora(tmp_path, FILES, network)


def test_keys_without_a_prefix_are_read_where_a_file_is_converted(network, whole, tmp_path):
    state = {key.removeprefix("transformer."): tensor for key, tensor in whole.items()}
    save_file(state, tmp_path / "bare.safetensors")
    lora = read_lora(tmp_path / "bare.safetensors", FILES, network, bare=True)
    assert lora.layout == BARE and len(lora.layers) == len(whole) // 2


@pytest.mark.parametrize("prefix", ["module.transformer.", "base_model.model.", "diffusion_model."])
def test_a_file_that_the_stock_loader_passes_over_is_sampled_all_the_same(
    network, whole, tmp_path, prefix
):
    state = {prefix + key.removeprefix("transformer."): tensor for key, tensor in whole.items()}
    save_file(state, tmp_path / LORA_FILE)
    ours, theirs = (SimpleNamespace(transformer=copy.deepcopy(network)) for _ in range(2))
    load_lora(ours, tmp_path, FILES)
    CogVideoXPipeline.load_lora_into_transformer(dict(whole), transformer=theirs.transformer)
    found, expected = changes(ours.transformer), changes(theirs.transformer)
    assert found.keys() == expected.keys()
    for name in found:
        torch.testing.assert_close(found[name], expected[name])


def test_a_folder_of_peft_s_is_found_by_its_own_name(network, tmp_path):
    lora = read_lora(write_peft(network, tmp_path), FILES, network)
    assert lora.layout == PEFT and lora.where.endswith("adapter_model.safetensors")


@pytest.mark.parametrize("names", ["kohya", "text encoders too"])
def test_sampling_in_half_precision_takes_files_that_the_stock_loader_does_not(
    network, whole, tmp_path, names
):
    """The reference is the stock loader with the same LoRA in its own layout."""
    state = {
        f"lora_unet__{key[12:].partition('.lora_')[0].replace('.', '_')}.lora_"
        f"{'down' if 'lora_A' in key else 'up'}.weight": tensor
        for key, tensor in whole.items()
    }
    if names != "kohya":
        state = whole | {"text_encoder.x.lora_A.weight": torch.ones(2, 2)}
    theirs = copy.deepcopy(network).to(torch.bfloat16)
    ours = SimpleNamespace(transformer=copy.deepcopy(theirs))
    save_file(state, tmp_path / LORA_FILE)
    load_lora(ours, tmp_path, FILES)
    CogVideoXPipeline.load_lora_into_transformer(dict(whole), transformer=theirs)
    x = torch.randn(3, 32, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    found, expected = (net.get_submodule(TO_Q)(x) for net in (ours.transformer, theirs))
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0.02 * float(expected.abs().max()))
    assert not any(p.requires_grad for n, p in ours.transformer.named_parameters() if "lora" in n)


def test_a_run_starts_from_the_effect_of_every_layer_whatever_its_rank_and_scale(network, tmp_path):
    folder = write_diffusers(network, tmp_path, **SETTINGS["ranks, alphas and rs-LoRA"])
    settings, lora = LoraSettings(rank=4, alpha=3), read_lora(folder, FILES, network)
    module = attach(copy.deepcopy(network), settings, CogVideoX.lora_targets, seed=0)
    start_from(module, settings, lora, where="init")
    found, expected = changes(module), changes(load_stock(network, folder))
    assert expected.keys() < found.keys()
    for name, change in found.items():
        torch.testing.assert_close(change, expected.get(name, torch.zeros_like(change)))


@pytest.mark.parametrize("name", ["a.pt", "a.bin", "a.safetensors"])
@pytest.mark.parametrize("content", [b"", b"PK", b"\x80\x02", b"version https://git-lfs"])
def test_a_download_that_was_cut_is_called_damaged(network, tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with refused(tmp_path / name, "download" if name.endswith("rs") else "damaged"):
        read_lora(tmp_path / name, FILES, network)


def flux():
    """A FLUX.1 network of one block of each kind and of the real width, without weights."""
    with torch.device("meta"):
        return FluxTransformer2DModel(num_layers=1, num_single_layers=1)


FUSED = {
    "double_blocks_0_img_attn_qkv": [f"transformer_blocks.0.attn.to_{x}" for x in ("q", "k", "v")],
    "double_blocks_0_img_mlp_0": ["transformer_blocks.0.ff.net.0.proj"],
    "single_blocks_0_linear1": [
        *(f"single_transformer_blocks.0.attn.to_{x}" for x in ("q", "k", "v")),
        "single_transformer_blocks.0.proj_mlp",
    ],
    "single_blocks_0_linear2": ["single_transformer_blocks.0.proj_out"],
}
"""Layers of FLUX.1 in kohya's files, and the modules of diffusers that they hold."""


@pytest.mark.parametrize("half", [False, True], ids=["float32", "bfloat16"])
def test_names_that_only_the_stock_pipeline_knows_are_read_with_their_scales(tmp_path, half):
    network, generator, alpha = flux(), torch.Generator().manual_seed(0), 3.0
    modules, tensors, expected = dict(network.named_modules()), {}, {}
    for name, parts in FUSED.items():
        sizes = [modules[part].out_features for part in parts]
        down = torch.randn(2, modules[parts[0]].in_features, generator=generator)
        up = torch.randn(sum(sizes), 2, generator=generator)
        down, up = (x.bfloat16() if half else x for x in (down, up))
        tensors |= {f"lora_unet_{name}.lora_down.weight": down}
        tensors |= {f"lora_unet_{name}.lora_up.weight": up}
        tensors |= {f"lora_unet_{name}.alpha": torch.tensor(alpha)}
        for part, rows in zip(parts, up.float().split(sizes), strict=True):
            expected[part] = effect(down, rows, alpha / 2)
    save_file(tensors, tmp_path / "kohya.safetensors")
    lora = read_lora(tmp_path / "kohya.safetensors", FLUX_FILES, network)
    assert lora.layers.keys() == expected.keys()
    for name, layer in lora.layers.items():
        found = effect(layer.a, layer.b, layer.scale)
        assert difference(found, expected[name]) < (1e-2 if half else 1e-5)


def test_a_name_that_no_program_uses_is_refused_as_it_is_in_the_file(tmp_path):
    save_file(
        {f"lora_unet_no_such_layer.lora_{x}.weight": torch.ones(2, 2) for x in ("down", "up")},
        tmp_path / "a.safetensors",
    )
    with refused(tmp_path / "a.safetensors", "lora_unet_no_such_layer", "FluxTransformer2DModel"):
        read_lora(tmp_path / "a.safetensors", FLUX_FILES, flux())


@pytest.mark.parametrize(
    "high", ["slowmo_high_noise", "WanHighNoise", "flow-high", "highnoise", "WanHigh_r64"]
)
def test_an_expert_s_file_is_found_by_a_whole_word(tmp_path, high):
    """`slow` and `flow` contain `low`."""
    experts = list(FILES.of_experts(("transformer", "transformer_2")).values())
    (tmp_path / f"{high}.safetensors").touch()
    assert find_lora(tmp_path, experts[0]).stem == high
    with refused("'low'"):
        find_lora(tmp_path, experts[1])
    (tmp_path / "slowmo_low_noise.safetensors").touch()
    assert find_lora(tmp_path, experts[1]).stem == "slowmo_low_noise"


@pytest.mark.parametrize("name", ["adapter_model", "style_high_and_low_noise"])
def test_one_file_is_not_the_lora_of_both_experts(tmp_path, name):
    experts = list(FILES.of_experts(("transformer", "transformer_2")).values())
    file = tmp_path / f"{name}.safetensors"
    file.touch()
    pipeline = SimpleNamespace(transformer=torch.nn.Module(), transformer_2=torch.nn.Module())
    for check in (
        lambda: check_pair(tmp_path, experts),
        lambda: load_lora(pipeline, tmp_path, FILES),
    ):
        with refused(file, LORA_FILE, SECOND_FILE):
            check()
    (tmp_path / LORA_FILE).touch()
    if name.startswith("style"):
        check_pair(tmp_path, experts)
    (tmp_path / SECOND_FILE).symlink_to(LORA_FILE)
    with refused(tmp_path / LORA_FILE, SECOND_FILE):
        check_pair(tmp_path, experts)
