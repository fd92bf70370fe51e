"""LoRAs in the layouts of published TDM files are read as stock diffusers reads them.

The files themselves are not included. Names, suffixes and loading follow them: `transformer.` for
SD3 (at a scale of 0.125) and CogVideoX-2B, a `.pt` for Stable Diffusion 1.5.
"""

import json

import pytest
import torch
from families import BUILDERS
from refusals import refused
from safetensors.torch import save_file

from tdmvid.adapters.bundle import check_grid
from tdmvid.adapters.extract import adapt
from tdmvid.adapters.read import read_lora
from tdmvid.backbones.registry import load_backbone
from tdmvid.config import ModelConfig
from tdmvid.diffusion.grid import uniform
from tdmvid.diffusion.sampler import ddim

RANK = 2


def peft(state, part):
    """As diffusers writes it now."""
    return {f"{part}.{key}": tensor for key, tensor in state.items()}


def processors(state, part):
    """As diffusers wrote it when attention processors held the LoRA."""
    out = {}
    for key, tensor in state.items():
        where, _, rest = (
            key.removesuffix(".weight").replace(".to_out.0.", ".to_out.").rpartition(".to_")
        )
        layer, _, factor = rest.partition(".lora_")
        out[
            f"{part}.{where}.processor.to_{layer}_lora.{'down' if factor == 'A' else 'up'}.weight"
        ] = tensor
    return out


def kohya(state, part):
    """With an alpha that differs from the rank."""
    out = {}
    for key, tensor in state.items():
        name, _, factor = key.removesuffix(".weight").rpartition(".lora_")
        stem = "lora_unet_" + name.replace(".", "_")
        out |= {
            f"{stem}.lora_{'down' if factor == 'A' else 'up'}.weight": tensor,
            f"{stem}.alpha": torch.tensor(1.0),
        }
    return out


CASES = {
    "cogvideox": ("CogVideoXPipeline", "pytorch_lora_weights.safetensors", peft, 1.0),
    "sd3": ("StableDiffusion3Pipeline", "pytorch_lora_weights.safetensors", peft, 0.125),
    "sd15": ("StableDiffusionPipeline", "tdm.pt", peft, 1.0),
    "sd15 of old diffusers": ("StableDiffusionPipeline", "tdm.pt", processors, 1.0),
    "sd15 of kohya": ("StableDiffusionPipeline", "tdm.pt", kohya, 1.0),
}


@pytest.mark.parametrize("case", CASES)
def test_a_published_layout_is_read_as_stock_diffusers_reads_it(tmp_path, case):
    name, file, layout, scale = CASES[case]
    torch.manual_seed(0)
    BUILDERS[name].build(BUILDERS[name].VARIANTS[0]).save_pretrained(tmp_path / "base")
    backbone = load_backbone(ModelConfig(path=str(tmp_path / "base")), BUILDERS[name].SIZE)
    state, size = {}, 0.1 / scale
    for module, layer in backbone.network.named_modules():
        if module.endswith(backbone.lora_targets):
            state[f"{module}.lora_A.weight"] = torch.randn(RANK, layer.in_features)
            state[f"{module}.lora_B.weight"] = size * torch.randn(layer.out_features, RANK)
    tensors, path = layout(state, backbone.spec.network_folder), tmp_path / file
    save_file(tensors, path) if path.suffix == ".safetensors" else torch.save(tensors, path)

    grid, z, cond = (
        uniform(4, backbone.process),
        torch.randn(1, *backbone.latent_shape()),
        backbone.encode_prompts(["a red circle"]),
    )
    pipeline = backbone.stock.pipeline()
    pipeline.load_lora_weights(path, adapter_name="tdm")
    pipeline.set_adapters(["tdm"], [scale])
    pipeline.scheduler = backbone.student_scheduler(grid)
    theirs = backbone.stock.latents(pipeline, z, cond, steps=4)
    lora = read_lora(path, backbone.lora, backbone.network).scaled(scale)
    module, _, _ = adapt(load_backbone(backbone.config, backbone.size), lora)
    ours = ddim(backbone.denoiser(module), z, cond, grid)
    plain = ddim(backbone.denoiser(backbone.network), z, cond, grid)

    def difference(a):
        return ((a - theirs).norm() / theirs.norm()).item()

    assert difference(ours) < 1e-5 and difference(plain) > 1e-2


def test_a_published_file_does_not_belong_to_the_export_beside_it(tmp_path):
    """export.json counts for the files that it lists, and a run's folder is no student's."""
    (tmp_path / "own.safetensors").touch()
    (tmp_path / "other.safetensors").touch()
    facts = {"timesteps": [999, 499], "files": ["own.safetensors"]}
    (tmp_path / "export.json").write_text(json.dumps(facts))
    check_grid([999, 749], tmp_path / "other.safetensors")
    with refused("timesteps='999, 749'", "'999, 499'"):
        check_grid([999, 749], tmp_path / "own.safetensors")
    run = tmp_path / "run"
    (run / "lora").mkdir(parents=True)
    (run / "lora" / "export.json").write_text(json.dumps(facts))
    (run / "other.safetensors").touch()
    check_grid([999, 749], run / "other.safetensors")
    with refused("run's folder"):
        check_grid([999, 749], run)
