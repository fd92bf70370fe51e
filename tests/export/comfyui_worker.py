"""Run ComfyUI's own loader and sampling nodes on our files, in ComfyUI's Python.

    PYTHONPATH=CHECKOUT python comfyui_worker.py FOLDER

FOLDER/request.json lists cases: `config` (of the network, in ComfyUI's names; null lets ComfyUI
detect it from `shapes`), `settings` (a class in its supported_models), `names` (diffusers key of
the base -> ComfyUI's; null lets ComfyUI convert), `lora` and, for sampling, `weights`, `workflow`
and `inputs` (z, embeddings). Results go to FOLDER/answer.json, latents to <name>.safetensors.
"""

import json
import logging
import sys
from pathlib import Path

FOLDER = Path(sys.argv[1])
sys.argv = ["main.py", "--cpu"]

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import comfy.lora  # noqa: E402
import comfy.model_detection  # noqa: E402
import comfy.model_patcher  # noqa: E402
import comfy.sd  # noqa: E402
import comfy.supported_models  # noqa: E402
import comfy.utils  # noqa: E402
import torch  # noqa: E402
from comfy_extras import nodes_custom_sampler, nodes_model_advanced, nodes_void  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

CPU = torch.device("cpu")


def result(node, *args):
    return getattr(node.execute(*args), "result", None)[0]


class Warnings(logging.Handler):
    """Collects ComfyUI's messages about keys that it does not load."""

    def __init__(self):
        super().__init__()
        self.lines = []

    def emit(self, record):
        if "not loaded" in record.getMessage().lower():
            self.lines.append(record.getMessage())


def base(case):
    """Return the model, and the base's state dict in ComfyUI's names."""
    weights = (
        load_file(FOLDER / case["weights"])
        if "weights" in case
        else {k: torch.empty(s, device="meta") for k, s in case["shapes"].items()}
    )
    detection, config = comfy.model_detection, case["config"]
    if case["names"]:
        converted = {case["names"][key]: value for key, value in weights.items()}
    elif config is None and "conv_in.weight" in weights:
        converted, config = {}, detection.unet_config_from_diffusers_unet(weights)
    elif config is None:
        converted = detection.convert_diffusers_mmdit(weights, "")
    else:
        names = comfy.utils.unet_to_diffusers(config)
        converted = {names[key]: value for key, value in weights.items()}
    config = config or detection.detect_unet_config(converted, "")
    if case["settings"]:
        kind = type(
            "Tiny", (getattr(comfy.supported_models, case["settings"]),), {"unet_extra_config": {}}
        )
        settings = kind(config | {"dtype": torch.float32})
        settings.latent_format = comfy.supported_models.latent_formats.LatentFormat()
        settings.latent_format.latent_channels, settings.latent_format.latent_dimensions = (
            config.get("in_channels", config.get("in_dim")),
            case["dimensions"],
        )
    else:
        settings = detection.model_config_from_unet_config(config, converted)
    model = settings.get_model(
        converted, "", device=CPU if "weights" in case else torch.device("meta")
    )
    if "weights" in case:
        model.diffusion_model.load_state_dict(converted)
    return model


def load(case, model):
    """Return the patched model, and the keys that were not loaded or do not fit."""
    warnings = Warnings()
    logging.getLogger().addHandler(warnings)
    lora = comfy.utils.load_torch_file(str(FOLDER / case["lora"]), safe_load=True)
    patcher, _ = comfy.sd.load_lora_for_models(
        comfy.model_patcher.ModelPatcher(model, CPU, CPU), None, lora, 1.0, 0.0
    )
    logging.getLogger().removeHandler(warnings)
    patches = comfy.lora.load_lora(
        lora, comfy.lora.model_lora_keys_unet(model, {}), log_missing=False
    )
    state, wrong = model.state_dict(), []
    for key, patch in patches.items():
        weight = state[key].shape if isinstance(key, str) else state[key[0]].narrow(*key[1]).shape
        own = (
            patch[1][0].shape
            if isinstance(patch, tuple)
            else (patch.weights[0].shape[0], patch.weights[1].shape[1])
        )
        if tuple(own) != tuple(weight[: len(own)]):
            wrong.append(str(key))
    biases = sum(isinstance(patch, tuple) for patch in patches.values())
    return patcher, {
        "model": type(model.model_config).__name__,
        "unloaded": warnings.lines,
        "wrong": wrong,
        "layers": len(patches) - biases,
        "biases": biases,
    }


class Noise:
    seed = 0

    def __init__(self, z):
        self.z = z

    def generate_noise(self, latent):
        return self.z.clone()


def sample(case, patcher):
    """Return the latents of the workflow's own nodes, from given noise and embeddings."""
    nodes, given = (
        json.loads((FOLDER / case["workflow"]).read_text()),
        load_file(FOLDER / case["inputs"]),
    )
    if "patch" in nodes:
        kind, inputs = (
            getattr(nodes_model_advanced, nodes["patch"]["class_type"]),
            nodes["patch"]["inputs"],
        )
        patcher = kind().patch(patcher, inputs["sampling"], inputs["zsnr"])[0]
    steps = result(nodes_custom_sampler.ManualSigmas, nodes["sigmas"]["inputs"]["sigmas"])
    kind = nodes["sampler"]["class_type"]
    sampler = result(
        getattr(nodes_void, kind, None) or getattr(nodes_custom_sampler, kind),
        *nodes["sampler"]["inputs"].values(),
    )
    guider = result(nodes_custom_sampler.BasicGuider, patcher, [[given["prompt_embeds"], {}]])
    latent = {"samples": torch.zeros_like(given["z"])}
    return result(
        nodes_custom_sampler.SamplerCustomAdvanced,
        Noise(given["z"]),
        guider,
        sampler,
        steps,
        latent,
    )["samples"]


answer = {}
for name, case in json.loads((FOLDER / "request.json").read_text()).items():
    patcher, answer[name] = load(case, base(case))
    if "workflow" in case:
        save_file({"latents": sample(case, patcher).contiguous()}, FOLDER / f"{name}.safetensors")
(FOLDER / "answer.json").write_text(json.dumps(answer))
