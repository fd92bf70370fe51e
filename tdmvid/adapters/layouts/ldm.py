"""Names of UNet modules in the original repositories of SD1.5 and SDXL (`input_blocks`)."""

from __future__ import annotations

import re

_OUTSIDE = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}


def name_ldm(name: str, layers_per_block: int, attentive_ups: frozenset[int]) -> str:
    """Return the name of a UNet module in the original repository.

    Args:
        name: Its name in diffusers.
        layers_per_block: From the UNet's config.
        attentive_ups: Indices of the up blocks with attention, where the upsampler's index is one
            higher.
    """
    if name in _OUTSIDE:
        return _OUTSIDE[name]
    match = re.fullmatch(r"(down|mid|up)_blocks?(?:\.(\d+))?\.(\w+?)s\.(\d+)(?:\.(.+))?", name)
    if not match:
        return name
    side, block, kind, layer = match[1], int(match[2] or 0), match[3], int(match[4])
    inner = f".{_RESNET.get(match[5], match[5])}" if kind == "resnet" else f".{match[5]}"
    if side == "mid":
        return f"middle_block.{1 if kind == 'attention' else 2 * layer}{inner}"
    place = block * (layers_per_block + 1)
    column = {"resnet": 0, "attention": 1}.get(kind)
    if side == "down":
        if column is None:
            return f"input_blocks.{place + layers_per_block + 1}.0.op"
        return f"input_blocks.{place + layer + 1}.{column}{inner}"
    if column is None:
        column, layer = 2 if block in attentive_ups else 1, layers_per_block
    return f"output_blocks.{place + layer}.{column}{inner}"
