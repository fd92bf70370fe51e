"""Names of the modules of FLUX.1, FLUX.2, SD3 and Z-Image in their original repositories.

ComfyUI, sd-scripts and ai-toolkit name the modules so. All functions return a module's name from
that in diffusers, or from that of a joint layer, see joined.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from .joined import SWAPPED

_FLUX_DOUBLE = {
    ours: f"{stream}_{theirs}"
    for stream, names in {
        "img": ("attn.to_qkv", "attn.to_out.0", "ff.net.0.proj", "ff.net.2", "norm1.linear"),
        "txt": (
            "attn.add_qkv_proj",
            "attn.to_add_out",
            "ff_context.net.0.proj",
            "ff_context.net.2",
            "norm1_context.linear",
        ),
    }.items()
    for ours, theirs in zip(
        names, ("attn.qkv", "attn.proj", "mlp.0", "mlp.2", "mod.lin"), strict=True
    )
}
_FLUX_SINGLE = {"linear1": "linear1", "proj_out": "linear2", "norm.linear": "modulation.lin"}
_FLUX_OUTSIDE = {
    "x_embedder": "img_in",
    "context_embedder": "txt_in",
    "proj_out": "final_layer.linear",
    f"norm_out.linear{SWAPPED}": "final_layer.adaLN_modulation.1",
} | {
    f"time_text_embed.{ours}.linear_{i}": f"{theirs}.{end}_layer"
    for ours, theirs in {
        "timestep_embedder": "time_in",
        "text_embedder": "vector_in",
        "guidance_embedder": "guidance_in",
    }.items()
    for i, end in ((1, "in"), (2, "out"))
}
_FLUX2_DOUBLE = {
    "attn.to_qkv": "img_attn.qkv",
    "attn.add_qkv_proj": "txt_attn.qkv",
    "attn.to_out.0": "img_attn.proj",
    "attn.to_add_out": "txt_attn.proj",
    "ff.linear_in": "img_mlp.0",
    "ff.linear_out": "img_mlp.2",
    "ff_context.linear_in": "txt_mlp.0",
    "ff_context.linear_out": "txt_mlp.2",
}
_FLUX2_SINGLE = {"attn.to_qkv_mlp_proj": "linear1", "attn.to_out": "linear2"}
_FLUX2_OUTSIDE = {
    "x_embedder": "img_in",
    "context_embedder": "txt_in",
    "proj_out": "final_layer.linear",
    f"norm_out.linear{SWAPPED}": "final_layer.adaLN_modulation.1",
    "single_stream_modulation.linear": "single_stream_modulation.lin",
    "double_stream_modulation_img.linear": "double_stream_modulation_img.lin",
    "double_stream_modulation_txt.linear": "double_stream_modulation_txt.lin",
} | {
    f"time_guidance_embed.{part}_embedder.linear_{i}": f"{theirs}.{end}_layer"
    for part, theirs in {"timestep": "time_in", "guidance": "guidance_in"}.items()
    for i, end in ((1, "in"), (2, "out"))
}
_SD3 = {
    "attn.to_qkv": "x_block.attn.qkv",
    "attn.to_out.0": "x_block.attn.proj",
    "attn2.to_qkv": "x_block.attn2.qkv",
    "attn2.to_out.0": "x_block.attn2.proj",
    "ff.net.0.proj": "x_block.mlp.fc1",
    "ff.net.2": "x_block.mlp.fc2",
    "norm1.linear": "x_block.adaLN_modulation.1",
    "attn.add_qkv_proj": "context_block.attn.qkv",
    "attn.to_add_out": "context_block.attn.proj",
    "ff_context.net.0.proj": "context_block.mlp.fc1",
    "ff_context.net.2": "context_block.mlp.fc2",
    "norm1_context.linear": "context_block.adaLN_modulation.1",
    f"norm1_context.linear{SWAPPED}": "context_block.adaLN_modulation.1",
}
_SD3_OUTSIDE = {
    "pos_embed.proj": "x_embedder.proj",
    "proj_out": "final_layer.linear",
    f"norm_out.linear{SWAPPED}": "final_layer.adaLN_modulation.1",
} | {
    f"time_text_embed.{ours}.linear_{i}": f"{theirs}.mlp.{2 * i - 2}"
    for ours, theirs in {"timestep_embedder": "t_embedder", "text_embedder": "y_embedder"}.items()
    for i in (1, 2)
}


def name_flux(name: str) -> str:
    """Return a module's name in FLUX.1's repository, also used by comfy/ldm/flux/model.py."""
    return _in_blocks(name, _FLUX_DOUBLE, _FLUX_SINGLE, _FLUX_OUTSIDE)


def name_flux2(name: str) -> str:
    """Return a module's name in FLUX.2's repository, also used by ComfyUI."""
    return _in_blocks(name, _FLUX2_DOUBLE, _FLUX2_SINGLE, _FLUX2_OUTSIDE)


def _in_blocks(
    name: str, double: Mapping[str, str], single: Mapping[str, str], outside: Mapping[str, str]
) -> str:
    """Return the name of a module of a network with double and single blocks."""
    if match := re.fullmatch(r"transformer_blocks\.(\d+)\.(.+)", name):
        return f"double_blocks.{match[1]}.{double.get(match[2], match[2])}"
    if match := re.fullmatch(r"single_transformer_blocks\.(\d+)\.(.+)", name):
        return f"single_blocks.{match[1]}.{single.get(match[2], match[2])}"
    return outside.get(name, name)


def name_sd3(name: str) -> str:
    """Return a module's name in SD3's repository, also used by sd-scripts."""
    if match := re.fullmatch(r"transformer_blocks\.(\d+)\.(.+)", name):
        return f"joint_blocks.{match[1]}.{_SD3.get(match[2], match[2])}"
    return _SD3_OUTSIDE.get(name, name)


def name_z_image(name: str) -> str:
    """Return a module's name in Z-Image's repository, also used by comfy/ldm/lumina/model.py."""
    name = re.sub(r"^all_(x_embedder|final_layer)\.[\d-]+", r"\1", name)
    name = re.sub(r"(\.attention)\.to_qkv$", r"\1.qkv", name)
    return re.sub(r"(\.attention)\.to_out\.0$", r"\1.out", name)
