"""Module names in a model's original repository, from their names in diffusers."""

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
    "condition_embedder.image_embedder.norm1": "img_emb.proj.0",
    "condition_embedder.image_embedder.ff.net.0.proj": "img_emb.proj.1",
    "condition_embedder.image_embedder.ff.net.2": "img_emb.proj.3",
    "condition_embedder.image_embedder.norm2": "img_emb.proj.4",
    "proj_out": "head.head",
}
_WAN = {
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "o",
    "add_k_proj": "k_img",
    "add_v_proj": "v_img",
    "norm_added_k": "norm_k_img",
}
_HUNYUAN = {  # of a block: (original, ComfyUI)
    "attn.to_q": ("img_attn_q", ""),
    "attn.to_k": ("img_attn_k", ""),
    "attn.to_v": ("img_attn_v", ""),
    "attn.to_qkv": ("img_attn_qkv", "img_attn.qkv"),
    "attn.to_out.0": ("img_attn_proj", "img_attn.proj"),
    "attn.add_q_proj": ("txt_attn_q", ""),
    "attn.add_k_proj": ("txt_attn_k", ""),
    "attn.add_v_proj": ("txt_attn_v", ""),
    "attn.add_qkv_proj": ("txt_attn_qkv", "txt_attn.qkv"),
    "attn.to_add_out": ("txt_attn_proj", "txt_attn.proj"),
    "ff.net.0.proj": ("img_mlp.fc1", "img_mlp.0"),
    "ff.net.2": ("img_mlp.fc2", "img_mlp.2"),
    "ff_context.net.0.proj": ("txt_mlp.fc1", "txt_mlp.0"),
    "ff_context.net.2": ("txt_mlp.fc2", "txt_mlp.2"),
    "norm1.linear": ("img_mod.linear", "img_mod.lin"),
    "norm1_context.linear": ("txt_mod.linear", "txt_mod.lin"),
}
_HUNYUAN_REFINER = {
    "attn.to_qkv": ("self_attn_qkv", "self_attn.qkv"),
    "attn.to_out.0": ("self_attn_proj", "self_attn.proj"),
    "ff.net.0.proj": ("mlp.fc1", "mlp.0"),
    "ff.net.2": ("mlp.fc2", "mlp.2"),
    "norm_out.linear": ("adaLN_modulation.1", "adaLN_modulation.1"),
}
_HUNYUAN_EMBEDDERS = {
    "time_embed.timestep_embedder": ("time_in.mlp.0", "time_in.mlp.2", "time_in"),
    "context_embedder.time_text_embed.timestep_embedder": (
        "txt_in.t_embedder.mlp.0",
        "txt_in.t_embedder.mlp.2",
        "txt_in.t_embedder",
    ),
    "context_embedder.time_text_embed.text_embedder": (
        "txt_in.c_embedder.linear_1",
        "txt_in.c_embedder.linear_2",
        "txt_in.c_embedder",
    ),
}
_HUNYUAN_OUTSIDE = {
    f"{name}.linear_{i + 1}": (original[i], f"{original[2]}.{('in', 'out')[i]}_layer")
    for name, original in _HUNYUAN_EMBEDDERS.items()
    for i in range(2)
} | {
    name: (original, original)
    for name, original in {
        "context_embedder.proj_in": "txt_in.input_embedder",
        "context_embedder_2.linear_1": "byt5_in.fc1",
        "context_embedder_2.linear_2": "byt5_in.fc2",
        "context_embedder_2.linear_3": "byt5_in.fc3",
        "x_embedder.proj": "img_in.proj",
        "proj_out": "final_layer.linear",
    }.items()
}


def name_cogvideox(name: str) -> str:
    """Return a module's name in ComfyUI's CogVideoX (comfy/ldm/cogvideo/model.py).

    There, a block holds its linear layers directly.
    """
    match = re.fullmatch(r"transformer_blocks\.(\d+)\.(.+)", name)
    if match:
        return f"blocks.{match[1]}.{_COGVIDEOX.get(match[2], match[2])}"
    return re.sub(r"^(time|ofs)_embedding\.", r"\1_embedding_", name)


def name_wan(name: str) -> str:
    """Return a module's name in Wan's own repository, also used by comfy/ldm/wan/model.py."""
    match = re.fullmatch(r"(blocks\.\d+)\.attn([12])\.(.+)", name)
    if match:
        attention = "self_attn" if match[2] == "1" else "cross_attn"
        return f"{match[1]}.{attention}.{_WAN.get(match[3], match[3])}"
    name = re.sub(r"^(blocks\.\d+)\.norm2$", r"\1.norm3", name)
    name = name.replace("ffn.net.0.proj", "ffn.0").replace("ffn.net.2", "ffn.2")
    return _WAN_OUTSIDE.get(name, name)


def name_hunyuan(name: str, *, comfyui: bool) -> str:
    """Return a module's name in HunyuanVideo's repository, or in ComfyUI's HunyuanVideo.

    Args:
        name: Its name in diffusers, or that of a joint layer, see joined.py.
        comfyui: Whether to return ComfyUI's name (comfy/ldm/hunyuan_video/model.py). Queries, keys
            and values have none, because ComfyUI joins them.
    """
    for pattern, prefix, table in (
        (r"transformer_blocks\.(\d+)\.(.+)", "double_blocks", _HUNYUAN),
        (
            r"context_embedder\.token_refiner\.refiner_blocks\.(\d+)\.(.+)",
            "txt_in.individual_token_refiner.blocks",
            _HUNYUAN_REFINER,
        ),
    ):
        match = re.fullmatch(pattern, name)
        if match and table.get(match[2], ("", ""))[comfyui]:
            return f"{prefix}.{match[1]}.{table[match[2]][comfyui]}"
    return _HUNYUAN_OUTSIDE.get(name, (name, name))[comfyui]
