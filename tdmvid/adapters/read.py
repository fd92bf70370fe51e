"""Read a LoRA file in any layout in use. Scales are those that the files' own programs apply.

The scale of a layer comes from, in this order: its own `.alpha`; peft's settings, which are in the
file's header (diffusers) or in the adapter_config.json beside it (peft); else it is 1.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping, Set
from dataclasses import replace
from pathlib import Path

import torch
from peft import LoraConfig
from torch import Tensor, nn

from ..backbones.experts import Experts
from ..backbones.lora_files import LoraFiles
from .find import check_pair, find_lora
from .layers import build_layer
from .layouts.converted import in_stock_names
from .layouts.names import BARE, DIFFUSERS, PEFT, ModuleNames, module_names
from .parts import Parts
from .settings import read_settings
from .tensors import read_tensors
from .text import read_text
from .weights import LoraLayer, LoraWeights

_KINDS = (
    ("a", r"(?:\.lora_A(?:\.\w+)?|\.lora_down|[._]lora\.down|\.lora_linear_layer\.down)\.weight"),
    ("b", r"(?:\.lora_B(?:\.\w+)?|\.lora_up|[._]lora\.up|\.lora_linear_layer\.up)\.weight"),
    ("bias", r"\.lora_B(?:\.\w+)?\.bias"),
    ("alpha", r"\.alpha"),
    ("diff", r"\.diff"),
    ("diff_b", r"\.diff_b"),
    ("diff_m", r"\.diff_m"),
    ("DoRA", r"\.(?:lora_magnitude_vector(?:\.\w+)*|dora_scale|magnitude)"),
    ("LoHa", r"\.hada_\w+"),
    ("LoKr", r"\.lokr_\w+"),
    ("OFT", r"\.(?:oft_\w+(?:\.\w+)*|oft_blocks)"),
    ("GLoRA", r"\.(?:a1|a2|b1|b2)\.weight"),
    ("LoCon with a middle factor", r"\.lora_mid\.weight"),
)
"""Kind of a tensor, by the end of its key."""
_PATTERNS = [(kind, re.compile(rf"(.+?){end}")) for kind, end in _KINDS]
_FOREIGN = frozenset(kind for kind, _ in _KINDS[7:])
_NEWEST = re.compile(r".+\.lora_(?:[AB]\.weight|B\.bias)")
_TEXT = re.compile(
    r"(?:base_model\.model\.)?(?:text_encoders?(?:_\d)?\.|lora_te\d?_|te\d?\.|clip_[lgh]\.|t5xxl\."
    r"|cond_stage_model\.|conditioner\.|bundle_emb\.)"
)
_MAY_BE_LOST = re.compile(r"\.(?:bias|diff_b|diff|diff_m|(?:qkv|out)\.lora\.(?:up|down)\.weight)$")


class _UnknownKey(ValueError):
    """A key of a file names no layer of the network, or no tensor of a LoRA."""


class _Twice(_UnknownKey):
    """Two keys of a file name the same tensor. Some stock conversions pass over one of them."""


def read_lora(
    path: Path, files: LoraFiles, network: nn.Module, *, bare: bool = False, text: bool = False
) -> LoraWeights:
    """Read a LoRA file and check it against a network.

    Args:
        path: The file, or a folder that holds one.
        files: The family's LoRA files.
        network: The family's network without an adapter; may be on the meta device.
        bare: Accept keys without a prefix, which no pipeline loads by itself.
        text: Read the parts of text encoders too, instead of ignoring them. Not for two experts.

    Returns:
        The LoRA's layers.

    Raises:
        ValueError: The file is damaged, of another model, or not a LoRA that can be used.
        FileNotFoundError: There is no such file.
    """
    if isinstance(network, Experts):
        return _read_pair(Path(path), files, network, bare=bare)
    path = find_lora(Path(path), files)
    tensors, header = read_tensors(path)
    _check_finite(path, tensors)
    left_out = {key: x for key, x in tensors.items() if _TEXT.match(key)}
    own = {key: x for key, x in tensors.items() if key not in left_out}
    parts, dropped = _sort_or_convert(path, own, files, network, bare)
    _check_prefixes(path, parts, files, bare)
    if not parts and left_out:
        raise ValueError(
            f"{path} changes only text encoders ({next(iter(left_out))}): use a LoRA of the"
            f" {files.part}"
        )
    of_peft = any(found.layout == PEFT for found in parts.values())
    config = read_settings(path, header, files.part, of_peft=of_peft)
    layers, unused = _build_layers(path, parts, network, config)
    layout = next(iter(parts.values())).layout
    ours = {*layers, *(left_out if text and layout == DIFFUSERS else ())}
    lora = LoraWeights(
        layers,
        str(path),
        layout,
        _is_plain(tensors, layout, files.part, ours),
        tuple(left_out),
        (*dropped, *unused),
        stated_alphas=_stated_alphas(parts[name] for name in layers),
        text=read_text(path, left_out, header, files) if text else {},
    )
    _announce(lora)
    return lora


def _sort_or_convert(
    path: Path,
    tensors: Mapping[str, Tensor],
    files: LoraFiles,
    network: nn.Module,
    bare: bool,
) -> tuple[dict[str, Parts], list[str]]:
    """Sort the network's tensors as `_sort` does, in names that the stock pipeline converts too.

    Some pipelines add the prefix to `bare` keys, which otherwise are refused later.
    """
    names, kind = module_names(network, files.pipeline_class, files.part), type(network).__name__
    try:
        parts, dropped = _sort(path, tensors, names, kind)
        if not bare and parts and all(found.layout == BARE for found in parts.values()):
            converted, lost = in_stock_names(tensors, files.pipeline_class)
            if not lost:
                parts, dropped = _sort(path, converted, names, kind)
        return parts, dropped
    except _UnknownKey as unknown:
        converted, lost = in_stock_names(tensors, files.pipeline_class)
        try:
            parts, dropped = _sort(path, converted, names, kind)
        except ValueError:
            raise unknown from None
        layers = [key for key in lost if not _may_be_lost(key, tensors[key])]
        if not parts or (layers and isinstance(unknown, _Twice)):
            raise unknown from None
    if layers:
        raise ValueError(
            f"{path}: {layers[0]} and {len(layers) - 1} more tensors are lost when"
            f" {files.pipeline_class} converts the file, so only a part of the LoRA would be read:"
            " use a copy of the file in the layout of diffusers, or one without these tensors"
        )
    return parts, dropped + lost


def _build_layers(
    path: Path, parts: Mapping[str, Parts], network: nn.Module, config: LoraConfig | None
) -> tuple[dict[str, LoraLayer], list[str]]:
    """Return the layers by module, and the keys of modules that no LoRA can hold."""
    modules, layers, unused = dict(network.named_modules()), dict[str, LoraLayer](), list[str]()
    for name, found in parts.items():
        layer = build_layer(path, name, found, modules[name], config, network)
        if layer is None:
            unused += [key for kind, key in found.keys.items() if found.tensors[kind].any()]
        else:
            layers[name] = layer
    if not layers:
        raise ValueError(
            f"{path} adapts no linear layer and no convolution, so it is not a LoRA: use another"
            " file"
        )
    return layers, unused


def _stated_alphas(parts: Iterable[Parts]) -> frozenset[float | None]:
    return frozenset(
        found.tensors["alpha"].item() if "alpha" in found.tensors else None for found in parts
    )


def _is_plain(tensors: Mapping[str, Tensor], layout: str, part: str, ours: Set[str]) -> bool:
    """Return whether the newest names of the layout are all that a file has: those of `ours`, its
    layers and its tensors of text encoders.
    """
    prefix = {DIFFUSERS: f"{part}.", PEFT: "base_model.model."}.get(layout)
    return prefix is not None and all(
        _NEWEST.fullmatch(key)
        and (key in ours or key.partition(".lora_")[0].removeprefix(prefix) in ours)
        for key in tensors
    )


def _read_pair(path: Path, files: LoraFiles, pair: Experts, *, bare: bool) -> LoraWeights:
    """Read the LoRAs of both experts as one, with layer names of the pair."""
    experts = files.of_experts(pair.split.names)
    check_pair(path, list(experts.values()))
    found = {
        name: read_lora(path, of_expert, pair.networks[name], bare=bare)
        for name, of_expert in experts.items()
    }
    return replace(
        next(iter(found.values())),
        layers={
            f"{name}.{key}": x for name, lora in found.items() for key, x in lora.layers.items()
        },
        where=str(path),
        plain=all(lora.plain for lora in found.values()),
        stated_alphas=frozenset().union(*(lora.stated_alphas for lora in found.values())),
    )


def _check_finite(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Refuse a file without tensors, or with tensors that are not finite numbers."""
    if not tensors:
        raise ValueError(f"{path} contains no tensors: download or export it again")
    for key, tensor in tensors.items():
        if not tensor.is_floating_point() and not key.endswith(".alpha"):
            raise ValueError(
                f"{path}: {key} has dtype {tensor.dtype}: quantized LoRAs are not supported, use a"
                " floating-point file"
            )
        # isfinite does not support float8
        whole = tensor if tensor.dtype.itemsize > 1 else tensor.float()
        if not torch.isfinite(whole).all():
            kind = "NaN" if whole.isnan().any() else "infinite values"
            raise ValueError(
                f"{path}: {key} contains {kind}, so the file is damaged: download or export it"
                " again"
            )


def _sort(
    path: Path, tensors: Mapping[str, Tensor], names: ModuleNames, network: str
) -> tuple[dict[str, Parts], list[str]]:
    """Return the network's tensors by module and kind, and keys that no LoRA can hold."""
    parts: dict[str, Parts] = {}
    dropped: list[str] = []
    for key, tensor in tensors.items():
        kind, name = _kind_of(path, key, tensor)
        found = names.find(name)
        if kind == "diff_m" or (found is None and kind.startswith("diff") and tensor.dim() < 2):
            dropped += [key] if tensor.any() else []  # a norm or a modulation
            continue
        if found is None:
            raise _UnknownKey(
                f"{path}: {key} {list(tensor.shape)} matches no layer of {network}: use a LoRA"
                " of this model, with names of diffusers, peft or kohya"
            )
        own = name.removeprefix("base_model.model.")
        new = Parts(found.layout, joint=found.joint, module=own)
        part = parts.setdefault(found.module, new)
        if kind in part.tensors:
            raise _Twice(
                f"{path}: {key} and {part.keys[kind]} name the same tensor of one layer: remove one"
            )
        part.tensors[kind], part.keys[kind] = tensor, key
    return _split_joint(path, parts), dropped


def _split_joint(path: Path, parts: dict[str, Parts]) -> dict[str, Parts]:
    """Return the tensors with those of joint layers by their own modules."""
    out = {name: found for name, found in parts.items() if not found.joint}
    for joint in (found for found in parts.values() if found.joint):
        for name, own in joint.split().items():
            if name in out:
                one, other = (next(iter(x.keys.values())) for x in (out[name], own))
                raise _Twice(f"{path}: {one} and {other} name the same layer: remove one")
            out[name] = own
    return out


def _may_be_lost(key: str, tensor: Tensor) -> bool:
    """Return whether a stock conversion may lose a tensor: biases, norms and modulations.

    Z-Image's files of some trainers repeat layers as `qkv` and `out`, which it loses rightly.
    """
    return bool(_MAY_BE_LOST.search(key)) and not (key.endswith(".diff") and tensor.dim() > 1)


def _kind_of(path: Path, key: str, tensor: Tensor) -> tuple[str, str]:
    """Return the kind of a tensor, and the name of its module in the file."""
    for kind, pattern in _PATTERNS:
        match = pattern.fullmatch(key)
        if not match:
            continue
        if kind in _FOREIGN:
            raise ValueError(
                f"{path} is a {kind}, not a plain LoRA ({key}): merge it into its base and convert"
                " the result with `tdmvid export --network ... --rank`"
            )
        return kind, _without_processor(match[1])
    raise _UnknownKey(
        f"{path}: {key} {list(tensor.shape)} is not a tensor of a LoRA: expected lora_A and lora_B"
        " (or lora_down and lora_up), or diff"
    )


def _without_processor(name: str) -> str:
    """Return a module's name for keys from the time when attention processors held the LoRA."""
    return re.sub(
        r"\.processor\.(to_[qkv]|to_out)$",
        lambda match: f".{match[1]}{'.0' if match[1] == 'to_out' else ''}",
        name,
    )


def _check_prefixes(path: Path, parts: dict[str, Parts], files: LoraFiles, bare: bool) -> None:
    without = [found for found in parts.values() if found.layout == BARE]
    if not without or (bare and len(without) == len(parts)):
        return
    key = next(iter(without[0].keys.values()))
    if len(without) < len(parts):
        raise ValueError(
            f"{path}: {key} and {len(without) - 1} more of {len(parts)} layers lack the prefix"
            f" {files.prefix!r} that the others have, so pipelines would ignore them: add the"
            " prefix, or export the LoRA again"
        )
    raise ValueError(
        f"{path}: {key} has no prefix, so pipelines ignore it: `tdmvid export --published"
        f" {path.name}` adds the prefix {files.prefix + '.'!r}"
    )


def _announce(lora: LoraWeights) -> None:
    """Log which tensors of a file are ignored."""
    log = logging.getLogger(__name__)
    if lora.left_out and not lora.text:
        log.warning(
            "%s: %d tensors of text encoders are ignored, e.g. %s: the student keeps the text"
            " encoder of its base",
            lora.where,
            len(lora.left_out),
            lora.left_out[0],
        )
    if lora.dropped:
        log.warning(
            "%s: %d tensors are ignored, e.g. %s, because LoRA files of diffusers and peft cannot"
            " hold them or the file repeats them in other names",
            lora.where,
            len(lora.dropped),
            lora.dropped[0],
        )
