"""A LoRA from weights: the low-rank part of a full fine-tune, and adapters published by others."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ..backbones.base import Backbone
from ..config import LoraSettings
from .layouts import adapted_modules, layouts_of
from .lora import attach, start_from

OVERSAMPLING, ITERATIONS = (
    16,
    6,
)  # of the randomised SVD (arXiv 0909.4061): its error is then that of an exact one to a few digits


@torch.no_grad()
def extract(
    base: nn.Module, tuned: dict[str, Tensor], rank: int
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The best rank-r approximation of every linear layer's change: a state dict of alpha = r, and
    its errors.

    tuned: the fine-tune's parameters by name. Errors are norms of what is missing relative to the
    change: per layer, and `error` over all parameters, those that no LoRA holds (`left_out`)
    included.
    """
    if rank < 1:
        raise ValueError(f"rank={rank}: at least 1")
    own = dict(base.named_parameters())
    if own.keys() != tuned.keys():
        raise ValueError(
            f"the fine-tune is of another model: {sorted(own.keys() ^ tuned.keys())[0]} is in one"
            " of them only"
        )
    linear = {
        f"{name}.weight": name
        for name, layer in base.named_modules()
        if isinstance(layer, nn.Linear)
    }
    state: dict[str, Tensor] = {}
    layers: dict[str, float] = {}
    left_out: list[str] = []
    missing = whole = 0.0
    for key, parameter in own.items():
        change = tuned[key].to(parameter.device).float() - parameter.float()
        size = change.square().sum().item()
        if size == 0:
            continue
        whole += size
        if key not in linear:
            left_out.append(key)
            missing += size
            continue
        a, b = _factors(change, rank)
        rest = (change - b @ a).square().sum().item()
        missing += rest
        name = linear[key]
        layers[name] = math.sqrt(rest / size)
        state |= {
            f"{name}.lora_A.weight": a.cpu().contiguous(),
            f"{name}.lora_B.weight": b.cpu().contiguous(),
        }
    if not state:
        raise ValueError("the fine-tune changes no linear layer: there is nothing to extract")
    return state, {
        "error": math.sqrt(missing / whole),
        "rank": rank,
        "layers": layers,
        "left_out": left_out,
    }


def _factors(change: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """A [r, in] and B [out, r] with B A nearest to `change` [out, in]; zeros beyond its own
    rank.
    """
    with torch.random.fork_rng(devices=[change.device] if change.is_cuda else []):
        torch.manual_seed(0)
        u, s, v = torch.svd_lowrank(
            change, q=min(rank + OVERSAMPLING, *change.shape), niter=ITERATIONS
        )
    kept, root = min(rank, len(s)), s[:rank].sqrt()
    a, b = change.new_zeros(rank, change.shape[1]), change.new_zeros(change.shape[0], rank)
    a[:kept], b[:, :kept] = (v[:, :kept] * root).T, u[:, :kept] * root
    return a, b


def adapt(
    backbone: Backbone, state: dict[str, Tensor], alpha: float | None = None
) -> tuple[nn.Module, dict[str, Tensor], LoraSettings]:
    """Attach a LoRA's layers to the backbone's network: the module, its adapter tensors by
    parameter name, their shape.

    alpha: None is r. ValueError for a LoRA of another model or of several ranks.
    """
    network, names = backbone.network, adapted_modules(state)
    layers = dict(network.named_modules())
    for name in names:
        a, b = state[f"{name}.lora_A.weight"], state[f"{name}.lora_B.weight"]
        there = getattr(layers.get(name), "weight", None)
        if there is None or (b.shape[0], a.shape[1]) != tuple(there.shape[:2]):
            has = "no such layer" if there is None else f"{list(there.shape)} there"
            raise ValueError(
                f"{name}: a LoRA of {[b.shape[0], a.shape[1]]}, {type(network).__name__} has {has}:"
                " it is of another model"
            )
    ranks = {len(state[f"{name}.lora_A.weight"]) for name in names}
    if len(ranks) > 1:
        raise ValueError(f"the LoRA has layers of rank {sorted(ranks)}: one rank is supported")
    rank = ranks.pop()
    settings = LoraSettings(
        rank=rank, alpha=float(rank if alpha is None else alpha), targets=tuple(names)
    )
    module = attach(network, settings, (), seed=0)
    start_from(module, settings, state, settings.alpha, where="the LoRA")
    return (
        module,
        {name: p.detach().clone() for name, p in module.named_parameters() if p.requires_grad},
        settings,
    )


def read_published(
    path: Path, backbone: Backbone, *, scale: float = 1.0
) -> tuple[dict[str, Tensor], float]:
    """A LoRA file of anybody's: its state dict by the network's module names, and its alpha.

    Reads diffusers' and peft's key layouts, old ones too, and those of the family's consumers, from
    .safetensors or, as plain tensors only, .pt and .bin. scale: at which its authors say to load
    it. ValueError for anything else.
    """
    tensors, metadata = _read(Path(path))
    names = [
        name
        for name, layer in backbone.network.named_modules()
        if isinstance(layer, (nn.Linear, nn.Conv2d))
    ]
    stated_by_diffusers = "lora_adapter_metadata" in metadata
    for layout in () if stated_by_diffusers else layouts_of(backbone.pipeline_class).values():
        if layout.matches(list(tensors), backbone.pipeline_class, names):
            state = layout.read(tensors, backbone.pipeline_class, names)
            return state, scale * _rank(state)
    state, alphas = {}, set()
    for key, tensor in tensors.items():
        if key.endswith(".alpha"):
            alphas.add(tensor.item())
        else:
            state[_plain(key, backbone.spec.network_folder)] = tensor
    adapted_modules(state)
    if len(alphas) > 1:
        raise ValueError(f"{path}: its layers have alphas {sorted(alphas)}: one is supported")
    stated = json.loads(metadata.get("lora_adapter_metadata", "{}")).get(
        f"{backbone.lora.prefix}.lora_alpha"
    )
    beside = Path(path).with_name("adapter_config.json")  # of a folder that peft wrote
    if stated is None and beside.is_file():
        stated = json.loads(beside.read_text()).get("lora_alpha")
    return state, scale * (alphas.pop() if alphas else _rank(state) if stated is None else stated)


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    if path.is_dir():
        raise ValueError(
            f"{path} is a folder: give the LoRA file in it"
            f" ({', '.join(found.name for found in sorted(path.glob('*.safetensors')))})"
        )
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such LoRA file")
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="pt") as file:
                return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}
        except SafetensorError as error:
            raise ValueError(
                f"{path}: no whole safetensors file ({error}): download it again"
            ) from error
    if path.suffix not in (".pt", ".pth", ".bin"):
        raise ValueError(f"{path}: a LoRA is a .safetensors, .pt, .pth or .bin file")
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of pickle, zipfile and torch, each of its own kind
        raise ValueError(
            f"{path}: not loaded, it holds more than tensors or is damaged"
            f" ({str(error).splitlines()[0]})"
        ) from error
    loaded = loaded.get("state_dict", loaded) if isinstance(loaded, dict) else loaded
    if not isinstance(loaded, dict) or not all(
        isinstance(value, Tensor) for value in loaded.values()
    ):
        raise ValueError(f"{path}: holds no flat dictionary of tensors")
    return loaded, {}


def _plain(key: str, part: str) -> str:
    """`<module>.lora_A.weight` of a key in one of the layouts that diffusers and peft have used."""
    key = re.sub(rf"^(module\.|base_model\.model\.|{re.escape(part)}\.)+", "", key)
    key = re.sub(
        r"\.processor\.(to_[qkv]|to_out)_lora\.",
        lambda match: f".{match[1]}{'.0' if match[1] == 'to_out' else ''}.lora.",
        key,
    )
    key = re.sub(
        r"\.(lora_down|lora\.down|lora_linear_layer\.down)\.weight$", ".lora_A.weight", key
    )
    key = re.sub(r"\.(lora_up|lora\.up|lora_linear_layer\.up)\.weight$", ".lora_B.weight", key)
    return re.sub(r"\.lora_([AB])\.\w+\.weight$", r".lora_\1.weight", key)


def _rank(state: dict[str, Tensor]) -> int:
    return next(len(tensor) for key, tensor in state.items() if key.endswith("lora_A.weight"))
