"""ComfyUI's key layout, from its comfy/lora.py, comfy/weight_adapter/lora.py and comfy/ldm.

Files written for it contain no alphas, so that they also work in loaders that ignore alphas or
cannot read them, such as diffusers' loader for Wan's embeddings.
"""

from __future__ import annotations

from .base import KeyLayout
from .joined import join_qkv
from .kohya import name_unet
from .original import name_cogvideox, name_hunyuan, name_wan


def name_transformer(name: str) -> str:
    """Return the key prefix of an module that keeps its name in diffusers."""
    return f"transformer.{name}"


def _name_cogvideox(name: str) -> str:
    return f"diffusion_model.{name_cogvideox(name)}"


def _name_wan(name: str) -> str:
    return f"diffusion_model.{name_wan(name)}"


def _name_hunyuan(name: str) -> str:
    return f"diffusion_model.{name_hunyuan(name, comfyui=True)}"


COMFYUI = KeyLayout(
    "comfyui",
    down="lora_A.weight",
    up="lora_B.weight",
    bias="diff_b",
    stems={
        "CogVideoXPipeline": _name_cogvideox,
        "CogVideoXImageToVideoPipeline": _name_cogvideox,
        "WanPipeline": _name_wan,
        "WanImageToVideoPipeline": _name_wan,
        "StableDiffusionPipeline": name_unet,
        "StableDiffusionXLPipeline": name_unet,
        "StableDiffusion3Pipeline": name_transformer,
        "PixArtAlphaPipeline": name_transformer,
        "ZImagePipeline": name_transformer,
        "Flux2KleinPipeline": name_transformer,
        "QwenImagePipeline": name_transformer,
        "FluxPipeline": name_transformer,
        "HunyuanVideo15Pipeline": _name_hunyuan,
    },
    joined={"HunyuanVideo15Pipeline": join_qkv},
)
