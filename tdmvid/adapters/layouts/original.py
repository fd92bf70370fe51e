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
