"""A ComfyUI workflow in API format: base, LoRA at strength 1, no guidance, and exactly the trained times.

Nodes of ComfyUI alone (nodes.py, comfy_extras/nodes_custom_sampler.py). `euler` over explicit
sigmas is the student's deterministic step: both go straight to the clean prediction.
"""

from __future__ import annotations

import torch

from ..backbones.base import Backbone
from ..diffusion.grid import TimeGrid

SIGMA_MAX = 4518.76
"""Where alpha is 0 ComfyUI stands at this noise level (comfy/model_sampling.py, zero terminal SNR)."""


def sigmas(backbone: Backbone, grid: TimeGrid) -> str:
    """sigma / alpha of the student's times, then 0, as ManualSigmas reads them: no exponents. For a flow, sigma itself."""
    alpha, sigma = backbone.process.alpha_sigma(torch.tensor(grid.descending()))
    flow = torch.allclose(alpha + sigma, torch.ones_like(alpha))
    levels = sigma if flow else (sigma / alpha).clamp(max=SIGMA_MAX)
    return ", ".join([*(f"{level:.6f}" for level in levels.tolist()), "0.0"])


def workflow(backbone: Backbone, grid: TimeGrid, lora: str, prompt: str) -> dict:
    """Nodes by id; the file names of the base are the user's to choose."""
    size, video = backbone.size, backbone.size.frames > 1
    latent = {"width": size.width, "height": size.height, "batch_size": 1} | ({"length": size.frames} if video else {})
    if backbone.comfyui_text:
        text, vae = ["clip", 0], ["vae", 0]
        nodes = {
            "model": ("UNETLoader", {"unet_name": "BASE.safetensors", "weight_dtype": "default"}),
            "clip": ("CLIPLoader", {"clip_name": "TEXT_ENCODER.safetensors", "type": backbone.comfyui_text}),
            "vae": ("VAELoader", {"vae_name": "VAE.safetensors"}),
        }
    else:
        text, vae, nodes = ["model", 1], ["model", 2], {"model": ("CheckpointLoaderSimple", {"ckpt_name": "BASE.safetensors"})}
    nodes |= {
        "lora": ("LoraLoaderModelOnly", {"model": ["model", 0], "lora_name": lora, "strength_model": 1.0}),
        "text": ("CLIPTextEncode", {"clip": text, "text": prompt}),
        "latent": (backbone.comfyui_latent, latent),
        "noise": ("RandomNoise", {"noise_seed": 0}),
        "guider": ("BasicGuider", {"model": ["lora", 0], "conditioning": ["text", 0]}),
        "sampler": ("KSamplerSelect", {"sampler_name": "euler"}),
        "sigmas": ("ManualSigmas", {"sigmas": sigmas(backbone, grid)}),
        "sample": ("SamplerCustomAdvanced", {
            "noise": ["noise", 0], "guider": ["guider", 0], "sampler": ["sampler", 0], "sigmas": ["sigmas", 0], "latent_image": ["latent", 0],
        }),
        "decode": ("VAEDecode", {"samples": ["sample", 0], "vae": vae}),
    }
    if video:
        nodes["video"] = ("CreateVideo", {"images": ["decode", 0], "fps": float(size.fps)})
        nodes["save"] = ("SaveVideo", {"video": ["video", 0], "filename_prefix": "tdm", "format": "mp4", "codec": "h264"})
    else:
        nodes["save"] = ("SaveImage", {"images": ["decode", 0], "filename_prefix": "tdm"})
    return {name: {"class_type": kind, "inputs": inputs} for name, (kind, inputs) in nodes.items()}
