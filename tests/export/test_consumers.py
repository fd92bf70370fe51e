r"""ComfyUI and sd-scripts themselves read the exports; needs a checkout and the Python of each.

    TDMVID_COMFYUI=~/ComfyUI TDMVID_COMFYUI_PYTHON=~/ComfyUI/venv/bin/python \
        python -m pytest tests/export/test_consumers.py
    TDMVID_SD_SCRIPTS=~/sd-scripts TDMVID_SD_SCRIPTS_PYTHON=... \
        python -m pytest tests/export/test_consumers.py
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from families import stable_diffusion, wan
from safetensors.torch import load_file, save_file
from tiny import VARIANTS, cogvideox_scheduler, tiny_pipeline

from tdmvid.adapters.layouts import COMFYUI, KOHYA, layouts_of
from tdmvid.adapters.step_condition import time_embedding
from tdmvid.backbones.experts import experts_of
from tdmvid.backbones.registry import families, load_backbone
from tdmvid.config import ClipSize, ModelConfig
from tdmvid.diffusion.grid import shifted
from tdmvid.diffusion.sampler import ddim
from tdmvid.export.consumers.comfyui import build_workflow

pytestmark = pytest.mark.slow
needs_comfyui = pytest.mark.skipif(
    "TDMVID_COMFYUI" not in os.environ,
    reason="ComfyUI itself was left out: set TDMVID_COMFYUI to a checkout of it",
)
needs_sd_scripts = pytest.mark.skipif(
    "TDMVID_SD_SCRIPTS" not in os.environ,
    reason="sd-scripts itself was left out: set TDMVID_SD_SCRIPTS to a checkout of it",
)
ARCHITECTURES = Path(__file__).parents[2] / "tdmvid" / "backbones" / "architectures"
RANK, ALPHA = 2, 6.0


def work(program, folder):
    """Return the worker's answer for the files in `folder`; it runs in the program's Python."""
    variable = f"TDMVID_{program.upper()}"
    python, worker = (
        os.environ.get(f"{variable}_PYTHON", sys.executable),
        Path(__file__).with_name(f"{program}_worker.py"),
    )
    environment = os.environ | {"PYTHONPATH": os.environ[variable]}
    done = subprocess.run([python, worker, folder], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((folder / "answer.json").read_text())


def ask(folder, cases):
    (folder / "request.json").write_text(json.dumps(cases))
    return work("comfyui", folder)


def architecture(folder):
    """Return the family and the network of a model, on the meta device."""
    family = families()[json.loads((folder / "model_index.json").read_text())["_class_name"]]
    with torch.device("meta"):
        return family, family.spec.empty_network(folder)


def lora(network, targets, *, told=True):
    """Return random layers for every target and a time-embedding bias, as with a step condition."""
    generator, state, embedding = (
        torch.Generator().manual_seed(0),
        {},
        time_embedding(network).last,
    )
    for name, layer in network.named_modules():
        if isinstance(layer, torch.nn.Linear) and (
            name.endswith(targets) or (told and name == embedding)
        ):
            state[f"{name}.lora_A.weight"] = torch.randn(
                RANK, layer.in_features, generator=generator
            )
            state[f"{name}.lora_B.weight"] = 0.1 * torch.randn(
                layer.out_features, RANK, generator=generator
            )
            if told:
                state[f"{name}.lora_B.bias"] = (
                    0.1 * torch.randn(layer.out_features, generator=generator) * (name == embedding)
                )
    return state


def base_names(family, keys):
    """Return ComfyUI's names of the base's weights, if it does not know the diffusers names."""
    if not family.pipeline_class.startswith(("CogVideoX", "Wan")):
        return None
    names = {}
    for key in keys:
        stem, end = key.rsplit(".", 1) if key.endswith((".weight", ".bias")) else (key, "")
        name = COMFYUI.stems[family.pipeline_class](stem).removeprefix("diffusion_model.")
        if family.pipeline_class.startswith("Wan"):
            name = {"scale_shift_table": "head.modulation"}.get(
                name, name.replace("norm2", "norm3").replace("scale_shift_table", "modulation")
            )
        names[key] = ".".join(filter(None, (name.replace("attn1.norm_", "norm_"), end)))
    return names


@needs_comfyui
def test_comfyui_takes_every_key_of_every_model_in_the_right_shape(tmp_path):
    cases, layers = {}, {}
    for folder in sorted(ARCHITECTURES.iterdir()):
        family, network = architecture(folder)
        network = experts_of(network)[0]  # both are the same
        shapes = {key: list(value.shape) for key, value in network.state_dict().items()}
        for consumer, layout in layouts_of(family.pipeline_class).items():
            if family.pipeline_class in layout.joined:
                continue  # the base's layers would have to be joined too
            name, state = (
                f"{folder.name}.{consumer}",
                lora(network, family.lora_targets, told=consumer == "comfyui"),
            )
            tensors = layout.write(state, ALPHA, family.pipeline_class)
            save_file(tensors, tmp_path / f"{name}.lora.safetensors")
            layers[name] = (
                sum(key.endswith("lora_A.weight") for key in state),
                int(consumer == "comfyui"),
            )
            cases[name] = {
                "config": None,
                "settings": "",
                "names": base_names(family, shapes),
                "shapes": shapes,
                "lora": f"{name}.lora.safetensors",
            }
    answer = ask(tmp_path, cases)
    assert {name: (found["layers"], found["biases"]) for name, found in answer.items()} == layers
    assert not any(found["unloaded"] or found["wrong"] for found in answer.values())


@needs_sd_scripts
def test_sd_scripts_takes_every_key_at_the_scale_it_was_trained_at(tmp_path):
    layers = {}
    for name, folder in (
        ("sd15", "stable-diffusion-v1-5--stable-diffusion-v1-5"),
        ("sdxl", "stabilityai--stable-diffusion-xl-base-1.0"),
    ):
        family, network = architecture(ARCHITECTURES / folder)
        state = lora(network, family.lora_targets, told=False)
        save_file(
            KOHYA.write(state, ALPHA, family.pipeline_class),
            tmp_path / f"{name}.safetensors",
        )
        layers[name] = len(state) // 2
    answer = work("sd_scripts", tmp_path)
    assert {name: found["layers"] for name, found in answer.items()} == layers
    assert all(
        not found["left"] and not found["wrong"] and found["scales"] == [1.0]
        for found in answer.values()
    )  # alpha is multiplied into the weights


def small_cogvideox():
    """Build CogVideoX 1.5 with the noise levels that ComfyUI supports."""
    pipeline = tiny_pipeline("temporal")
    pipeline.scheduler = cogvideox_scheduler(snr_shift_scale=1.0)
    return pipeline


def small_unet():
    """Build a UNet with groups of 32 channels, as ComfyUI's has."""
    pipeline = stable_diffusion.build("v")
    pipeline.register_modules(
        unet=stable_diffusion.unet(block_out_channels=(32, 64), norm_num_groups=32)
    )
    return pipeline


SAMPLED = {
    "cogvideox": (
        small_cogvideox,
        ClipSize(9, 32, 32),
        "CogVideoX_T2V",
        {
            "image_model": "cogvideox",
            "num_attention_heads": 2,
            "attention_head_dim": 16,
            "in_channels": 8,
            "out_channels": 8,
            "time_embed_dim": 8,
            "text_embed_dim": 16,
            "num_layers": 2,
            "sample_width": 4,
            "sample_height": 4,
            "sample_frames": 9,
            "max_text_seq_length": 12,
            **VARIANTS["temporal"],
        },
    ),
    "wan": (
        lambda: wan.build("cross_norm"),
        wan.SIZE,
        "WAN21_T2V",
        {
            "image_model": "wan2.1",
            "model_type": "t2v",
            "dim": 36,
            "num_heads": 3,
            "in_dim": 4,
            "out_dim": 4,
            "text_dim": 16,
            "freq_dim": 16,
            "ffn_dim": 32,
            "num_layers": 2,
        },
    ),
    "unet": (
        small_unet,
        stable_diffusion.SIZE,
        "SD15",
        {
            "image_size": 32,
            "in_channels": 4,
            "out_channels": 4,
            "model_channels": 32,
            "num_res_blocks": [1, 1],
            "channel_mult": [1, 2],
            "context_dim": 16,
            "use_spatial_transformer": True,
            "transformer_depth": [1, 0],
            "transformer_depth_output": [1, 1, 0, 0],
            "transformer_depth_middle": 1,
            "num_heads": 2,
            "num_head_channels": -1,
            "legacy": False,
        },
    ),
}


@needs_comfyui
@pytest.mark.parametrize("name", SAMPLED)
def test_comfyui_s_nodes_of_the_workflow_give_the_student_s_latents(tmp_path, name):
    build, size, settings, config = SAMPLED[name]
    torch.manual_seed(0)
    build().save_pretrained(tmp_path / "base")
    backbone = load_backbone(ModelConfig(path=str(tmp_path / "base")), size)
    grid, cond = (
        shifted(4, 2.0, backbone.process),
        backbone.encode_prompts(["a red circle moves left"]),
    )
    z = torch.randn(1, *backbone.latent_shape(), generator=torch.Generator().manual_seed(1))
    weights = {key: value.contiguous() for key, value in backbone.network.state_dict().items()}
    save_file(weights, tmp_path / "weights.safetensors")
    state, plain = (
        lora(backbone.network, backbone.lora_targets),
        ddim(backbone.denoiser(backbone.network), z, cond, grid),
    )
    save_file(
        COMFYUI.write(state, ALPHA, backbone.pipeline_class),
        tmp_path / "lora.safetensors",
    )
    for key in [
        key for key in state if key.endswith("lora_A.weight")
    ]:  # the student: LoRA merged into the weights
        layer, stem = (
            backbone.network.get_submodule(key.removesuffix(".lora_A.weight")),
            key.removesuffix("A.weight"),
        )
        layer.weight += ALPHA / RANK * state[f"{stem}B.weight"] @ state[key]
        if state[f"{stem}B.bias"].any():
            layer.bias += ALPHA / RANK * state[f"{stem}B.bias"]
    student = ddim(backbone.denoiser(backbone.network), z, cond, grid)
    turn = (lambda x: x.transpose(1, 2)) if name == "cogvideox" else (lambda x: x)
    save_file(
        {"z": turn(z).contiguous(), "prompt_embeds": cond["prompt_embeds"].contiguous()},
        tmp_path / "inputs.safetensors",
    )
    (tmp_path / "workflow.json").write_text(
        json.dumps(build_workflow(backbone, grid, ["lora.safetensors"], "a prompt"))
    )
    answer = ask(
        tmp_path,
        {
            "found": {
                "config": config,
                "settings": settings,
                "dimensions": z.ndim - 2,
                "names": base_names(type(backbone), weights),
                "lora": "lora.safetensors",
                "weights": "weights.safetensors",
                "workflow": "workflow.json",
                "inputs": "inputs.safetensors",
            }
        },
    )
    assert not answer["found"]["unloaded"] and answer["found"]["biases"] == 1
    found = turn(load_file(tmp_path / "found.safetensors")["latents"])

    def difference(a):
        return ((a - student).norm() / student.norm()).item()

    print(f"{name}: {difference(found):.1e}")
    assert (
        difference(found) < 1e-2 and difference(plain) > 0.05
    )  # ComfyUI's float32 latents contain noise of up to 4518 times their size
