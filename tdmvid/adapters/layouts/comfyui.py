"""ComfyUI's key layout, read from its comfy/lora.py, comfy/weight_adapter/lora.py and comfy/ldm.

What is written for it has no alphas: that is right in loaders that ignore them, or cannot read
them (diffusers', of Wan's embeddings).
"""

from __future__ import annotations

from .base import KeyLayout
from .kohya import name_unet
from .original import name_cogvideox, name_wan


def name_transformer(name: str) -> str:
    """Return the stem of a module of SD3 or PixArt, whose diffusers names ComfyUI knows itself."""
    return f"transformer.{name}"


def _name_cogvideox(name: str) -> str:
    return f"diffusion_model.{name_cogvideox(name)}"


def _name_wan(name: str) -> str:
    return f"diffusion_model.{name_wan(name)}"


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
    },
)
