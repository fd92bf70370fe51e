"""The key layout of kohya-ss/sd-scripts (networks/lora.py) and programs that follow it.

It is offered for families that a program reads in this layout: ComfyUI reads the names of CogVideoX
and Wan; those of Wan are musubi-tuner's.
"""

from __future__ import annotations

from .base import KeyLayout
from .original import name_cogvideox, name_wan


def name_unet(name: str) -> str:
    """Return the key prefix of an SD1.5 or SDXL module, as sd-scripts, ComfyUI and WebUI read it.

    sd-scripts itself writes original names for SDXL, and converts diffusers names on loading.
    """
    return "lora_unet_" + name.replace(".", "_")


def _name_cogvideox(name: str) -> str:
    return name_unet(name_cogvideox(name))


def _name_wan(name: str) -> str:
    return name_unet(name_wan(name))


KOHYA = KeyLayout(
    "kohya",
    down="lora_down.weight",
    up="lora_up.weight",
    states_alpha=True,
    stems={
        "CogVideoXPipeline": _name_cogvideox,
        "CogVideoXImageToVideoPipeline": _name_cogvideox,
        "WanPipeline": _name_wan,
        "WanImageToVideoPipeline": _name_wan,
        "StableDiffusionPipeline": name_unet,
        "StableDiffusionXLPipeline": name_unet,
    },
)
