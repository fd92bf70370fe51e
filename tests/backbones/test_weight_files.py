"""Model folders as found in practice: complete ones load, others are refused by name."""

import shutil

import pytest
import torch
from families import BUILDERS
from refusals import refused
from safetensors.torch import load_file, save_file

from tdmvid.backbones.registry import load_backbone, resolve
from tdmvid.backbones.weight_files import pipeline_variants, weights_variant
from tdmvid.config import ModelConfig

FAMILY = "StableDiffusionPipeline"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    BUILDERS[FAMILY].build("epsilon").save_pretrained(folder)
    return folder


@pytest.fixture
def folder(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "model")


def load(folder, **changes):
    return load_backbone(ModelConfig(path=str(folder), **changes), BUILDERS[FAMILY].SIZE)


def parts(backbone):
    return backbone.network, backbone.vae, backbone.text.text_encoder


def assert_same(one, other):
    for a, b in zip(parts(one), parts(other), strict=True):
        assert a.state_dict().keys() == b.state_dict().keys()
        assert all(torch.equal(x, b.state_dict()[name]) for name, x in a.state_dict().items())


def test_a_folder_of_one_variant_is_loaded_without_naming_it(whole, folder):
    for path in folder.glob("*/*.safetensors"):
        path.rename(path.with_name(path.name.replace(".safetensors", ".fp16.safetensors")))
    assert_same(load(folder), load(whole))


def test_a_folder_of_bin_files_is_loaded(whole, folder):
    for path in folder.glob("*/*.safetensors"):
        name = "pytorch_model.bin" if path.stem == "model" else f"{path.stem}.bin"
        torch.save(load_file(path), path.with_name(name))
        path.unlink()
    assert_same(load(folder), load(whole))


class Harm:
    def __reduce__(self):
        return (print, ("HARM",))


def test_a_bin_file_that_would_run_code_is_refused(folder, capsys):
    for part in ("unet", "vae", "text_encoder"):
        for path in (folder / part).glob("*.safetensors"):
            path.unlink()
        name = "pytorch_model.bin" if part == "text_encoder" else "diffusion_pytorch_model.bin"
        torch.save({"a": torch.ones(1), "b": Harm()}, folder / part / name)
    with refused("model"):
        load(folder)
    assert "HARM" not in capsys.readouterr().out


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
@pytest.mark.parametrize("damage", ["a missing weight", "another shape", "no safetensors"])
def test_a_part_whose_weights_are_not_whole_is_refused(folder, part, damage):
    [path] = (folder / part).glob("*.safetensors")
    weights = load_file(path)
    name = max(weights)
    if damage == "no safetensors":
        path.write_bytes(b"{}" * 50)
    elif damage == "another shape":
        save_file(weights | {name: torch.ones(1, 2, 3)}, path)
    else:
        save_file({key: x for key, x in weights.items() if key != name}, path)
    with refused(str(folder)):
        parts(load(folder))


def test_variants_are_told_from_shards(tmp_path):
    def found(*names, wanted=None):
        shutil.rmtree(tmp_path / "x", ignore_errors=True)
        (tmp_path / "x").mkdir()
        for name in names:
            (tmp_path / "x" / name).touch()
        return weights_variant(tmp_path / "x", wanted)

    assert found("model-00001-of-00002.safetensors", "config.json") is None
    assert found("model.fp16-00001-of-00002.safetensors") == "fp16"
    assert found("diffusion_pytorch_model-00001-of-00002.fp16.safetensors") == "fp16"
    assert found("model.fp16.safetensors", "model.safetensors") is None
    assert found("model.fp16.safetensors", "model.safetensors", wanted="fp16") == "fp16"
    assert found("model.safetensors", wanted="fp16") is None
    assert found("diffusion_pytorch_model.non_ema.bin") == "non_ema"
    assert found() is None


@pytest.mark.parametrize(
    "unet, vae, wanted, expected",
    [
        ([""], [""], None, {"default": None}),
        ([".fp16"], [".fp16"], None, {"default": "fp16"}),
        (["", ".fp16"], [".fp16"], None, {"default": None, "vae": "fp16"}),
        ([".fp16"], [""], "fp16", {"default": "fp16"}),  # diffusers then takes the plain file
        ([".fp16"], [".bf16"], "fp16", {"default": "fp16", "vae": "bf16"}),
        ([], [], None, {"default": None}),
    ],
)
def test_a_stock_pipeline_is_told_the_variant_of_each_part(tmp_path, unet, vae, wanted, expected):
    (tmp_path / "scheduler").mkdir()
    for part, variants in (("unet", unet), ("vae", vae)):
        (tmp_path / part).mkdir()
        for variant in variants:
            (tmp_path / part / f"diffusion_pytorch_model{variant}.safetensors").touch()
    parts = ["scheduler", "unet", "vae", "absent"]
    assert pipeline_variants(tmp_path, parts, wanted) == expected


def test_the_variants_of_a_pipeline_are_those_of_the_parts_that_it_loads(folder):
    for path in (folder / "unet").glob("*.safetensors"):
        path.rename(path.with_name(f"{path.stem}.fp16.safetensors"))
    (folder / "safety_checker").mkdir()
    (folder / "safety_checker" / "model.fp16.safetensors").touch()
    stock = load(folder).stock
    assert stock.variants() == {"default": None, "unet": "fp16"}
    assert stock.variants("unet") == {"default": None}


@pytest.mark.parametrize("name", ["model_index.json", "unet/config.json", "vae/config.json"])
@pytest.mark.parametrize(
    "content", ["", "{", "[]", "[" * 10**5, "{}"], ids=["empty", "cut", "list", "deep", "object"]
)
def test_damaged_configs_are_named_in_one_line(folder, name, content):
    (folder / name).write_text(content)
    with refused(str(folder)):
        parts(load(folder))


def test_a_single_file_is_refused_with_the_lines_that_convert_it(tmp_path):
    (tmp_path / "sd.safetensors").touch()
    for path in (tmp_path / "sd.safetensors", tmp_path):
        with refused("from_single_file", "save_pretrained", str(tmp_path / "sd.safetensors")):
            resolve(ModelConfig(path=str(path)))


def test_a_network_alone_is_refused_with_the_lines_that_make_a_pipeline(whole):
    with refused("diffusers.StableDiffusionPipeline", "UNet2DConditionModel", "save_pretrained"):
        resolve(ModelConfig(path=str(whole / "unet")))
