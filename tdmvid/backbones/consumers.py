"""What other programs call the modules of a network: the stems of their LoRA keys.

A family names its consumers in `Backbone.lora_names`: consumer -> function from a diffusers
module name ("transformer_blocks.0.attn1.to_q") to that stem. Read from the consumers' own
loaders: ComfyUI's comfy/lora.py (`model_lora_keys_unet`), the model files in its comfy/ldm, and
networks/lora.py of kohya-ss/sd-scripts. A family has kohya's names where a program reads them:
those of CogVideoX and Wan are read by ComfyUI, and Wan's are those of musubi-tuner.
"""

from __future__ import annotations

import re

_COGVIDEOX = {
    "attn1.to_q": "q",
    "attn1.to_k": "k",
    "attn1.to_v": "v",
    "attn1.to_out.0": "attn_out",
    "ff.net.0.proj": "ff_proj",
    "ff.net.2": "ff_out",
}
_WAN_OUTSIDE = {
    "condition_embedder.time_embedder.linear_1": "time_embedding.0",
    "condition_embedder.time_embedder.linear_2": "time_embedding.2",
    "condition_embedder.text_embedder.linear_1": "text_embedding.0",
    "condition_embedder.text_embedder.linear_2": "text_embedding.2",
    "condition_embedder.time_proj": "time_projection.1",
    "proj_out": "head.head",
}
_WAN = {
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "o",
    "add_k_proj": "k_img",
    "add_v_proj": "v_img",
}


def kohya_unet(name: str) -> str:
    """sd-scripts for SD1.5 and SDXL, also read by ComfyUI and WebUI: lora_unet_ and the name with
    underscores.

    For SDXL sd-scripts itself writes the original names, and converts these when it loads.
    """
    return "lora_unet_" + name.replace(".", "_")


def comfyui_transformer(name: str) -> str:
    """ComfyUI for SD3 and PixArt, whose diffusers names it knows itself."""
    return f"transformer.{name}"


def comfyui_cogvideox(name: str) -> str:
    """ComfyUI's own CogVideoX (comfy/ldm/cogvideo/model.py), where a block holds its linear layers
    directly.
    """
    match = re.fullmatch(r"transformer_blocks\.(\d+)\.(.+)", name)
    if match:
        return f"diffusion_model.blocks.{match[1]}.{_COGVIDEOX.get(match[2], match[2])}"
    return "diffusion_model." + re.sub(r"^(time|ofs)_embedding\.", r"\1_embedding_", name)


def comfyui_wan(name: str) -> str:
    """ComfyUI's Wan, in the original repository's names (comfy/ldm/wan/model.py)."""
    match = re.fullmatch(r"(blocks\.\d+)\.attn([12])\.(.+)", name)
    if match:
        return f"diffusion_model.{match[1]}.{'self_attn' if match[2] == '1' else 'cross_attn'}.{_WAN.get(match[3], match[3])}"
    name = name.replace("ffn.net.0.proj", "ffn.0").replace("ffn.net.2", "ffn.2")
    return f"diffusion_model.{_WAN_OUTSIDE.get(name, name)}"


def kohya_cogvideox(name: str) -> str:
    """CogVideoX: lora_unet_ and ComfyUI's name with underscores."""
    return _underscored(comfyui_cogvideox(name))


def kohya_wan(name: str) -> str:
    """Wan: lora_unet_ and the original repository's name with underscores."""
    return _underscored(comfyui_wan(name))


def _underscored(stem: str) -> str:
    return "lora_unet_" + stem.removeprefix("diffusion_model.").replace(".", "_")
