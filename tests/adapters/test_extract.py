"""Extraction: the best LoRA of a rank with its error; published files in several layouts."""

import copy
import json
import pickle

import pytest
import torch
from refusals import refused
from safetensors.torch import save_file

from tdmvid.adapters.extract import adapt, extract
from tdmvid.adapters.lora import attach
from tdmvid.adapters.read import read_lora
from tdmvid.adapters.weights import weights_of_state
from tdmvid.backbones.registry import load_backbone
from tdmvid.config import ClipSize, LoraSettings, ModelConfig
from tdmvid.roles.rounding import difference

RANK = 2


@pytest.fixture
def backbone(tiny_cogvideox):
    return load_backbone(ModelConfig(path=str(tiny_cogvideox("sincos"))), ClipSize(9, 32, 32))


def read(path, backbone):
    """Read a published LoRA, whose keys may lack a prefix."""
    return read_lora(path, backbone.lora, backbone.network, bare=True)


def layers(backbone, rank=RANK, seed=0):
    """Return a LoRA of every attention projection, by diffusers' names."""
    generator, state = torch.Generator().manual_seed(seed), {}
    for name, layer in backbone.network.named_modules():
        if name.endswith(backbone.lora_targets):
            state[f"{name}.lora_A.weight"] = 0.3 * torch.randn(
                rank, layer.in_features, generator=generator
            )
            state[f"{name}.lora_B.weight"] = 0.3 * torch.randn(
                layer.out_features, rank, generator=generator
            )
    return state


def tuned(backbone, state, scale=1.0, also=()):
    """Return the network's parameters plus a LoRA, with noise added to those of `also`."""
    out = {name: p.detach().clone() for name, p in backbone.network.named_parameters()}
    for key in state:
        if key.endswith("lora_A.weight"):
            name = key.removesuffix(".lora_A.weight")
            out[f"{name}.weight"] += scale * state[f"{name}.lora_B.weight"] @ state[key]
    for name in also:
        out[name] += 0.1
    return out


def test_a_change_of_low_rank_comes_out_whole(backbone):
    state = layers(backbone)
    found, errors = extract(backbone.network, tuned(backbone, state), RANK)
    assert found.keys() == state.keys() and errors["error"] < 1e-5 and not errors["left_out"]
    for name in errors["layers"]:
        change, expected = (
            s[f"{name}.lora_B.weight"] @ s[f"{name}.lora_A.weight"] for s in (found, state)
        )
        assert difference(change, expected) < 1e-4


def test_the_reported_errors_are_those_of_the_best_approximation(backbone):
    state = layers(backbone, rank=6)
    _, errors = extract(backbone.network, tuned(backbone, state), RANK)
    rest = total = 0.0
    for name, error in errors["layers"].items():
        spectrum = torch.linalg.svdvals(
            state[f"{name}.lora_B.weight"] @ state[f"{name}.lora_A.weight"]
        ).square()
        assert error == pytest.approx(
            (spectrum[RANK:].sum() / spectrum.sum()).sqrt().item(), rel=1e-3
        )
        rest, total = rest + spectrum[RANK:].sum().item(), total + spectrum.sum().item()
    assert 0.1 < errors["error"] == pytest.approx((rest / total) ** 0.5, rel=1e-3)


def test_changes_that_no_lora_holds_are_named_and_count_as_missing(backbone):
    also = ("proj_out.bias", "norm_final.weight")
    _, errors = extract(backbone.network, tuned(backbone, layers(backbone), also=also), RANK)
    assert sorted(errors["left_out"]) == sorted(also) and errors["error"] > 1e-2
    assert max(errors["layers"].values()) < 1e-4


def test_a_rank_above_a_layer_s_own_is_filled_with_zeros(backbone):
    found, errors = extract(
        backbone.network, tuned(backbone, layers(backbone)), 40
    )  # layers are 32 x 32
    assert errors["error"] < 1e-5 and {tuple(t.shape) for t in found.values()} == {
        (40, 32),
        (32, 40),
    }


def test_a_fine_tune_of_another_model_or_of_nothing_is_refused(backbone):
    same = {name: p.detach() for name, p in backbone.network.named_parameters()}
    with refused():
        extract(backbone.network, same, RANK)
    with refused("proj_out.bias"):
        extract(
            backbone.network, {name: p for name, p in same.items() if name != "proj_out.bias"}, RANK
        )


def output(backbone, network):
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(1, *backbone.latent_shape(), generator=generator)
    with torch.no_grad():
        return backbone.denoiser(network)(
            x, torch.tensor([0.6]), backbone.encode_prompts(["a red circle"])
        )


def diffusers_keys(state):
    return {f"transformer.{key}": value for key, value in state.items()}


def old_keys(state):
    """Rename to diffusers' keys from before peft: .lora.down and .lora.up."""
    return {
        f"transformer.{key}".replace("lora_A", "lora.down").replace("lora_B", "lora.up"): value
        for key, value in state.items()
    }


def peft_keys(state):
    """Rename to the keys of a bare peft model, wrapped for data parallelism."""
    return {
        f"module.base_model.model.{key}".replace(".weight", ".default.weight"): value
        for key, value in state.items()
    }


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".bin"])
@pytest.mark.parametrize(
    "layout", [diffusers_keys, old_keys, peft_keys], ids=lambda layout: layout.__name__
)
def test_a_published_lora_of_any_layout_is_its_change_of_the_weights(
    backbone, tmp_path, layout, suffix
):
    state, path = layers(backbone), tmp_path / f"lora{suffix}"
    save_file(layout(state), path) if suffix == ".safetensors" else torch.save(layout(state), path)
    merged = copy.deepcopy(backbone.network)
    merged.load_state_dict(tuned(backbone, state, scale=0.125), strict=False)
    module, _, settings = adapt(backbone, read(path, backbone).scaled(0.125))
    assert (settings.rank, settings.alpha) == (RANK, 0.25)
    assert difference(output(backbone, module), output(backbone, merged)) < 1e-4


def test_the_alpha_of_a_file_s_metadata_or_of_its_keys_is_its_own(backbone, tmp_path):
    state = diffusers_keys(layers(backbone))
    save_file(
        state,
        tmp_path / "a.safetensors",
        metadata={
            "lora_adapter_metadata": json.dumps(
                {"transformer.lora_alpha": 16, "transformer.r": RANK}
            )
        },
    )
    save_file(
        state
        | {
            f"{key.removesuffix('.lora_A.weight')}.alpha": torch.tensor(5.0)
            for key in state
            if "lora_A" in key
        },
        tmp_path / "b.safetensors",
    )
    assert (
        read(tmp_path / "a.safetensors", backbone).alpha == 16
        and read(tmp_path / "b.safetensors", backbone).alpha == 5
    )


def test_a_file_that_would_run_code_is_not_loaded(backbone, tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    for name, write in (
        ("a.pt", lambda path: torch.save({"x": Trap()}, path)),
        ("b.bin", lambda path: path.write_bytes(pickle.dumps(Trap()))),
    ):
        write(tmp_path / name)
        with refused(name):
            read(tmp_path / name, backbone)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "tensors, facts",
    [
        (
            {"transformer.transformer_blocks.0.attn1.to_q.weight": torch.zeros(2)},
            ("to_q.weight",),
        ),
        (
            {
                "transformer.x.lora_A.weight": torch.zeros(2, 4),
                "transformer.x.lora_B.weight": torch.zeros(4, 2),
            },
            ("x",),
        ),
        (
            {
                "proj_out.lora_A.weight": torch.zeros(2, 4),
                "proj_out.lora_B.weight": torch.zeros(32, 2),
            },
            ("proj_out", "[32, 4]", "[32, 32]"),
        ),
    ],
)
def test_a_file_of_something_else_is_refused(backbone, tmp_path, tensors, facts):
    save_file(tensors, tmp_path / "x.safetensors")
    with refused(*facts):
        read(tmp_path / "x.safetensors", backbone)


def test_missing_cut_and_foreign_files_are_refused(backbone, tmp_path):
    (tmp_path / "cut.safetensors").write_bytes(b"\x10")
    torch.save([torch.zeros(1)], tmp_path / "list.pt")
    for name, error, *facts in (
        ("none.pt", FileNotFoundError, "none.pt"),
        ("cut.safetensors", ValueError, "cut.safetensors"),
        ("list.pt", ValueError, "list.pt"),
        ("", ValueError, tmp_path, "cut.safetensors"),
    ):
        with refused(*facts, error=error):
            read(tmp_path / name, backbone)
    (tmp_path / "x.ckpt").touch()
    with refused("x.ckpt", ".safetensors"):
        read(tmp_path / "x.ckpt", backbone)


def test_an_extracted_lora_is_attached_as_a_trained_one_would_be(backbone):
    state = layers(backbone)
    _module, tensors, settings = adapt(backbone, weights_of_state(state))
    again = load_backbone(backbone.config, backbone.size)
    expected = attach(again.network, LoraSettings(RANK, float(RANK)), backbone.lora_targets, seed=5)
    assert {n: tuple(p.shape) for n, p in expected.named_parameters() if p.requires_grad} == {
        n: tuple(t.shape) for n, t in tensors.items()
    }
    assert settings.alpha == settings.rank == RANK
