"""A ComfyUI workflow in API format: base, LoRA at strength 1, no guidance, and exactly the trained
times.

Nodes of ComfyUI alone (nodes.py and comfy_extras/). Over explicit sigmas its `euler`, and for
CogVideoX its `VOIDSampler`, are the student's deterministic step: all go straight to the clean
prediction.
"""

from __future__ import annotations

import torch

from ..backbones.base import Backbone
from ..diffusion.grid import TimeGrid
from ..diffusion.process import RectifiedFlow

SIGMA_MAX = 4518.76
"""Where alpha is 0 ComfyUI stands at this noise level (comfy/model_sampling.py, zero terminal SNR).
"""


def sigmas(backbone: Backbone, grid: TimeGrid) -> str:
    """sigma / alpha of the student's times, then 0, as ManualSigmas reads them: no exponents. For a
    flow, sigma itself.
    """
    alpha, sigma = backbone.process.alpha_sigma(torch.tensor(grid.descending()))
    levels = (
        sigma
        if isinstance(backbone.process, RectifiedFlow)
        else (sigma / alpha).clamp(max=SIGMA_MAX)
    )
    return ", ".join([*(f"{level:.9f}" for level in levels.tolist()), "0.0"])


def workflow(backbone: Backbone, grid: TimeGrid, lora: str, prompt: str) -> dict:
    """Nodes by id; the file names of the base are the user's to choose."""
    (text, vae), nodes = _base(backbone)
    (length, cut), patch, video = (
        backbone.comfyui_frames(),
        backbone.comfyui_patch(),
        backbone.size.frames > 1,
    )
    latent = {"width": backbone.size.width, "height": backbone.size.height, "batch_size": 1} | (
        {"length": length} if video else {}
    )
    nodes |= {
        "lora": (
            "LoraLoaderModelOnly",
            {"model": ["model", 0], "lora_name": lora, "strength_model": 1.0},
        ),
        **({"patch": (patch[0], {"model": ["lora", 0]} | patch[1])} if patch else {}),
        "text": ("CLIPTextEncode", {"clip": text, "text": prompt}),
        "latent": (backbone.comfyui_latent, latent),
        "noise": ("RandomNoise", {"noise_seed": 0}),
        "guider": (
            "BasicGuider",
            {"model": ["patch" if patch else "lora", 0], "conditioning": ["text", 0]},
        ),
        "sampler": backbone.comfyui_sampler,
        "sigmas": ("ManualSigmas", {"sigmas": sigmas(backbone, grid)}),
        "sample": (
            "SamplerCustomAdvanced",
            {
                "noise": ["noise", 0],
                "guider": ["guider", 0],
                "sampler": ["sampler", 0],
                "sigmas": ["sigmas", 0],
                "latent_image": ["latent", 0],
            },
        ),
        **(
            {
                "cut": (
                    "LatentCut",
                    {"samples": ["sample", 0], "dim": "t", "index": cut, "amount": length},
                )
            }
            if cut
            else {}
        ),
        "decode": ("VAEDecode", {"samples": ["cut" if cut else "sample", 0], "vae": vae}),
    }
    if video:
        nodes["video"] = ("CreateVideo", {"images": ["decode", 0], "fps": float(backbone.size.fps)})
        nodes["save"] = (
            "SaveVideo",
            {"video": ["video", 0], "filename_prefix": "tdm", "format": "mp4", "codec": "h264"},
        )
    else:
        nodes["save"] = ("SaveImage", {"images": ["decode", 0], "filename_prefix": "tdm"})
    return {name: {"class_type": kind, "inputs": inputs} for name, (kind, inputs) in nodes.items()}


def _base(backbone: Backbone) -> tuple[tuple[list, list], dict]:
    """Where text encoder and autoencoder come out, and the nodes that load the base: three files,
    or one checkpoint.
    """
    if not backbone.comfyui_text:
        return (["model", 1], ["model", 2]), {
            "model": ("CheckpointLoaderSimple", {"ckpt_name": "BASE.safetensors"})
        }
    return (["clip", 0], ["vae", 0]), {
        "model": ("UNETLoader", {"unet_name": "BASE.safetensors", "weight_dtype": "default"}),
        "clip": (
            "CLIPLoader",
            {"clip_name": "TEXT_ENCODER.safetensors", "type": backbone.comfyui_text},
        ),
        "vae": ("VAELoader", {"vae_name": "VAE.safetensors"}),
    }
