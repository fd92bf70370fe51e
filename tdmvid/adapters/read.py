"""Read anybody's LoRA file: one reader of all layouts; scales are those of the consumers.

The scale of a layer is, in this order: that of its own `.alpha`; that of peft's settings, which lie
in the file's header (diffusers) or in the adapter_config.json beside it (peft); 1.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from peft import LoraConfig
from torch import Tensor, nn

from ..backbones.experts import Experts
from ..backbones.lora_files import LoraFiles
from .layouts.names import BARE, DIFFUSERS, PEFT, ModuleNames, module_names
from .settings import PEFT_FILE, read_settings
from .tensors import SUFFIXES, read_tensors
from .weights import LoraLayer, LoraWeights, rank_and_scale

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
"""What a tensor is, by the end of its key."""
_PATTERNS = [(kind, re.compile(rf"(.+?){end}")) for kind, end in _KINDS]
_FOREIGN = frozenset(kind for kind, _ in _KINDS[7:])
_NEWEST = re.compile(r".+\.lora_(?:[AB]\.weight|B\.bias)")
_TEXT = re.compile(
    r"(?:base_model\.model\.)?(?:text_encoders?(?:_\d)?\.|lora_te\d?_|te\d?\.|clip_[lgh]\.|t5xxl\."
    r"|cond_stage_model\.|conditioner\.|bundle_emb\.)"
)


@dataclass
class _Parts:
    """Tensors of one module by what they are."""

    layout: str
    tensors: dict[str, Tensor] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)


def read_lora(
    path: Path, files: LoraFiles, network: nn.Module, *, bare: bool = False
) -> LoraWeights:
    """Return the LoRA of a file, checked against a network.

    Args:
        path: the file, or a folder that holds one.
        files: the family's.
        network: its network, without an adapter; the meta device will do.
        bare: read keys without a prefix, which no pipeline loads by itself.

    Raises:
        ValueError: the file is damaged, of another model, or no LoRA that consumers can load.
        FileNotFoundError: there is none.
    """
    if isinstance(network, Experts):
        return _read_pair(Path(path), files, network, bare=bare)
    path = find_lora(Path(path), files)
    tensors, header = read_tensors(path)
    if not tensors:
        raise ValueError(f"{path} holds no tensors: download or export it again")
    _check_finite(path, tensors)
    names = module_names(network, files.pipeline_class, files.part)
    parts, left_out, dropped = _sort(path, tensors, names, type(network).__name__)
    _check_prefixes(path, parts, files, bare)
    if not parts:
        raise ValueError(
            f"{path} changes nothing but text encoders ({left_out[0]}): a student is a LoRA of the"
            f" {files.part}"
        )
    of_peft = any(found.layout == PEFT for found in parts.values())
    config = read_settings(path, header, files.part, of_peft=of_peft)
    modules = dict(network.named_modules())
    layers = dict[str, LoraLayer]()
    for name, found in parts.items():
        layer = _build_layer(path, name, found, modules[name], config, network)
        if layer is None:
            dropped += [key for kind, key in found.keys.items() if found.tensors[kind].any()]
        else:
            layers[name] = layer
    if not layers:
        raise ValueError(f"{path} adapts no linear layer and no convolution: it is no LoRA")
    layout = next(iter(parts.values())).layout
    prefix = {DIFFUSERS: f"{files.part}.", PEFT: "base_model.model."}.get(layout)
    plain = prefix is not None and all(
        _NEWEST.fullmatch(key) and key.partition(".lora_")[0].removeprefix(prefix) in layers
        for key in tensors
    )
    alphas = frozenset(
        found.tensors["alpha"].item() if "alpha" in found.tensors else None
        for name, found in parts.items()
        if name in layers
    )
    lora = LoraWeights(
        layers, str(path), layout, plain, tuple(left_out), tuple(dropped), stated_alphas=alphas
    )
    _announce(lora)
    return lora


def _read_pair(path: Path, files: LoraFiles, pair: Experts, *, bare: bool) -> LoraWeights:
    """Return the LoRAs of both experts as one, by the names of the pair's layers."""
    if not path.is_dir():
        raise ValueError(f"{path} is one file: give a folder with the LoRAs of both experts")
    found = {
        name: read_lora(path, of_expert, pair.networks[name], bare=bare)
        for name, of_expert in files.of_experts(pair.split.names).items()
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


def find_lora(path: Path, files: LoraFiles) -> Path:
    """Return the LoRA file that a path names: itself, or the one in a folder.

    Raises:
        ValueError: there is no such folder, or none with a LoRA's usual name in it.
        FileNotFoundError: there is no such file.
    """
    if path.is_file():
        return path
    if path.suffix in SUFFIXES and not path.is_dir():
        raise FileNotFoundError(f"{path}: no such LoRA file")
    usual = [files.file, *(PEFT_FILE + suffix for suffix in SUFFIXES), "pytorch_lora_weights.bin"]
    for name in usual:
        if (path / name).is_file():
            return path / name
    others = ", ".join(found.name for found in sorted(path.glob("*.safetensors")))
    raise ValueError(
        f"{path} has no {files.file}: give"
        + (f" the LoRA file in it ({others})" if others else " the lora/ folder of a finished run")
    )


def _check_finite(path: Path, tensors: Mapping[str, Tensor]) -> None:
    for key, tensor in tensors.items():
        if not tensor.is_floating_point() and not key.endswith(".alpha"):
            raise ValueError(f"{path}: {key} is of {tensor.dtype}: quantised LoRAs are not read")
        whole = tensor if tensor.dtype.itemsize > 1 else tensor.float()  # of float8
        if not torch.isfinite(whole).all():
            kind = "NaN" if whole.isnan().any() else "infinite values"
            raise ValueError(f"{path}: {key} holds {kind}: the file is damaged, get another one")


def _sort(
    path: Path, tensors: Mapping[str, Tensor], names: ModuleNames, network: str
) -> tuple[dict[str, _Parts], list[str], list[str]]:
    """Tensors by module and by what they are; keys of text encoders; keys that no LoRA holds."""
    parts: dict[str, _Parts] = {}
    text: list[str] = []
    dropped: list[str] = []
    for key, tensor in tensors.items():
        if _TEXT.match(key):
            text.append(key)
            continue
        kind, name = _kind_of(path, key, tensor)
        found = names.find(name)
        if kind == "diff_m" or (found is None and kind.startswith("diff") and tensor.dim() < 2):
            dropped += [key] if tensor.any() else []  # of a norm, or of a modulation
            continue
        if found is None:
            raise ValueError(
                f"{path}: {key} is {list(tensor.shape)}, {network} has no such layer: a LoRA fits"
                " only the model it was trained on, see the card beside it"
            )
        part = parts.setdefault(found.module, _Parts(found.layout))
        if kind in part.tensors:
            raise ValueError(f"{path}: {key} and {part.keys[kind]} are of the same layer: keep one")
        part.tensors[kind], part.keys[kind] = tensor, key
    return parts, text, dropped


def _kind_of(path: Path, key: str, tensor: Tensor) -> tuple[str, str]:
    """What a tensor is, and the name of its module in the file."""
    for kind, pattern in _PATTERNS:
        match = pattern.fullmatch(key)
        if not match:
            continue
        if kind in _FOREIGN:
            raise ValueError(
                f"{path} is a {kind}, not a plain LoRA ({key}): merge it into its base and"
                " `tdmvid export --network ... --rank` makes a LoRA of it"
            )
        return kind, _without_processor(match[1])
    raise ValueError(
        f"{path}: {key} {list(tensor.shape)} is no tensor of a LoRA: a layer has lora_A and lora_B"
        " (lora_down and lora_up), or diff"
    )


def _without_processor(name: str) -> str:
    """A module's name, of keys from the time when attention processors held the LoRA."""
    return re.sub(
        r"\.processor\.(to_[qkv]|to_out)$",
        lambda match: f".{match[1]}{'.0' if match[1] == 'to_out' else ''}",
        name,
    )


def _check_prefixes(path: Path, parts: dict[str, _Parts], files: LoraFiles, bare: bool) -> None:
    without = [found for found in parts.values() if found.layout == BARE]
    if not without or (bare and len(without) == len(parts)):
        return
    key = next(iter(without[0].keys.values()))
    if len(without) < len(parts):
        raise ValueError(
            f"{path}: {key} and {len(without) - 1} more of {len(parts)} layers lack the prefix"
            f" {files.prefix!r} that the others have: pipelines would leave them out"
        )
    raise ValueError(
        f"{path}: {key} has no prefix, so pipelines load nothing of it; `tdmvid export --published"
        f" {path.name}` writes it with {files.prefix + '.'!r} in front"
    )


def _build_layer(
    path: Path,
    name: str,
    found: _Parts,
    module: nn.Module,
    config: LoraConfig | None,
    network: nn.Module,
) -> LoraLayer | None:
    """The layer of a module's tensors; None if no LoRA can hold them, as of a norm."""
    tensors, keys = found.tensors, found.keys
    weight = dict(module.named_parameters(recurse=False)).get("weight")
    shape = () if weight is None else tuple(weight.shape)
    adaptable = len(shape) >= 2 and not isinstance(module, nn.Embedding)
    if not adaptable and not {"a", "b"} & tensors.keys():
        return None
    if "alpha" in tensors and not {"a", "b"} & tensors.keys():
        raise ValueError(f"{path}: {keys['alpha']} is of a layer without factors")
    if "diff" in tensors:
        return _of_whole_change(path, found, shape)
    if {"a", "b"} & tensors.keys():
        a, b = _factors(path, name, found, shape, network)
        layer = LoraLayer(a, b, _scale(path, name, found, len(a), config))
    else:  # a change of the bias alone
        layer = LoraLayer(torch.zeros(1, *shape[1:]), torch.zeros(shape[0], 1, *_ones(shape)))
    return _with_bias(path, layer, found, shape)


def _factors(
    path: Path, name: str, found: _Parts, shape: tuple[int, ...], network: nn.Module
) -> tuple[Tensor, Tensor]:
    """Both factors in the layer's own shape: 1 x 1 convolutions are written as matrices, too."""
    for kind, other in (("a", "b"), ("b", "a")):
        if kind not in found.tensors:
            raise ValueError(
                f"{path}: {name} has {found.keys[other]} and not the other factor: a LoRA layer has"
                " both"
            )
    a, b = found.tensors["a"], found.tensors["b"]
    for kind, tensor, fits in (
        ("a", a, a.dim() > 1 and len(a) and a[0].numel() == torch.Size(shape[1:]).numel()),
        ("b", b, b.dim() > 1 and len(b) == shape[0] and b.numel() == len(b) * b.shape[1]),
    ):
        if not fits:
            raise ValueError(
                f"{path}: {found.keys[kind]} is {list(tensor.shape)}, the layer there is"
                f" {list(shape)} in {type(network).__name__}: a LoRA of"
                f" {[len(b), *a.shape[1:]]} is of another model, see the card beside it"
            )
    if b.shape[1] != len(a):
        raise ValueError(
            f"{path}: {name} has factors of rank {len(a)} and {b.shape[1]}: the file is damaged"
        )
    return a.reshape(len(a), *shape[1:]), b.reshape(*b.shape[:2], *_ones(shape))


def _ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (1,) * (len(shape) - 2)


def _scale(path: Path, name: str, found: _Parts, rank: int, config: LoraConfig | None) -> float:
    if "alpha" in found.tensors:
        if found.tensors["alpha"].numel() != 1:
            raise ValueError(
                f"{path}: {found.keys['alpha']} is {list(found.tensors['alpha'].shape)}, and must"
                " be one number"
            )
        return found.tensors["alpha"].item() / rank
    if config is None:
        return 1.0
    try:
        stated, scale = rank_and_scale(config, name)
    except re.error as error:
        raise ValueError(
            f"{path}: rank_pattern or alpha_pattern of its settings is no pattern ({error})"
        ) from error
    if stated != rank:
        raise ValueError(
            f"{path}: {name} is of rank {rank}, its settings say {stated}: peft would not load it"
        )
    return scale


def _of_whole_change(path: Path, found: _Parts, shape: tuple[int, ...]) -> LoraLayer:
    """A change of the whole weight [out, in, ...] as two factors, one of them the identity."""
    if {"a", "b"} & found.tensors.keys():
        raise ValueError(f"{path}: {found.keys['diff']} beside factors of the same layer")
    diff = found.tensors["diff"].float()
    if tuple(diff.shape) != shape:
        raise ValueError(
            f"{path}: {found.keys['diff']} is {list(diff.shape)}, the layer there is {list(shape)}:"
            " it is of another model"
        )
    matrix = diff.flatten(1)
    if len(matrix) > matrix.shape[1] and len(shape) == 2:
        a, b = torch.eye(matrix.shape[1]), matrix
    else:
        a, b = matrix, torch.eye(len(matrix))
    layer = LoraLayer(a.reshape(len(a), *shape[1:]), b.reshape(*b.shape, *_ones(shape)))
    return _with_bias(path, layer, found, shape)


def _with_bias(path: Path, layer: LoraLayer, found: _Parts, shape: tuple[int, ...]) -> LoraLayer:
    """The layer with its bias: peft scales it as the factors, `diff_b` is added as it is."""
    for kind in ("bias", "diff_b"):
        bias = found.tensors.get(kind)
        if bias is None:
            continue
        if tuple(bias.shape) != shape[:1]:
            raise ValueError(
                f"{path}: {found.keys[kind]} is {list(bias.shape)}, the layer there is"
                f" {list(shape)}: it is of another model"
            )
        if kind == "diff_b" and layer.scale == 0:
            layer = replace(layer, b=torch.zeros_like(layer.b), scale=1.0)
        layer = replace(layer, bias=bias if kind == "bias" else bias.float() / layer.scale)
    return layer


def _announce(lora: LoraWeights) -> None:
    """Say what of a file is not applied."""
    log = logging.getLogger(__name__)
    if lora.left_out:
        log.warning(
            "%s: %d tensors of text encoders are left out, %s among them: the student keeps its"
            " base's text encoder",
            lora.where,
            len(lora.left_out),
            lora.left_out[0],
        )
    if lora.dropped:
        log.warning(
            "%s: %d changes of layers that no LoRA of diffusers or peft holds are left out, %s"
            " among them",
            lora.where,
            len(lora.dropped),
            lora.dropped[0],
        )
