"""The parts of LoRA files that change text encoders, for pipelines whose loader applies them.

Modules are named as in files of diffusers, without `text_model.`, because transformers' CLIP models
have that prefix or not, depending on the version.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import diffusers
from peft import LoraConfig
from torch import Tensor

from ..backbones.lora_files import LoraFiles
from .settings import read_settings
from .weights import LoraLayer, LoraWeights, join, rank_and_scale

PREFIX = "text_model."
_KEY = re.compile(
    r"(?P<name>.+?)(?:(?:\.lora_(?P<new>A|B)|[._]lora[._](?P<old>down|up)"
    r"|\.lora_linear_layer\.(?P<older>down|up))\.weight|(?P<alpha>\.alpha))"
)
_DIFFUSERS = re.compile(r"(?P<part>text_encoder(?:_2)?)\.(?P<module>(?:text_model\.)?encoder\..+)")
_KOHYA = re.compile(
    r"lora_te(?P<number>[12]?)_text_model_encoder_layers_(?P<layer>\d+)_(?P<block>self_attn|mlp)"
    r"_(?P<module>[qkv]_proj|out_proj|fc[12])"
)
_COMFY = re.compile(
    r"text_encoders\.clip_(?P<clip>[lg])\.(?:transformer\.)?(?P<module>text_model\.encoder\..+)"
)
_OLD_ATTENTION = re.compile(r"self_attn\.to_(q|k|v|out)$")
"""Attention of a CLIP encoder in older names of diffusers, into which it converts kohya's files."""
_T5 = re.compile(
    r"text_encoder(?:s)?(?:_\d)?\.(?:transformer\.)?(?:encoder\.block\.|shared|final_layer_norm)"
    r"|lora_te\d?_encoder_block_|text_encoder_3\.|lora_te3_|(?:text_encoders\.)?t5xxl\."
)
"""Start of the key of a T5 encoder's tensor. Its layers are named otherwise than those of CLIP."""
_KINDS = {"A": "a", "down": "a", "B": "b", "up": "b"}


def text_encoders(files: LoraFiles) -> tuple[str, ...]:
    """Return the text encoders into which the stock pipeline loads a LoRA: never a T5 encoder.

    Args:
        files: The family's LoRA files.
    """
    pipeline = getattr(diffusers, files.pipeline_class)
    return tuple(
        name
        for name in getattr(pipeline, "_lora_loadable_modules", ())
        if name.startswith("text_encoder")
    )


def read_text(
    path: Path,
    tensors: Mapping[str, Tensor],
    header: Mapping[str, str],
    files: LoraFiles,
) -> dict[str, dict[str, LoraLayer]]:
    """Read the text-encoder part of a LoRA file, in the layouts of diffusers, kohya and ComfyUI.

    Tensors of zeros that no stock pipeline loads, which some trainers write, are passed over.

    Args:
        path: The file.
        tensors: The tensors of text encoders, by key.
        header: The file's metadata.
        files: The family's LoRA files.

    Returns:
        The layers by component, e.g. "text_encoder_2", and module.

    Raises:
        ValueError: The stock pipeline loads no LoRA into an encoder, a key is in another layout, or
            a layer is damaged.
    """
    tensors = _without_idle(tensors, files)
    _check_loadable(path, tensors, files)
    found: dict[tuple[str, str], dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        match = _KEY.fullmatch(key)
        place = _place(match["name"]) if match else None
        if match is None or place is None:
            raise ValueError(
                f"{path}: {key} changes a text encoder in a layout that is not supported: convert"
                " the file to the layout of diffusers, or use a copy without these tensors"
            )
        own = found.setdefault(place, {})
        if (kind := _kind(key)) in own:
            raise ValueError(
                f"{path}: {key} and another key name the same tensor of {'.'.join(place)}: remove"
                " one"
            )
        own[kind] = tensor
    parts: dict[str, dict[str, LoraLayer]] = {}
    for (part, module), own in found.items():
        config = read_settings(path, header, part, of_peft=False)
        layer = _layer(path, f"{part}.{module}", own, module, config)
        parts.setdefault(part, {})[module.removeprefix(PREFIX)] = layer
    return parts


def _without_idle(tensors: Mapping[str, Tensor], files: LoraFiles) -> dict[str, Tensor]:
    """Return the tensors without layers that would be refused, although they add zero."""
    loadable, layers = text_encoders(files), dict[str, list[str]]()
    for key in tensors:
        match = _KEY.fullmatch(key)
        layers.setdefault(match["name"] if match else key, []).append(key)
    idle: set[str] = set()
    for name, keys in layers.items():
        added = [tensors[key] for key in keys if _kind(key) not in ("a", "alpha")]
        readable = _KEY.fullmatch(keys[0]) and not _T5.match(name) and _place(name)
        known = loadable and readable
        if not known and added and not any(x.any() for x in added):
            idle |= set(keys)
    return {key: x for key, x in tensors.items() if key not in idle}


def _kind(key: str) -> str:
    """Return the kind of a tensor: "a", "b" or "alpha"; empty in another layout."""
    match = _KEY.fullmatch(key)
    if match is None:
        return ""
    return _KINDS.get(match["new"] or match["old"] or match["older"] or "", "alpha")


def _check_loadable(path: Path, tensors: Mapping[str, Tensor], files: LoraFiles) -> None:
    """Refuse tensors of encoders that a stock pipeline leaves as they are."""
    known = text_encoders(files)
    others = [key for key in tensors if not known or _T5.match(key)]
    if others:
        raise ValueError(
            f"{path}: {others[0]} and {len(others) - 1} more tensors change a text encoder into"
            f" which {files.pipeline_class} loads no LoRA, so neither the teacher nor its students"
            " would have this part: use a copy of the file without these tensors"
        )


def _place(name: str) -> tuple[str, str] | None:
    """Return component and module of a layer's name in a file; None in another layout."""
    if match := _DIFFUSERS.fullmatch(name):
        return match["part"], _OLD_ATTENTION.sub(_new_attention, match["module"])
    if match := _COMFY.fullmatch(name):
        return "text_encoder_2" if match["clip"] == "g" else "text_encoder", match["module"]
    if match := _KOHYA.fullmatch(name):
        part = "text_encoder_2" if match["number"] == "2" else "text_encoder"
        return part, f"{PREFIX}encoder.layers.{match['layer']}.{match['block']}.{match['module']}"
    return None


def _new_attention(match: re.Match[str]) -> str:
    return f"self_attn.{match[1]}_proj"


def _layer(
    path: Path, name: str, tensors: Mapping[str, Tensor], module: str, config: LoraConfig | None
) -> LoraLayer:
    a, b = tensors.get("a"), tensors.get("b")
    if a is None or b is None or a.dim() != 2 or b.dim() != 2 or len(a) != b.shape[1]:
        raise ValueError(
            f"{path}: {name} lacks a factor, or its factors have different ranks, so the file is"
            " damaged: download or export it again"
        )
    if "alpha" in tensors:
        if tensors["alpha"].numel() != 1:
            raise ValueError(
                f"{path}: alpha of {name} has shape {list(tensors['alpha'].shape)}, but must be one"
                " number: export the file again"
            )
        return LoraLayer(a, b, tensors["alpha"].item() / len(a))
    return LoraLayer(a, b, 1.0 if config is None else rank_and_scale(config, module)[1])


TextPart = tuple[dict[str, Tensor], LoraConfig]
"""Tensors of one text encoder by peft's names, and their settings for peft."""


def text_parts(loras: Sequence[LoraWeights]) -> dict[str, TextPart]:
    """Combine the text-encoder parts of LoRAs into one that adds their sum. This is exact.

    Args:
        loras: LoRAs, each at its scale.

    Returns:
        Tensors and settings by component. The scales are multiplied into B.
    """
    parts = {}
    for part in dict.fromkeys(part for lora in loras for part in lora.text):
        whole = join([LoraWeights(lora.text[part]) for lora in loras if part in lora.text])
        layers = {
            name: LoraLayer(layer.a.float(), layer.scale * layer.b.float())
            for name, layer in whole.layers.items()
        }
        plain = LoraWeights(layers if has_attention(layers) else layers | _idle_attention(layers))
        config = plain.config()
        # without the anchor, a pattern also matches names with the prefix
        config.rank_pattern = {key.lstrip("^"): x for key, x in (config.rank_pattern or {}).items()}
        config.alpha_pattern = {
            key.lstrip("^"): x for key, x in (config.alpha_pattern or {}).items()
        }
        parts[part] = {f"{PREFIX}{key}": x for key, x in plain.state().items()}, config
    return parts


def has_attention(layers: Iterable[str]) -> bool:
    """Return whether layers of a CLIP encoder include attention. Else diffusers loads none of them.

    Args:
        layers: Names of the layers.
    """
    return any(".self_attn." in name for name in layers)


def _idle_attention(layers: Mapping[str, LoraLayer]) -> dict[str, LoraLayer]:
    """Return an attention layer that adds zero, beside layers of MLPs."""
    name, layer = next(iter(layers.items()))
    width = layer.a.shape[1] if name.endswith("fc1") else len(layer.b)
    block = name.rpartition(".mlp.")[0]
    idle = LoraLayer(layer.a.new_zeros(1, width), layer.b.new_zeros(width, 1))
    return {f"{block}.self_attn.q_proj": idle}


def text_state(loras: Sequence[LoraWeights]) -> dict[str, Tensor]:
    """Return the text-encoder parts of LoRAs as one, by the keys of diffusers' files.

    Args:
        loras: LoRAs, each at its scale.
    """
    return {
        f"{part}.{key}": x
        for part, (state, _) in text_parts(loras).items()
        for key, x in state.items()
    }
